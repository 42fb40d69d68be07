"""CIDEr-D and ROUGE-L against values worked by hand and against their formulas, written out plainly."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.tasks.caption.overlap import cider_d, longest_common, rouge_l


def test_cider_worked_by_hand() -> None:
    """Two pictures of one reference each; every n-gram stands in one of them, but "a" in both, whose weight is log 1.

    Picture 1, "a red dog" against "a red cat": one word of weight log 2 ("red") is shared, of two on either side (norms
    sqrt 2 log 2): 1-grams 1/2. 2-grams: "a red" of "a red", "red dog": 1/2. 3-grams: none shared, 4-grams: none there.
    """
    captions = [["a", "red", "dog"], ["a", "boat"]]
    references = [[["a", "red", "cat"]], [["a", "boat"]]]
    first, second = cider_d(captions, references)
    assert first == pytest.approx(10 * (0.5 + 0.5 + 0 + 0) / 4)
    # Picture 2 is its own reference: 1 for 1-grams and 2-grams; no 3-grams and 4-grams are there, which count as 0.
    assert second == pytest.approx(10 * (1 + 1 + 0 + 0) / 4)


def test_cider_d_s_penalty_of_length_by_hand() -> None:
    captions = [["x", "x", "x", "x", "x", "x", "x", "x"], ["y"]]
    references = [[["x", "x"]], [["y"]]]
    # 1-grams: 8 log 2 against 2 log 2, cut to 2 log 2: (2 * 2) / (8 * 2) = 1/4. 2-grams: 1 of 7: 1/7.
    # Six words more: exp(-36 / 72).
    expected = 10 * (1 / 4 + 1 / 7) / 4 * math.exp(-0.5)
    assert cider_d(captions, references)[0] == pytest.approx(expected)


def test_cider_of_a_perfect_caption_is_10_and_of_a_single_picture_0() -> None:
    text = ["a", "red", "dog", "runs", "over", "a", "field"]
    assert cider_d([text, ["boat"]], [[text], [["boat"]]])[0] == pytest.approx(10.0)
    assert cider_d([text], [[text]])[0] == 0.0


def papers_cider_d(captions: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """Vedantam et al. 2015, eq. 1 to 4 and CIDEr-D of sec. 6.2, over the vocabulary of all n-grams; counts as g."""

    def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]

    found = []
    for words, several in zip(captions, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            all_texts = [*captions, *itertools.chain.from_iterable(references)]
            vocabulary = sorted({gram for text in all_texts for gram in grams(text, n)})
            holders = [sum(any(gram in grams(one, n) for one in those) for those in references) for gram in vocabulary]
            idf = np.array([math.log(len(references) / max(1, count)) for count in holders])

            def vector(text: list[str], n: int = n, vocabulary: list = vocabulary, idf: np.ndarray = idf) -> np.ndarray:
                counts = Counter(grams(text, n))
                return np.array([counts[gram] for gram in vocabulary]) * idf

            own = vector(words)
            for other in several:
                theirs = vector(other)
                norms = np.linalg.norm(own) * np.linalg.norm(theirs)
                if norms:
                    penalty = math.exp(-((len(words) - len(other)) ** 2) / 72)
                    total += penalty * float(np.minimum(own, theirs) @ theirs) / norms / len(several) / 4
        found.append(10 * total)
    return found


TEXT = st.lists(st.sampled_from("abcd"), min_size=0, max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_cider_is_the_formula(pictures: list[tuple[list[str], list[list[str]]]]) -> None:
    captions, references = [one for one, _ in pictures], [several for _, several in pictures]
    np.testing.assert_allclose(cider_d(captions, references), papers_cider_d(captions, references), atol=1e-9)


def test_rouge_worked_by_hand() -> None:
    """Longest common of "police killed the gunman" and "police kill the gunman": 3 of 4 on both sides."""
    caption, reference = ["police", "killed", "the", "gunman"], ["police", "kill", "the", "gunman"]
    assert longest_common(caption, reference) == 3
    assert rouge_l([caption], [[reference]])[0] == pytest.approx(0.75)
    # Precision and recall may come from different references: 2 of 2, and 2 of 2.
    assert rouge_l([["a", "b"]], [[["a", "b", "c", "d"], ["a"]]])[0] == pytest.approx(1.0)
    # 1 of 2, and 1 of 4: (1 + 1.44) * 0.5 * 0.25 / (0.25 + 1.44 * 0.5).
    assert rouge_l([["a", "x"]], [[["a", "b", "c", "d"]]])[0] == pytest.approx(2.44 * 0.125 / 0.97)
    assert rouge_l([[], ["a"]], [[["a"]], [["b"]]]).tolist() == [0.0, 0.0]


@given(TEXT, TEXT)
def test_the_longest_common_subsequence_is_that_of_all_subsequences(one: list[str], other: list[str]) -> None:
    def subsequences(words: list[str]) -> set[tuple[str, ...]]:
        return {some for n in range(len(words) + 1) for some in itertools.combinations(words, n)}

    assert longest_common(one, other) == max(len(some) for some in subsequences(one) & subsequences(other))
