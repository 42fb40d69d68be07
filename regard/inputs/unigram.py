"""Learns the pieces of a unigram subword model, the same ones at every run.

Source: Kudo 2018, "Subword Regularization", section 3.2: a word's probability is the sum over its segmentations of the
product of its pieces' probabilities. From a large stock of frequent substrings, expectation-maximisation fits the
probabilities and the pieces that matter least are dropped, in turns, until the wanted number is left.

How much a piece matters is taken to first order: its expected count times the log of how much likelier it is than the
other segmentations of its own letters together.

The trainer of `tokenizers` visits words in an order that changes from run to run, and so do its sums. Here every sum
runs in a fixed order: the same words give the same pieces and scores on one machine with one version of numpy.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

MAX_PIECE_LETTERS = 16
MAX_WORD_LETTERS = 128  # longer ones (addresses, numbers run together) teach nothing and cost much
MAX_WORDS = 200_000  # the most frequent ones are learnt from, which bounds time and memory on any corpus
_SEEDS_PER_PIECE = 10  # size of the stock, as a multiple of the pieces wanted
_KEPT_SHARE = 0.75  # of the pieces, in each round of dropping
_STEPS = 2  # of expectation-maximisation in each round
_LEAST_COUNT = 0.1  # what a piece is taken to be worth that no segmentation wants, so that every text has one


def learn_pieces(
    words: Mapping[str, int], num_pieces: int, *, letters: Collection[str], inside: Collection[str] = ()
) -> list[tuple[str, float]]:
    """Pieces with their log-probabilities, likeliest first: all `letters`, and the best others up to `num_pieces`.

    words: each distinct word with how often it occurs; made of `letters` only.
    inside: letters before which no longer piece may begin or end, such as the later bytes of a character.
    Fewer than `num_pieces` come back when the words have no more substrings that occur twice.
    """
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    kept = [(word, count) for word, count in ranked if 0 < len(word) <= MAX_WORD_LETTERS][:MAX_WORDS]
    weights = np.array([count for _, count in kept], dtype=np.float64)
    alphabet = sorted(letters)
    num_letters, num_wanted = len(alphabet), max(num_pieces - len(alphabet), 0)
    occurrences = _substrings(kept, frozenset(inside))
    stock = sorted(
        (piece for piece, count in occurrences.items() if len(piece) > 1 and count > 1),
        key=lambda piece: (-occurrences[piece] * len(piece), piece),
    )[: _SEEDS_PER_PIECE * num_wanted]
    pieces = alphabet + stock
    place_of = {piece: place for place, piece in enumerate(pieces)}
    alive = np.ones(len(pieces), dtype=bool)
    lattice = _Lattice([word for word, _ in kept], place_of)
    inner = _Lattice(pieces, place_of, whole=False)  # how else the letters of each piece can be put together

    counts = np.array([occurrences[piece] for piece in pieces], dtype=np.float64)
    while True:
        log_probs = _log_probabilities(counts, alive)
        for _ in range(_STEPS):
            counts = lattice.expected_counts(log_probs, weights)
            log_probs = _log_probabilities(counts, alive)
        longer = num_letters + np.flatnonzero(alive[num_letters:])
        if len(longer) <= num_wanted:
            break
        loss = counts[longer] * (log_probs[longer] - inner.log_likelihoods(log_probs)[longer])
        num_kept = max(num_wanted, int(len(longer) * _KEPT_SHARE))
        alive[longer[np.argsort(-loss, kind="stable")[num_kept:]]] = False
        lattice.keep(alive)
        inner.keep(alive, words=alive)
    found = [(pieces[place], float(log_probs[place])) for place in np.flatnonzero(alive)]
    return sorted(found, key=lambda item: (-item[1], item[0]))


class _Lattice:
    """All segmentations of many words at once: a node for each place in a word, an edge for each piece in it."""

    def __init__(self, words: Sequence[str], place_of: Mapping[str, int], *, whole: bool = True) -> None:
        """whole: whether a word that is itself a piece may be that one piece."""
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        self._firsts = np.cumsum(lengths + 1) - (lengths + 1)  # [words] node before the first letter
        self._lasts = self._firsts + lengths  # [words] node behind the last letter
        edges: list[tuple[int, int, int, int]] = []  # word, begin, end, piece
        for number, word in enumerate(words):
            for begin in range(len(word)):
                for end in range(begin + 1, min(begin + MAX_PIECE_LETTERS, len(word)) + 1):
                    piece = place_of.get(word[begin:end])
                    if piece is not None and (whole or end - begin < len(word)):
                        edges.append((number, begin, end, piece))
        table = np.array(edges, dtype=np.int64).reshape(-1, 4)
        # By the place of their end within the word: when one is reached, all that lead to its beginning are done.
        table = table[np.lexsort((table[:, 1], table[:, 0], table[:, 2]))]
        self._word, self._begin, self._end, self._piece = table.T.copy()
        self._num_nodes = int((lengths + 1).sum())
        self._arrange()

    def keep(self, alive: np.ndarray, words: np.ndarray | None = None) -> None:
        """Drops the edges of pieces (and of words) that are not alive."""
        kept = alive[self._piece] if words is None else alive[self._piece] & words[self._word]
        self._word, self._begin, self._end, self._piece = (
            edges[kept] for edges in (self._word, self._begin, self._end, self._piece)
        )
        self._arrange()

    def log_likelihoods(self, log_probs: np.ndarray) -> np.ndarray:
        """float64 [words]: log of the summed probability of all segmentations of each word."""
        before = self._summed(log_probs, self._forwards, self._firsts)
        return before.take(self._lasts)

    def expected_counts(self, log_probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """float64 [pieces]: how often each piece is expected to be used when word i occurs weights[i] times."""
        before = self._summed(log_probs, self._forwards, self._firsts)
        behind = self._summed(log_probs, self._backwards, self._lasts)
        share = before[self._source] + log_probs[self._piece] + behind[self._target] - before[self._lasts][self._word]
        counts: np.ndarray = np.bincount(self._piece, np.exp(share) * weights[self._word], minlength=len(log_probs))
        return counts

    def _arrange(self) -> None:
        self._source = self._firsts[self._word] + self._begin
        self._target = self._firsts[self._word] + self._end
        self._forwards = _Sweep(self._end, self._source, self._target, self._piece)
        order = np.lexsort((self._end, self._word, -self._begin))
        self._backwards = _Sweep(-self._begin[order], self._target[order], self._source[order], self._piece[order])

    def _summed(self, log_probs: np.ndarray, sweep: _Sweep, starts: np.ndarray) -> np.ndarray:
        """float64 [nodes]: log of the summed probability of all ways from a word's start to each node."""
        reached = np.full(self._num_nodes, -np.inf)
        reached[starts] = 0.0
        for edges, groups in sweep.levels:
            values = reached[sweep.origins[edges]] + log_probs[sweep.pieces[edges]]
            reached[sweep.goals[edges][groups]] = np.logaddexp.reduceat(values, groups)
        return reached


