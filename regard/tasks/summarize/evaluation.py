"""Scoring a summarization model on a test set, with what needs no model beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, DataError
from regard.inputs.word_splitting import words
from regard.tasks.evaluation_data import evaluation_records
from regard.tasks.summarize.recipe import ROLES
from regard.tasks.summarize.scoring import Scores, score
from regard.tasks.summarize.summarizer import Summarizer

LEAD_WORDS = 8  # of a document, as a summary without a model


@dataclass(frozen=True)
class Evaluation:
    """scores: of `outputs`, in the order of the documents; lead: of each document's first words, to compare."""

    scores: Scores
    lead: Scores
    outputs: tuple[str, ...]

    def lines(self) -> list[str]:
        """What to print: the scores, and beside them what a document's first words would score."""
        lead = ", ".join(f"{metric.name} {metric.value:.2f}" for metric in self.lead.metrics)
        return [*self.scores.lines(), f"the document's first {LEAD_WORDS} words, for comparison: {lead}"]

    def to_json(self) -> dict[str, Any]:
        """The scores as plain values, with those of the first words."""
        lead = {metric.name: metric.value for metric in self.lead.metrics}
        return {**self.scores.to_json(), f"first_{LEAD_WORDS}_words": lead}


def first_words(document: str, count: int = LEAD_WORDS) -> str:
    """The document up to its `count`-th word; marks are no words here."""
    spans = [span for span in words(document) if document[span[0]].isalnum()]
    return document[: spans[min(count, len(spans)) - 1][1]] if spans else ""


def evaluate(
    summarizer: Summarizer,
    pairs: Sequence[tuple[str, str]],
    *,
    options: DecodingOptions | None = None,
    batch_tokens: int = 16384,
    bootstrap_samples: int = 1000,
) -> Evaluation:
    """Summarises the documents of (document, reference) pairs and scores the best hypotheses.

    options: how to search. batch_tokens: as in `Summarizer.summarize`. bootstrap_samples: as in `score`; the first
    words get no interval.
    Raises: DataError without any pair; ConfigError for options that cannot work.
    """
    if not pairs:
        raise DataError("evaluate: received no pairs, expected at least one document with its summary; check the data")
    documents = [document for document, _ in pairs]
    references = [reference for _, reference in pairs]
    options = replace(options or summarizer.config.decoding, num_best=1)
    found = summarizer.summarize(documents, options, attention=False, batch_tokens=batch_tokens)
    outputs = [one.text for one in found]
    scores = score(
        outputs,
        references,
        documents,
        copy_rates=[one.copy_rate for one in found],
        bootstrap_samples=bootstrap_samples,
    )
    lead = score([first_words(document) for document in documents], references, documents, bootstrap_samples=0)
    return Evaluation(scores, lead, tuple(outputs))


def evaluate_directory(
    model: Summarizer, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
) -> tuple[Evaluation, tuple[str, ...]]:
    """As `regard.tasks.jobs.Evaluate`. options: fields of DecodingOptions.

    Raises: ConfigError for options that cannot work.
    """
    if "scoring" in options:
        raise ConfigError("evaluate: --scoring has no effect on the task summarize, which is scored by ROUGE; drop it")
    # Settled before the checks: a recipe's num_best may be more than the beam that is asked for here.
    search = model.config.decoding.changed(**{**options, "num_best": 1})
    records = evaluation_records(model.config.training, data, ROLES)
    said(f"summarising {len(records):,} documents")
    found = evaluate(model, [(one.fields["source"], one.fields["target"]) for one in records], options=search)
    return found, found.outputs
