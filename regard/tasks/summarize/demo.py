"""`regard demo summarize`: from nothing to a trained pointer-generator and a page that shows what it copied.

A small model learns to put made reports into one-line headlines (see demo_corpus.py), and is scored on reports whose
names it has never seen: is the headline right, are the names there, and did the attention that copied a fact lie on the
sentence that states it?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regard.data.batches import TokenBudget
from regard.data.readers import DataSpec
from regard.decoding.options import DecodingOptions
from regard.inputs.words import WordTokenizerConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.copying import CopyConfig
from regard.models.encoder_decoder import EncoderDecoderConfig
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.tasks import model_directory
from regard.tasks.demo_folder import Layout, Spent, drawn_json, last_lines, short_training, train_in_turn
from regard.tasks.run_directory import write_text
from regard.tasks.summarize.demo_corpus import Report, make_corpus
from regard.tasks.summarize.demo_facts import FactsFound, facts_found
from regard.tasks.summarize.recipe import ROLES, SummarizeData, SummarizeRecipe, Validation
from regard.tasks.summarize.result import Summary
from regard.tasks.summarize.showing import show
from regard.tasks.summarize.summarizer import Summarizer
from regard.training.monitor import Silent, Watcher

NUM_STEPS = 300
NUM_HELD_OUT = 600
PARTS = ("train", "validation")
LAYOUT = Layout("text", r"(train|validation)\.tsv", proof="train.tsv", drawings=("copied.html", "copied.png"))


@dataclass(frozen=True)
class Demo:
    """What the demo came to. examples: held-out reports and their summaries, with attention."""

    found: FactsFound
    spent: Spent
    examples: tuple[tuple[Report, Summary], ...]
    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "copied.html"

    @property
    def picture(self) -> Path:
        return self.folder / "copied.png"

    def to_json(self) -> dict[str, Any]:
        return drawn_json("summarize", self.found.to_json(), self.spent, self.page, self.picture)

    def lines(self) -> list[str]:
        """What to print."""
        printed = []
        for report, summary in self.examples:
            mark = "" if summary.text in report.right else f"   (expected: {report.target})"
            printed += [f"  {report.source}", f"    -> {summary.text}{mark}"]
            copied = [word.text for word in summary.words if word.is_copied]
            printed.append(f"       copied: {', '.join(copied) or 'nothing'}")
        found = self.found
        document = self.examples[0][0].source
        return [
            *printed,
            "",
            f"headlines with every fact right: {found.right:.2%} of {found.num_reports:,} held-out reports",
            f"names never seen in training that were copied: {found.names:.2%} of {found.num_names:,}",
            f"attention on the sentence that states the fact: {found.attention:.2%} of {found.num_facts:,}"
            f" (chance {found.chance:.2%})",
            *last_lines(
                "what was copied, to look at",
                self.spent,
                self.page,
                self.picture,
                f'summarize {self.folder / "run" / "model"} "{document}"',
            ),
        ]


def demo(
    folder: Path,
    *,
    seed: int = 1,
    num_steps: int | None = None,
    num_held_out: int = NUM_HELD_OUT,
    watcher: Watcher | None = None,
) -> Demo:
    """Trains, scores and draws into `folder`: what it learns from (`text/`), `run/`, `copied.html`, `copied.png`.

    An earlier demo's are replaced. num_steps: fewer for a quick look; the figures then mean less.
    Raises: DataError when `folder` holds anything else; Interrupted when it is stopped while it trains.
    """
    watcher = watcher or Silent()
    num_steps = NUM_STEPS if num_steps is None else num_steps
    LAYOUT.make_room(folder)
    text, run = folder / "text", folder / "run"
    corpus = make_corpus(seed, num_held_out=num_held_out)
    text.mkdir(parents=True, exist_ok=True)
    for name, reports in zip(PARTS, (corpus.train, corpus.validation), strict=True):
        lines = ["\t".join(ROLES), *(f"{report.source}\t{report.target}" for report in reports)]
        write_text(text / f"{name}.tsv", "".join(line + "\n" for line in lines))
    spent = train_in_turn([(recipe(text, seed=seed, num_steps=num_steps), run)], watcher)
    summarizer = Summarizer.load(model_directory.read(run / "model"), "cpu", torch.float32)
    watcher.said(f"writing headlines for {len(corpus.held_out):,} held-out reports")
    summaries = summarizer.summarize([report.source for report in corpus.held_out])
    found = facts_found(corpus.held_out, summaries)
    result = Demo(found, spent, _worth_showing(corpus.held_out, summaries), folder)
    shown = [summary for _, summary in result.examples]
    notes = [
        f"{found.right:.1%} of {found.num_reports:,} held-out headlines have every fact right. Of their names none"
        f" occurs in training; {found.names:.1%} were copied.",
        f"For {found.attention:.1%} of the facts the sentence with most attention is the one that states it (chance:"
        f" {found.chance:.1%}).",
    ]
    for path in (result.page, result.picture):
        show(shown, path, title="regard demo: reports to headlines", notes=notes)
    return result


def recipe(text: Path, *, seed: int, num_steps: int) -> SummarizeRecipe:
    """The demo's recipe over the tables in `text`: a pointer-generator that reads words."""
    return SummarizeRecipe(
        task="summarize",
        seed=seed,
        data=SummarizeData(
            root=text,
            train=DataSpec("train.tsv"),
            validation=DataSpec("validation.tsv"),
            max_tokens=128,
            max_summary_tokens=24,
            batch=TokenBudget(4608),
        ),
        # Only the words of the reports themselves are frequent enough; names and numbers can but be copied.
        tokenizer=WordTokenizerConfig("words", 400, lowercase=True, min_frequency=100),
        model=EncoderDecoderConfig(
            RecurrentEncoderConfig("recurrent", 96, dropout=0.0),
            AttentionRNNConfig("attention-rnn", 96, 96, score="bilinear", cell="conditional-gru", dropout=0.0),
            tie="all",
            copy=CopyConfig("decoder"),
        ),
        training=short_training(
            num_steps,
            peak=4e-3,
            label_smoothing=0.0,
            ema_decay=0.98,
            attention_every=None,  # it would warn of a head that looks at one word, which is what this one is for
        ),
        validation=Validation(metric="exact", max_documents=200, decoding=DecodingOptions(max_length=24)),
        decoding=DecodingOptions(beam_size=3, max_length=24),
    )


def _worth_showing(reports: Sequence[Report], summaries: Sequence[Summary]) -> tuple[tuple[Report, Summary], ...]:
    """The first report of each kind with its summary, and one more: right or wrong, as it comes."""
    kinds: list[int] = []
    for kind in ("match", "storm", "sale"):
        kinds += [place for place, report in enumerate(reports) if report.kind == kind][:1]
    kinds += [place for place in range(len(reports)) if place not in kinds][:1]
    return tuple((reports[place], summaries[place]) for place in kinds)
