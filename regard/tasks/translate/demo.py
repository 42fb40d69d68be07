"""`regard demo translate`: from nothing to a trained model and a picture of what it attends to, in about a minute.

A small Transformer learns generated English to German phrases (see demo_corpus.py), is scored on phrases whose numbers
and dates it has never seen, and its cross-attention is held against the alignment that the generator knows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regard.attention.observation import Observe
from regard.attention.records.record import AttentionRecord
from regard.data.batches import Sequences, TokenBudget
from regard.data.readers import DataSpec
from regard.decoding.force import force
from regard.decoding.options import DecodingOptions
from regard.inputs.embeddings import EmbeddingConfig
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.lens.page import write_page
from regard.lens.plot import draw
from regard.models.encoder_decoder import EncoderDecoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.tasks import model_directory
from regard.tasks.demo_folder import Layout, Spent, drawn_json, last_lines, short_training, train_in_turn
from regard.tasks.run_directory import write_text
from regard.tasks.translate.demo_alignment import AlignmentAccuracy, alignment_accuracy
from regard.tasks.translate.demo_corpus import Phrase, make_corpus
from regard.tasks.translate.recipe import ROLES, Tokenizers, TranslateData, TranslateRecipe, Validation
from regard.tasks.translate.result import Translation
from regard.tasks.translate.translator import Translator
from regard.training.monitor import Silent, Watcher

NUM_STEPS = 700
NUM_HELD_OUT = 1_200
PARTS, ENDINGS = ("train", "validation"), ("en", "de")  # of the files in text/
LAYOUT = Layout("text", r"(train|validation)\.(en|de)", proof="train.en", drawings=("alignment.html", "alignment.png"))
_WORD_OR_MARKS = re.compile(r"[^\W_]+|[^\w\s]+")
Span = tuple[int, int]


@dataclass(frozen=True)
class Demo:
    """What the demo came to. examples: held-out phrases and their translations, with attention."""

    exact_match: float
    num_held_out: int
    alignment: AlignmentAccuracy
    spent: Spent
    examples: tuple[tuple[Phrase, Translation], ...]
    page: Path
    picture: Path

    def lines(self) -> list[str]:
        shown = []
        for phrase, translation in self.examples:
            mark = "" if translation.text == phrase.target else f"   (expected: {phrase.target})"
            shown.append(f"  {phrase.source}\n    -> {translation.text}{mark}")
        return [
            *shown,
            "",
            f"exactly right: {self.exact_match:.2%} of {self.num_held_out:,} held-out phrases",
            f"alignment of number words recovered: {self.alignment.accuracy:.2%} (chance {self.alignment.chance:.2%})",
            *last_lines(
                "the attention, to look at",
                self.spent,
                self.page,
                self.picture,
                f'translate {self.page.parent / "run" / "model"} "we have counted forty-two books"',
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        figures = {
            "exact_match": round(self.exact_match, 6),
            "num_held_out": self.num_held_out,
            "alignment_accuracy": round(self.alignment.accuracy, 6),
            "alignment_chance": round(self.alignment.chance, 6),
        }
        return drawn_json("translate", figures, self.spent, self.page, self.picture)


def demo(
    folder: Path,
    *,
    seed: int = 1,
    num_steps: int | None = None,
    num_held_out: int = NUM_HELD_OUT,
    watcher: Watcher | None = None,
) -> Demo:
    """Trains, scores and draws into `folder`: what it learns from (`text/`), `run/`, `alignment.html`, `alignment.png`.

    An earlier demo's are replaced. num_steps: fewer for a quick look; the figures then mean less.
    Raises: DataError when `folder` holds anything else; Interrupted when it is stopped while it trains.
    """
    watcher = watcher or Silent()
    num_steps = NUM_STEPS if num_steps is None else num_steps
    corpus = make_corpus(seed, num_held_out=num_held_out)
    LAYOUT.make_room(folder)
    text, run = folder / "text", folder / "run"
    for name, phrases in zip(PARTS, (corpus.train, corpus.validation), strict=True):
        _write_parallel(text, name, phrases)
    spent = train_in_turn([(recipe(text, seed=seed, num_steps=num_steps), run)], watcher)
    translator = Translator.load(model_directory.read(run / "model"), "cpu", torch.float32)
    watcher.said(f"translating {len(corpus.held_out):,} held-out phrases")
    outputs = translator.translate([phrase.source for phrase in corpus.held_out], attention=False)
    right = [output.text == phrase.target for output, phrase in zip(outputs, corpus.held_out, strict=True)]
    shown = _worth_showing(corpus.held_out)
    examples = tuple(zip(shown, translator.translate([phrase.source for phrase in shown]), strict=True))
    result = Demo(
        exact_match=sum(right) / len(right),
        num_held_out=len(right),
        alignment=alignment(translator, corpus.held_out),
        spent=spent,
        examples=examples,
        page=folder / "alignment.html",
        picture=folder / "alignment.png",
    )
    _show(result)
    return result


def recipe(text: Path, *, seed: int, num_steps: int) -> TranslateRecipe:
    """The demo's recipe over the parallel files in `text`."""
    attention, feed_forward = AttentionConfig(heads=4), FeedForwardConfig(width=256)
    embedding = EmbeddingConfig(dropout=0.1)
    return TranslateRecipe(
        task="translate",
        seed=seed,
        data=TranslateData(
            source_language="en",
            target_language="de",
            root=text,
            train=DataSpec({"source": "train.en", "target": "train.de"}),
            validation=DataSpec({"source": "validation.en", "target": "validation.de"}),
            batch=TokenBudget(1536),
        ),
        # Small enough that "dreiundzwanzig" falls into its parts: a larger vocabulary learns whole numbers by heart.
        tokenizers=Tokenizers(joint=True, source=TokenizerConfig("bpe", 470)),
        model=EncoderDecoderConfig(
            TransformerEncoderConfig(128, 2, attention, feed_forward, embedding=embedding),
            TransformerDecoderConfig(128, 2, attention, feed_forward, embedding=embedding),
            tie="all",
        ),
        training=short_training(num_steps, peak=3e-3, ema_decay=0.98),
        validation=Validation(metric="exact_match", max_sentences=200, decoding=DecodingOptions(max_length=64)),
        decoding=DecodingOptions(beam_size=4, max_length=64, max_length_ratio=2.0),
    )


