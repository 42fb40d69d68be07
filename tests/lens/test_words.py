from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.attention.observation import Observation
from regard.attention.records.record import AttentionRecord, Axis
from regard.lens.words import axis_words, group, words_of


def pieces(text: str) -> list[str]:
    return [text[begin:end] for begin, end in words_of(text)]


def test_words_stand_between_spaces_and_lose_the_marks_at_their_ends() -> None:
    assert pieces("»Don't, she said (twenty-three 3.5 U.S.)...") == [
        "»", "Don't", ",", "she", "said", "(", "twenty-three", "3.5", "U.S", ".", ")", "...",
    ]  # fmt: skip
    assert pieces("dogs are running .") == ["dogs", "are", "running", "."]
    assert pieces("") == pieces(" \n\t ") == []
    assert pieces("...!!") == ["...", "!!"]


def test_scripts_without_spaces_yield_no_words_and_leave_their_tokens() -> None:
    assert pieces("PyTorchで犬 runs") == ["PyTorch", "runs"]
    axis = Axis("犬が走る。 ok", ("犬が", "走る", "。", "▁ok", "</s>"), ((0, 2), (2, 4), (4, 5), (6, 8), (8, 8)))
    assert axis_words(axis) == [(0, 2), (2, 4), (4, 5), (6, 8)]


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab'-.,!\u00bf \n\t犬か_1"), max_size=31))
def test_words_are_ordered_disjoint_and_leave_out_only_blanks_and_unspaced_scripts(text: str) -> None:
    spans = words_of(text)
    assert all(begin < end for begin, end in spans)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    covered = {place for begin, end in spans for place in range(begin, end)}
    assert all(character in " \n\t犬か" for place, character in enumerate(text) if place not in covered)
    assert not any(text[place] in " \n\t犬か" for place in covered)


def test_group_agrees_with_over_words() -> None:
    text = "dogs ran off"
    axis = Axis(text, ("<s>", "do", "gs", " ", "ran", "off", "</s>"),
                ((0, 0), (0, 2), (2, 4), (4, 5), (5, 8), (9, 12), (12, 12)))  # fmt: skip
    words = words_of(text)
    grouping = group(axis, words)
    rows = torch.rand(1, 2, len(axis), len(axis), generator=torch.Generator().manual_seed(3)).softmax(-1)
    over = AttentionRecord({"a": Observation(rows=rows)}, axis, axis).over_words(words, words)
    assert grouping.axis == over.key
    assert grouping.axis.tokens == ("<s>", "dogs", "ran", "off", "</s>")
    assert grouping.owner == (0, 1, 1, 2, 2, 3, 4)  # the lone space begins the word that follows
    assert grouping.number == (None, 0, 1, 2, None)
    # What page.js does with `owner`.
    mine = torch.zeros(2, 5, 5)
    for q, row in enumerate(grouping.owner):
        for k, column in enumerate(grouping.owner):
            mine[:, row, column] += rows[0, :, q, k] / grouping.owner.count(row)
    torch.testing.assert_close(mine, over["a"].rows[0])
