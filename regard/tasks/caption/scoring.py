"""Scores of captions against several references each, with 95 % intervals, as the literature on captions scores.

BLEU-1 to BLEU-4 (sacreBLEU, over lowercased words without punctuation, the closest reference's length), ROUGE-L,
CIDEr-D, and the number of distinct captions: a model that has one fixed sentence a class can have a high BLEU.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regard.errors import ConfigError, DataError
from regard.tasks.caption.overlap import cider_d, rouge_l
from regard.tasks.metrics import Metric, check_samples, draws_of, interval, metrics_json

METRICS = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "cider-d")
# A letter or digit; of a word, with apostrophes and hyphens inside: "it's" and "T-shirt" are one word each.
_LETTER = r"[^\W_]"


@dataclass(frozen=True)
class CaptionScores:
    """What `score` found; more is better. BLEU and ROUGE-L from 0 to 100, CIDEr-D from 0 to 10 (papers often print it
    times 10 or 100)."""

    metrics: tuple[Metric, ...]
    num_pictures: int
    num_distinct: int  # different captions, after lowercasing and cutting into words

    def __getitem__(self, name: str) -> float:
        return next(metric.value for metric in self.metrics if metric.name == name)

    def to_json(self) -> dict[str, Any]:
        """The scores as plain JSON values; metrics stand under their names."""
        return {
            "num_pictures": self.num_pictures,
            "num_distinct": self.num_distinct,
            "metrics": metrics_json(self.metrics),
        }

    def lines(self) -> list[str]:
        """The scores as lines to print."""
        printed = [metric.line() for metric in self.metrics]
        return [*printed, f"{self.num_pictures} pictures, {self.num_distinct} distinct captions"]


def words_of(text: str) -> list[str]:
    """The words that scoring compares: lowercased, punctuation dropped."""
    text = unicodedata.normalize("NFC", text.lower())
    # Marks that no letter takes up, as the vowels of Devanagari, belong to the letter before them; `re` knows none.
    marks = "".join({character for character in text if unicodedata.category(character).startswith("M")})
    run = rf"{_LETTER}[{re.escape(marks)}]*" if marks else _LETTER
    return re.findall(rf"(?:{run})+(?:['’-](?:{run})+)*", text)


def score(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 12345,
) -> CaptionScores:
    """Score one caption a picture against its references.

    references: for each picture one or more captions by people; pictures may have different numbers of them.
    bootstrap_samples: how often the pictures are drawn anew, with replacement, for the 95 % interval; 0 leaves the
        interval out. How rare an n-gram is for CIDEr-D stays that of the whole set in every draw.
    Raises: DataError when the two differ in number, are empty, or a picture has no reference; ConfigError for a number
        of samples that makes no sense.
    Source: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L), Vedantam et al. 2015 (CIDEr-D).
    """
    _check(captions, references, bootstrap_samples)
    own = [words_of(caption) for caption in captions]
    theirs = [[words_of(reference) for reference in several] for several in references]
    draws = draws_of(len(own), bootstrap_samples, seed)
    metrics = [_bleu(order, own, theirs, draws) for order in (1, 2, 3, 4)]
    for name, scale, of_pictures, source in (
        ("rouge-l", 100.0, rouge_l(own, theirs), "beta:1.2|best of references"),
        ("cider-d", 1.0, cider_d(own, theirs), "n:1-4|sigma:6|rarity:these references"),
    ):
        value = scale * float(of_pictures.mean())
        between = interval([float((scale * of_pictures)[draw].mean()) for draw in draws])
        metrics.append(Metric(name, value, between, f"regard:{name}|case:lc|tok:words|{source}"))
    return CaptionScores(tuple(metrics), len(own), len({tuple(words) for words in own}))


def _bleu(order: int, own: list[list[str]], theirs: list[list[list[str]]], draws: np.ndarray) -> Metric:
    try:
        sacrebleu = importlib.import_module("sacrebleu")
    except ModuleNotFoundError as error:
        raise ConfigError("scoring captions needs the package sacrebleu; pip install sacrebleu") from error
    metric = sacrebleu.BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
    texts = [" ".join(words) for words in own]
    most = max(len(several) for several in theirs)
    # sacreBLEU wants streams: reference i of every picture; None where a picture has fewer.
    streams = [
        [" ".join(several[place]) if place < len(several) else None for several in theirs] for place in range(most)
    ]
    value = float(metric.corpus_score(texts, streams).score)
    statistics = np.asarray(metric._extract_corpus_statistics(texts, streams), dtype=np.float64)
    between = interval([float(metric._compute_score_from_stats(statistics[draw].sum(0)).score) for draw in draws])
    signature = (
        f"nrefs:{most if all(len(several) == most for several in theirs) else 'var'}|case:lc|tok:words|smooth:none"
    )
    return Metric(f"bleu-{order}", value, between, f"sacrebleu:{sacrebleu.__version__}|{signature}|length:closest")


def _check(captions: Sequence[str], references: Sequence[Sequence[str]], bootstrap_samples: int) -> None:
    if isinstance(captions, str) or any(isinstance(several, str) for several in references):
        raise DataError("score: expected a list of captions, and for each picture a list of references")
    if len(captions) != len(references):
        raise DataError(
            f"score: {len(captions)} captions against references of {len(references)} pictures, expected as many of"
            " each"
        )
    if not captions:
        raise DataError("score: no captions, expected at least one with its references")
    bare = [place for place, several in enumerate(references) if not several]
    if bare:
        raise DataError(f"score: {len(bare)} pictures have no reference, the first is number {bare[0]}; give one each")
    check_samples(bootstrap_samples)