def alignment(translator: Translator, phrases: Sequence[Phrase]) -> AlignmentAccuracy:
    """How often cross-attention finds the source word of a number word, when the reference is forced.

    It is read as the mean over all layers and heads, chosen on validation phrases: single heads recover fewer links.
    """
    weights, source_spans, target_spans = [], [], []
    for begin in range(0, len(phrases), 128):
        part = phrases[begin : begin + 128]
        maps, sources, targets = _forced_attention(translator, part)
        weights += maps
        source_spans += sources
        target_spans += targets
    return alignment_accuracy(phrases, weights, source_spans, target_spans)


@torch.no_grad()
def _forced_attention(translator: Translator, phrases: Sequence[Phrase]) -> tuple[list[Any], list[Any], list[Any]]:
    """Per phrase the map [target tokens, source tokens] and the character spans of both."""
    sources = translator.source_tokenizer.encode([phrase.source for phrase in phrases])
    targets = translator.target_tokenizer.encode([phrase.target for phrase in phrases])
    source, source_lengths = Sequences.padded([one.ids for one in sources])
    target, target_lengths = Sequences.padded([one.ids for one in targets])
    memories, _ = translator.model.encode(source, source_lengths)
    forced = force(
        translator.model.decoder, memories, target, target_lengths, bos=Tokenizer.BOS, observe=Observe(rows="all")
    )
    observed = [layer.rows.mean(1) for layer in forced.attention.values() if layer.rows is not None]
    mean = torch.stack(observed).mean(0)  # [phrases, target_len, source_len]
    maps = []
    for row in range(len(phrases)):
        maps.append(mean[row, : int(target_lengths[row]), : int(source_lengths[row])].numpy())
    return maps, [[*one.offsets, (0, 0)] for one in sources], [[*one.offsets, (0, 0)] for one in targets]


def _worth_showing(phrases: Sequence[Phrase], count: int = 4) -> list[Phrase]:
    """A few held-out phrases of different kinds; the first has tens and units, which German turns round."""
    turned = [
        phrase for phrase in phrases if phrase.kind == "number" and "-" in phrase.source and len(phrase.links) >= 3
    ]
    chosen = turned[:1]
    for kind in ("number and date", "range", "date", "number"):
        chosen += [phrase for phrase in phrases if phrase.kind == kind and phrase not in chosen][:1]
    return chosen[:count]


def _show(result: Demo) -> None:
    records, expected = [], []
    pieces: dict[str, list[Span]] = {}
    for phrase, translation in result.examples:
        record = translation.attention
        assert isinstance(record, AttentionRecord)
        records.append(record)
        # The known links hold for the reference; they are drawn where the translation equals it.
        links = phrase.links if translation.text == phrase.target else ()
        sources = pieces[phrase.source] = _pieces(phrase.source, [link.source_span for link in phrase.links])
        targets = pieces[translation.text] = _pieces(translation.text, [link.target_span for link in links])
        expected.append([(targets.index(link.target_span), sources.index(link.source_span)) for link in links])
    notes = [
        f"{result.exact_match:.1%} of {result.num_held_out:,} held-out phrases are translated exactly; none of their "
        "numbers and dates occurs in training.",
        f"For {result.alignment.accuracy:.1%} of the number words, the source word with most attention is the known "
        f"one (chance: {result.alignment.chance:.1%}). Known links are outlined.",
    ]
    title = "regard demo: English to German"
    write_page(records, result.page, title=title, notes=notes, expected=expected, words=pieces.__getitem__)
    draw(records, result.picture, title=title, expected=expected, words=pieces.__getitem__)


def _pieces(text: str, linked: Sequence[Span]) -> list[Span]:
    """Character spans that cover the text but for its spaces: linked parts as they are, and what lies between them.

    A German number is one word and many links: taken apart, it shows how German turns tens and units round.
    """
    cuts = sorted({0, len(text), *(place for span in linked for place in span)})
    pieces = []
    for begin, end in itertools.pairwise(cuts):
        if (begin, end) in linked:
            pieces.append((begin, end))
        else:
            pieces += [match.span() for match in _WORD_OR_MARKS.finditer(text, begin, end)]
    return pieces


def _write_parallel(folder: Path, name: str, phrases: Sequence[Phrase]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for side, ending in zip(ROLES, ENDINGS, strict=True):
        write_text(folder / f"{name}.{ending}", "".join(getattr(phrase, side) + "\n" for phrase in phrases))
