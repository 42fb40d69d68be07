"""Scoring a translation model on a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regard.decoding.options import DecodingOptions
from regard.tasks.translate.scoring import Scores, Scoring, score
from regard.tasks.translate.translator import Translator


@dataclass(frozen=True)
class Evaluation:
    """scores: of `outputs`, in the order of the pairs; trivial: the same scoring of the untranslated source, to compare."""

    scores: Scores
    trivial: Scores
    outputs: tuple[str, ...]


def evaluate(
    translator: Translator,
    pairs: Sequence[tuple[str, str]],
    scorings: Sequence[Scoring],
    *,
    options: DecodingOptions | None = None,
    batch_tokens: int = 4096,
    bootstrap_samples: int = 1000,
) -> list[Evaluation]:
    """Translates the sources of (source, reference) pairs once and scores them by each scoring."""
    sources = [source for source, _ in pairs]
    references = [reference for _, reference in pairs]
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
