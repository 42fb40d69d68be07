"""A bag of words and pairs of words, counted: what any classifier of text has to beat.

Multinomial naive Bayes over binarised unigrams and bigrams, smoothed by one (Wang and Manning 2012, sec. 2.1).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence


class NaiveBayes:
    """texts, labels: what to count, one label a text."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        self.labels = sorted(set(labels))
        counts: dict[str, Counter[str]] = {label: Counter() for label in self.labels}
        for text, label in zip(texts, labels, strict=True):
            counts[label].update(_features(text))
        self._known = set().union(*counts.values()) if counts else set()
        frequency = Counter(labels)
        self._prior = {label: math.log(frequency[label] / len(labels)) for label in self.labels}
        totals = {label: counts[label].total() + len(self._known) for label in self.labels}
        self._log = {
            label: {feature: math.log((counts[label][feature] + 1) / totals[label]) for feature in self._known}
            for label in self.labels
        }

    def label(self, text: str) -> str:
        """The likeliest label; of equals the first in order."""
        known = [feature for feature in _features(text) if feature in self._known]
        return max(
            self.labels, key=lambda label: self._prior[label] + sum(self._log[label][feature] for feature in known)
        )

    def accuracy(self, texts: Sequence[str], labels: Sequence[str]) -> float:
        """The share of texts whose label is told."""
        return sum(self.label(text) == label for text, label in zip(texts, labels, strict=True)) / len(texts)


def _features(text: str) -> list[str]:
    """Each word and pair of a text once: how often a text repeats one says little (Wang and Manning 2012)."""
    words = text.lower().split()
    return list(dict.fromkeys([*words, *(" ".join(pair) for pair in itertools.pairwise(words))]))
