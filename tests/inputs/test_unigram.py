"""The unigram trainer against sums over all segmentations written out, and against chance."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.inputs.unigram import MAX_PIECE_LETTERS, MAX_WORD_LETTERS, _Lattice, learn_pieces

LETTERS = "abc"


def _segmentations(word: str, pieces: set[str], whole: bool) -> list[tuple[str, ...]]:
    found = []
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        borders = [0, *(place for place, cut in enumerate(cuts, start=1) if cut), len(word)]
        parts = tuple(word[a:b] for a, b in itertools.pairwise(borders))
        if set(parts) <= pieces and (whole or len(parts) > 1):
            found.append(parts)
    return found


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text(LETTERS, min_size=1, max_size=7), min_size=1, max_size=5, unique=True),
    longer=st.sets(st.text(LETTERS, min_size=2, max_size=4), max_size=9),
    dropped=st.integers(0, 8),
    seed=st.integers(0, 99),
    whole=st.booleans(),
)
def test_sums_over_all_segmentations(words: list[str], longer: set[str], dropped: int, seed: int, whole: bool) -> None:
    pieces = [*LETTERS, *sorted(longer)]
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(len(pieces)))
    lattice = _Lattice(words, {piece: place for place, piece in enumerate(pieces)}, whole=whole)
    alive = np.ones(len(pieces), dtype=bool)
    alive[len(LETTERS) + dropped :] = False
    lattice.keep(alive)
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.where(alive, probabilities, 0.0))
    known = {piece for piece, lives in zip(pieces, alive, strict=True) if lives}
    probability_of = dict(zip(pieces, probabilities, strict=True))
    weights = np.arange(1.0, len(words) + 1)
    expected: Counter[str] = Counter()
    totals = []
    for word, weight in zip(words, weights, strict=True):
        ways = _segmentations(word, known, whole)
        values = [math.prod(probability_of[part] for part in parts) for parts in ways]
        totals.append(sum(values))
        for parts, value in zip(ways, values, strict=True):
            for part in parts:
                expected[part] += weight * value / totals[-1]
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(lattice.log_likelihoods(log_probs), np.log(totals), rtol=1e-9)
    if all(totals):
        counts = lattice.expected_counts(log_probs, weights)
        np.testing.assert_allclose(counts, [expected[piece] for piece in pieces], rtol=1e-9, atol=1e-12)


def test_frequent_words_become_pieces() -> None:
    """Two words joined at random from parts: the parts are found, and no letter is lost."""
    chance = np.random.default_rng(3)
    stems, endings = ["abba", "cabc", "bcb"], ["aca", "cc"]
    words = Counter(
        stems[chance.integers(3)] + endings[chance.integers(2)] * int(chance.integers(3)) for _ in range(500)
    )
    pieces = dict(learn_pieces(words, len(LETTERS) + 5, letters=LETTERS))
    assert len(pieces) == 8
    assert set(LETTERS) <= set(pieces)
    assert set(stems) <= set(pieces)
    assert sum(math.exp(score) for score in pieces.values()) == pytest.approx(1.0)


def test_order_of_words_does_not_matter() -> None:
    words = {"abcab": 5, "cab": 3, "abab": 4, "ccab": 2, "bca": 2}
    forwards = learn_pieces(words, 8, letters=LETTERS)
    backwards = learn_pieces(dict(reversed(words.items())), 8, letters="cba")
    assert forwards == backwards
    scores = [score for _, score in forwards]
    assert scores == sorted(scores, reverse=True)


def test_pieces_keep_out_of_the_inside_of_characters() -> None:
    pieces = dict(learn_pieces({"abcabc": 9, "abab": 9, "cabc": 9}, 99, letters=LETTERS, inside="b"))
    longer = [piece for piece in pieces if len(piece) > 1]
    assert "ab" in longer
    assert not any(piece.startswith("b") or piece.endswith("a") for piece in longer)


def test_what_the_words_do_not_hold_is_not_invented() -> None:
    assert dict(learn_pieces({"ab": 1}, 9, letters=LETTERS)).keys() == set(LETTERS)  # "ab" occurs once
    assert {piece for piece, _ in learn_pieces({"ab": 2}, 9, letters=LETTERS)} == {*LETTERS, "ab"}
    assert {piece for piece, _ in learn_pieces({}, 9, letters=LETTERS)} == set(LETTERS)
    long = learn_pieces({"a" * MAX_WORD_LETTERS: 5, "b" * (MAX_WORD_LETTERS + 1): 5}, 999, letters=LETTERS)
    assert max(len(piece) for piece, _ in long) == MAX_PIECE_LETTERS
    assert not any("bb" in piece for piece, _ in long)
