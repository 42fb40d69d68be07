"""Scoring a translation model on a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from regard.decoding.options import DecodingOptions
from regard.errors import DataError
from regard.tasks.translate.scoring import Scores, score
from regard.tasks.translate.scorings import Scoring
from regard.tasks.translate.translator import Translator


@dataclass(frozen=True)
class Evaluation:
    """scores: of `outputs`, in the order of the pairs; trivial: the same scoring of the untranslated source, to
    compare."""

    scores: Scores
    trivial: Scores
    outputs: tuple[str, ...]

    def lines(self) -> list[str]:
        """What to print: the scores, and beside them what doing nothing would score."""
        trivial = ", ".join(f"{metric.name} {metric.value:.2f}" for metric in self.trivial.metrics)
        return [*self.scores.lines(), f"the untranslated source, for comparison: {trivial}"]

    def to_json(self) -> dict[str, Any]:
        """The scores as plain values, with those of the untranslated source."""
        trivial = {metric.name: metric.value for metric in self.trivial.metrics}
        return {**self.scores.to_json(), "untranslated_source": trivial}


def evaluate(
    translator: Translator,
    pairs: Sequence[tuple[str, str]],
    scorings: Sequence[Scoring],
    *,
    options: DecodingOptions | None = None,
    batch_tokens: int = 4096,
    bootstrap_samples: int = 1000,
) -> list[Evaluation]:
    """Translates the sources of (source, reference) pairs once and scores them by each scoring.

    options: how to search, of which num_best counts for nothing: the best output is scored. batch_tokens: as in
    `Translator.translate`. bootstrap_samples: as in `score`; the untranslated source gets no interval.

    Raises: DataError without any pair; ConfigError for options or a scoring that cannot work.
    """
    if not pairs:
        raise DataError(
            "evaluate: received no pairs, expected at least one source with its reference; check the test set"
        )
    sources = [source for source, _ in pairs]
    references = [reference for _, reference in pairs]
    options = replace(options or translator.config.decoding, num_best=1)
    found = translator.translate(sources, options, attention=False, split=False, batch_tokens=batch_tokens)
    outputs = [one.text for one in found]
    language = translator.config.target_language
    return [
        Evaluation(
            score(outputs, references, language=language, scoring=scoring, bootstrap_samples=bootstrap_samples),
            score(sources, references, language=language, scoring=scoring, bootstrap_samples=0),
            tuple(outputs),
        )
        for scoring in scorings
    ]