class _Sweep:
    """Edges in an order in which each node is complete before it is left: level by level, grouped by goal."""

    def __init__(self, level: np.ndarray, origins: np.ndarray, goals: np.ndarray, pieces: np.ndarray) -> None:
        self.origins, self.goals, self.pieces = origins, goals, pieces
        borders = [0, *(np.flatnonzero(np.diff(level)) + 1).tolist(), len(level)]
        self.levels: list[tuple[slice, np.ndarray]] = []  # edges of a level, and where within them each goal begins
        for start, stop in itertools.pairwise(borders):
            if start < stop:
                groups = np.flatnonzero(np.diff(goals[start:stop], prepend=-1))
                self.levels.append((slice(start, stop), groups))


def _substrings(words: Sequence[tuple[str, int]], inside: frozenset[str]) -> Counter[str]:
    """How often each letter occurs, and each longer substring that may be a piece."""
    found: Counter[str] = Counter()
    for word, count in words:
        for letter in word:
            found[letter] += count
        places = [place for place in range(len(word) + 1) if place == len(word) or word[place] not in inside]
        for number, begin in enumerate(places):
            for end in places[number + 1 :]:
                if end - begin > MAX_PIECE_LETTERS:
                    break
                if end - begin > 1:
                    found[word[begin:end]] += count
    return found


def _log_probabilities(counts: np.ndarray, alive: np.ndarray) -> np.ndarray:
    floored = np.where(alive, np.maximum(counts, _LEAST_COUNT), 0.0)
    with np.errstate(divide="ignore"):
        log_probs: np.ndarray = np.log(floored / floored.sum())
    return log_probs
