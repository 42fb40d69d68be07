"""Scores of summaries: ROUGE with 95 % intervals and a signature, and how much of them is new.

ROUGE-1, -2 and -L as the package rouge-score computes them, with Porter's stemmer: F of each summary against its one
reference, the mean over documents times 100. Novelty is the share of a summary's words, or pairs of words, that its
document does not have (See et al. 2017, sec. 5.2).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from regard.errors import DataError, RegardError
from regard.inputs.word_splitting import words
from regard.tasks.metrics import Metric, check_samples, draws_of, interval, metrics_json

KINDS = ("rouge1", "rouge2", "rougeL")
NAMES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


@dataclass(frozen=True)
class Scores:
    """What `score` found.

    metrics: ROUGE-1, -2 and -L, means over documents from 0 to 100 where more is better. exact: share of summaries
    that are their reference. novelty: shares of words, and of pairs of words, that the document does not have.
    copy_rate: share of words that the model copied; None where it does not say. length, reference_length: words a
    summary.
    """

    metrics: tuple[Metric, ...]
    num_documents: int
    exact: float
    novelty: tuple[float, float]
    copy_rate: float | None
    length: float
    reference_length: float

    def to_json(self) -> dict[str, Any]:
        """The scores as plain JSON values; metrics stand under their names."""
        return {
            "num_documents": self.num_documents,
            "metrics": metrics_json(self.metrics),
            "exact_match": self.exact,
            "novel_words": self.novelty[0],
            "novel_pairs": self.novelty[1],
            "copy_rate": self.copy_rate,
            "length": self.length,
            "reference_length": self.reference_length,
        }

    def lines(self) -> list[str]:
        """The scores as lines to print."""
        printed = [metric.line() for metric in self.metrics]
        copied = "" if self.copy_rate is None else f", copied {self.copy_rate:.1%} of the words"
        printed.append(
            f"{self.num_documents} documents; not in the document: {self.novelty[0]:.1%} of the words,"
            f" {self.novelty[1]:.1%} of the pairs{copied}"
        )
        printed.append(
            f"{self.length:.1f} words a summary against {self.reference_length:.1f}; exactly the reference"
            f" {self.exact:.1%}"
        )
        return printed


def score(
    summaries: Sequence[str],
    references: Sequence[str],
    documents: Sequence[str],
    *,
    copy_rates: Sequence[float | None] | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 12345,
) -> Scores:
    """Scores summaries against one reference each; an empty summary scores 0.

    copy_rates: of each summary, by its model. bootstrap_samples: how often the documents are drawn anew, with
    replacement, for the 95 % interval; 0 leaves it out. seed: of those draws.

    Raises: DataError when the three differ in number or are empty; ConfigError for a count that makes no sense;
    RegardError when rouge-score is missing.
    Source: Lin 2004.
    """
    if not len(summaries) == len(references) == len(documents):
        raise DataError(
            f"score: {len(summaries)} summaries, {len(references)} references and {len(documents)} documents, expected"
            " as many of each"
        )
    if not summaries:
        raise DataError("score: no summaries, expected at least one with its reference")
    check_samples(bootstrap_samples)
    values = rouge(summaries, references)
    signature = f"rouge-score:{version('rouge-score')}|stemmer:porter|measure:F|references:1|mean over documents"
    draws = draws_of(len(values), bootstrap_samples, seed)
    rates = [rate for rate in copy_rates or () if rate is not None]
    return Scores(
        tuple(
            Metric(NAMES[kind], float(column.mean()), interval(column[draws].mean(1)), signature)
            for kind, column in zip(KINDS, values.T, strict=True)
        ),
        len(summaries),
        float(np.mean([one == other for one, other in zip(summaries, references, strict=True)])),
        (_novelty(summaries, documents, 1), _novelty(summaries, documents, 2)),
        sum(rates) / len(rates) if rates else None,
        float(np.mean([len(words(text)) for text in summaries])),
        float(np.mean([len(words(text)) for text in references])),
    )


def rouge(summaries: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """float64 [documents, 3]: ROUGE-1, -2 and -L of each, F times 100. Raises: RegardError without rouge-score."""
    try:
        rouge_scorer = importlib.import_module("rouge_score.rouge_scorer")
    except ModuleNotFoundError as error:
        raise RegardError("scoring summaries needs the package rouge-score: pip install 'regard[summarize]'") from error
    scorer = rouge_scorer.RougeScorer(list(KINDS), use_stemmer=True)
    found = [scorer.score(reference, text) for text, reference in zip(summaries, references, strict=True)]
    return np.array([[100.0 * one[kind].fmeasure for kind in KINDS] for one in found])


def _novelty(summaries: Sequence[str], documents: Sequence[str], size: int) -> float:
    """The share of all summaries' n-grams of words, lowercased, that their documents lack."""
    new = count = 0
    for summary, document in zip(summaries, documents, strict=True):
        mine, theirs = _grams(summary, size), set(_grams(document, size))
        new += sum(gram not in theirs for gram in mine)
        count += len(mine)
    return new / count if count else 0.0


def _grams(text: str, size: int) -> list[tuple[str, ...]]:
    lowered = text.lower()
    found = [lowered[begin:end] for begin, end in words(lowered)]
    return [tuple(found[place : place + size]) for place in range(len(found) - size + 1)]
