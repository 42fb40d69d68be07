"""Metrics of one caption against several: CIDEr-D and ROUGE-L, over words that are already cut.

Both are the mean over pictures, so each is given as one number a picture.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4  # words in a row that CIDEr looks at
SIGMA = 6.0  # words; how soon CIDEr-D punishes another length
BETA = 1.2  # how much more recall counts than precision in ROUGE-L

Words = Sequence[str]
NGrams = Counter[tuple[str, ...]]


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """CIDEr-D of each caption against the references of its picture, float64 [pictures], from 0 to 10.

    captions: words. references: for each picture one or more. How rare an n-gram is is counted over the references at
    hand: the number of pictures in whose references it stands, so a score belongs to its test set, and of a single
    picture it is 0.

    Source: Vedantam et al. 2015, sec. 4 and 6.2. As in their evaluation code, counts stand for frequencies: the two
    differ only in where min() cuts, when lengths differ. Lengths are those of texts in words; the code counts bigrams,
    which gives the same difference.
    """
    assert len(captions) == len(references), "one list of references a caption"
    if not captions:
        return np.zeros(0)
    counted = [[_ngrams(words) for words in several] for several in references]
    rarity = _rarity(counted)
    scores = []
    for words, several, ngrams in zip(captions, references, counted, strict=True):
        own = _weighted(_ngrams(words), rarity, len(captions))
        total = 0.0
        for other, their_ngrams in zip(several, ngrams, strict=True):
            theirs = _weighted(their_ngrams, rarity, len(captions))
            penalty = math.exp(-((len(words) - len(other)) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(_clipped_cosine(own[n], theirs[n]) for n in range(LONGEST)) / LONGEST
        scores.append(10.0 * total / max(len(several), 1))
    return np.array(scores)


def rouge_l(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """ROUGE-L of each caption, float64 [pictures], from 0 to 1: the longest common subsequence as share of the caption
    (precision) and of the reference (recall), each the best of all references, joined with beta 1.2.

    Source: Lin 2004, sec. 3; beta and the maxima are those of the MS COCO evaluation (Chen et al. 2015).
    """
    assert len(captions) == len(references), "one list of references a caption"
    scores = []
    for words, several in zip(captions, references, strict=True):
        common = [longest_common(words, other) for other in several]
        precision = max((length / len(words) for length in common), default=0.0) if words else 0.0
        recall = max((length / len(other) for length, other in zip(common, several, strict=True) if other), default=0.0)
        both = recall + BETA**2 * precision
        scores.append((1 + BETA**2) * precision * recall / both if both else 0.0)
    return np.array(scores)


def longest_common(one: Words, other: Words) -> int:
    """The length of the longest common subsequence of two lists of words."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0  # the entry above and to the left
        for place, candidate in enumerate(other, 1):
            above = row[place]
            row[place] = before + 1 if word == candidate else max(above, row[place - 1])
            before = above
    return row[-1]


def _ngrams(words: Words) -> NGrams:
    return Counter(
        tuple(words[begin : begin + n]) for n in range(1, LONGEST + 1) for begin in range(len(words) - n + 1)
    )


def _rarity(counted: Sequence[Sequence[NGrams]]) -> Counter[tuple[str, ...]]:
    """In the references of how many pictures each n-gram stands."""
    found: Counter[tuple[str, ...]] = Counter()
    for several in counted:
        found.update(set().union(*several))
    return found


def _weighted(
    ngrams: NGrams, rarity: Counter[tuple[str, ...]], num_pictures: int
) -> list[dict[tuple[str, ...], float]]:
    """Per n, n-gram -> its count times the logarithm of how rare it is."""
    found: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
    for ngram, count in ngrams.items():
        found[len(ngram) - 1][ngram] = count * math.log(num_pictures / max(rarity[ngram], 1))
    return found


def _clipped_cosine(own: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    """min(own, theirs) . theirs / (|own| |theirs|); 0 where either is 0."""
    norms = math.hypot(*own.values()) * math.hypot(*theirs.values())
    if not norms:
        return 0.0
    return sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in own.items() if ngram in theirs) / norms
