"""The demo's alignment measure on attention whose result is known."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import numpy.typing as npt
import pytest

from regard.errors import DataError, ShapeError
from regard.tasks.translate.demo_alignment import alignment_accuracy, source_words
from regard.tasks.translate.demo_corpus import Link, Phrase, Span, make_corpus

PHRASE = Phrase(
    source="room twenty-three",
    target="Zimmer dreiundzwanzig",
    links=(Link((5, 11), (14, 21), "number"), Link((12, 17), (7, 11), "number")),
    kind="number",
    keys=(23,),
)
# room _twenty - three </s>
SOURCE = [(0, 4), (4, 11), (11, 12), (12, 17), (0, 0)]
# Zimmer _drei und zwanzig </s>
TARGET = [(0, 6), (6, 11), (11, 14), (14, 21), (0, 0)]


def measured(weights: npt.ArrayLike, source: list[Span] = SOURCE, target: list[Span] = TARGET) -> float:
    accuracy, chance, num_links = alignment_accuracy([PHRASE], [weights], [source], [target])
    assert num_links == 2
    assert chance == pytest.approx(1 / 3)
    return accuracy


def test_words_are_separated_by_spaces_hyphens_and_punctuation() -> None:
    text = "on March 3, 2025 we counted one thousand, twenty-one Äpfel"
    words = [text[first:end] for first, end in source_words(text)]
    assert words == ["on", "March", "3", "2025", "we", "counted", "one", "thousand", "twenty", "one", "Äpfel"]


def test_by_hand() -> None:
    right: list[list[float]] = [
        [1.0, 0, 0, 0, 0],
        [0, 0.1, 0, 0.9, 0],
        [0, 0, 1, 0, 0],
        [0.2, 0.6, 0, 0.2, 0],
        [0, 0, 0, 0, 1],
    ]
    half: list[list[float]] = [
        [1.0, 0, 0, 0, 0],
        [0, 0.9, 0, 0.1, 0],
        [0, 0, 1, 0, 0],
        [0.2, 0.6, 0, 0.2, 0],
        [0, 0, 0, 0, 1],
    ]
    assert measured(right) == 1
    assert measured(half) == 0.5
    assert measured([row[::-1] for row in right]) == 0


def test_attention_to_no_word_is_no_vote() -> None:
    # most of the attention rests on the hyphen and on the end of the sentence; what is left decides
    none = [0.0] * 5
    assert measured([none, [0, 0.01, 0.5, 0.02, 0.47], none, [0, 0.02, 0.48, 0.01, 0.49], none]) == 1


def test_flat_or_absent_attention_recovers_nothing() -> None:
    assert measured([[0.0] * 5] * 5) == 0
    assert measured([[0.2] * 5] * 5) == 0


def test_a_source_token_over_two_words_shares_by_characters() -> None:
    # "twenty-thr" gives 6/9 to twenty and 3/9 to three; "ee" all to three
    source = [(0, 4), (4, 15), (15, 17)]
    weights: list[list[float]] = [[1.0, 0, 0], [0, 0.6, 0.4], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert measured(weights, source) == 1  # drei: twenty 0.4, three 0.2 + 0.4
    weights[1] = [0, 0.8, 0.2]  # drei: twenty 0.533, three 0.467
    assert measured(weights, source) == 0.5


def test_a_target_token_over_two_links_counts_for_each_by_its_fraction() -> None:
    # "dreiundzwanz" counts 4/12 for drei and 5/12 for zwanzig; "ig" belongs to zwanzig alone
    target = [(0, 6), (7, 19), (19, 21)]
    looking_at_three: list[list[float]] = [[1.0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    assert measured(looking_at_three, target=target) == 1  # zwanzig: three 5/12, twenty 1
    weak: list[list[float]] = [[1.0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0.4, 0, 0, 0]]
    assert measured(weak, target=target) == 0.5  # zwanzig: three 5/12, twenty 0.4


def test_single_words_are_not_measured_and_kinds_are_kept_apart() -> None:
    single = Phrase("seven", "sieben", (Link((0, 5), (0, 6), "number"),), "number", (7,))
    result = alignment_accuracy([single], [[[1.0]]], [[(0, 5)]], [[(0, 6)]])
    assert math.isnan(result.accuracy) and math.isnan(result.chance) and result.num_links == 0
    both = alignment_accuracy([single, PHRASE], [[[1.0]], [[0.2] * 5] * 5], [[(0, 5)], SOURCE], [[(0, 6)], TARGET])
    assert both.chance == pytest.approx(1 / 3) and both.num_links == 2
    months = alignment_accuracy([PHRASE], [[[0.2] * 5] * 5], [SOURCE], [TARGET], kinds=["month"])
    assert math.isnan(months.chance) and months.num_links == 0


def test_the_truth_scores_one_and_random_attention_scores_chance_on_a_corpus_under_any_tokens() -> None:
    phrases = make_corpus(3, 6_000, 701).held_out
    generator, cutter = np.random.default_rng(0), random.Random(0)
    source_spans: list[list[Span]] = [source_words(phrase.source) for phrase in phrases]
    target_spans, truth = [], []
    for phrase, words in zip(phrases, source_spans, strict=True):
        cuts = {0, len(phrase.target), *(edge for link in phrase.links for edge in link.target_span)}
        cuts |= set(cutter.sample(range(len(phrase.target)), 3))
        edges = sorted(cuts)
        spans = list(itertools.pairwise(edges))
        matrix = np.zeros((len(spans), len(words)))
        for link in phrase.links:
            for row, (first, end) in enumerate(spans):
                if link.target_span[0] <= first and end <= link.target_span[1]:
                    matrix[row, words.index(link.source_span)] = 1
        target_spans.append(spans)
        truth.append(matrix)
    assert alignment_accuracy(phrases, truth, source_spans, target_spans).accuracy == 1
    dates = alignment_accuracy(phrases, truth, source_spans, target_spans, kinds=("weekday", "month", "day", "year"))
    assert dates.accuracy == 1 and dates.num_links > 701

    noise = [generator.dirichlet(np.full(matrix.shape[1], 0.3), size=matrix.shape[0]) for matrix in truth]
    result = alignment_accuracy(phrases, noise, source_spans, target_spans)
    counted = [
        len(words)
        for phrase, words in zip(phrases, source_spans, strict=True)
        for link in phrase.links
        if link.kind == "number" and len(words) > 1
    ]
    assert result.num_links == len(counted)
    assert result.chance == pytest.approx(sum(1 / count for count in counted) / len(counted))  # a link covers one word
    assert 0.08 < result.chance < 0.3
    assert result.accuracy == pytest.approx(result.chance, abs=0.05)


def test_misfits_are_listed() -> None:
    with pytest.raises(ShapeError) as caught:
        alignment_accuracy([PHRASE] * 3, [np.ones((5, 4)), np.ones((5, 5)), np.ones(7)], [SOURCE] * 3, [TARGET] * 3)
    assert str(caught.value) == (
        "alignment_accuracy: weights [target tokens, source tokens]: phrase 0 has [5, 4], expected [5, 5];"
        " phrase 2 has [7], expected [5, 5]"
    )
    with pytest.raises(ShapeError) as caught:
        alignment_accuracy([PHRASE], [], [SOURCE], [TARGET])
    assert str(caught.value) == (
        "alignment_accuracy: received 1 phrases, 0 weights, 1 source_spans, 1 target_spans, expected as many of each"
    )


@pytest.mark.parametrize("bad", [float("nan"), -0.5])
def test_scores_are_refused(bad: float) -> None:
    with pytest.raises(DataError) as caught:
        alignment_accuracy([PHRASE], [np.full((5, 5), bad)], [SOURCE], [TARGET])
    assert str(caught.value) == (
        "alignment_accuracy: the weights of phrase 0 hold negative or non-finite values, expected attention weights;"
        " pass probabilities, not scores"
    )
