"""Scoring a translation model on a test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, DataError
from regard.tasks.translate.evaluation_data import evaluation_pairs
from regard.tasks.translate.scoring import Scores, score
from regard.tasks.translate.scorings import SCORINGS, Scoring
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


def evaluate_directory(
    model: Translator, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
) -> tuple[Evaluation, tuple[str, ...]]:
    """As `regard.tasks.jobs.Evaluate`. options: `scoring`, sacrebleu unless given; the rest are fields of
    DecodingOptions.

    Raises: ConfigError for an unknown scoring, and for options that cannot work.
    """
    decoding = dict(options)
    asked = decoding.pop("scoring", "sacrebleu")
    scoring = next((known for known in SCORINGS if known == asked), None)
    if scoring is None:
        raise ConfigError(f"--scoring {asked}: expected one of {', '.join(SCORINGS)}")
    # Settled before the checks: a recipe's num_best may be more than the beam that is asked for here.
    search = model.config.decoding.changed(**{**decoding, "num_best": 1})
    pairs = evaluation_pairs(model, data)
    said(f"translating {len(pairs):,} sentences")
    [found] = evaluate(model, pairs, [scoring], options=search)
    return found, found.outputs
