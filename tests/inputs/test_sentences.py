"""Long text: sentences, clauses, words; every place exact."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.errors import RegardError
from regard.inputs.sentences import are_single_sentences, sentences, split_long

# Letters, marks and white space of one to four bytes, so that places in bytes and in characters differ.
MESSY = st.text(alphabet="ab AB.,;:!?…。，\n\t\r\u00a0\u0085\u2028é😀\u0301\"'()0", max_size=60)
LANGUAGES = st.sampled_from(["en", "de", "zh", "xx"])


def num_words(text: str) -> int:
    return len(text.split())


def exact(text: str, pieces: list[tuple[int, str]]) -> bool:
    """Whether every piece stands where it says, in order, and nothing but white space is left out."""
    end = 0
    for begin, piece in pieces:
        if text[begin : begin + len(piece)] != piece or text[end:begin].strip():
            return False
        end = begin + len(piece)
    return not text[end:].strip()


def test_the_check_for_exactness_can_fail() -> None:
    assert exact(" a b", [(1, "a"), (3, "b")])
    assert not exact(" a b", [(0, "a"), (3, "b")])
    assert not exact("a b", [(2, "b")])
    assert not exact("a b", [(0, "a")])


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "Dr. Smith came at 3.5 p.m. He left.  Why? ", ["Dr. Smith came at 3.5 p.m.", "He left.", "Why?"]),
        ("de", "Das ist z.B. gut. Am 3. Mai kam er. 😀 Ja!", ["Das ist z.B. gut.", "Am 3. Mai kam er.", "😀 Ja!"]),
        ("zh", "你好。我是。", ["你好。", "我是。"]),
        ("en", "One paragraph\n\nand another", ["One paragraph", "and another"]),
        ("no-such-language", "One. Two.", ["One.", "Two."]),
        ("en", " \n ", []),
        ("en", "", []),
    ],
)
def test_sentences(language: str, text: str, expected: list[str]) -> None:
    found = sentences(text, language)
    assert [sentence for _, sentence in found] == expected
    assert exact(text, found)


@pytest.mark.parametrize("space", ["\u0085", "\u00a0", "\u2028", "\u3000"])
def test_wide_white_space_before_a_full_stop_is_survived(space: str) -> None:
    text = f"A{space}. Then B{space}. 😀 c"
    assert exact(text, sentences(text))
    assert "".join(sentence for _, sentence in sentences(text)).count(space) == 2


@given(MESSY, LANGUAGES)
def test_sentences_stand_where_they_say(text: str, language: str) -> None:
    assert exact(text, sentences(text, language))


@given(MESSY, st.integers(1, 7), st.sampled_from([num_words, len]), LANGUAGES)
def test_pieces_stand_where_they_say_and_fit(text: str, limit: int, count: Callable[[str], int], language: str) -> None:
    pieces = split_long(text, count, limit, language)
    assert exact(text, pieces)
    for _, piece in pieces:
        assert piece.strip()
        assert count(piece) <= limit or len(piece.split()) == 1


def test_a_text_within_the_limit_stays_as_it_is() -> None:
    text = " One. Two, three. "
    assert split_long(text, num_words, 3) == [(0, text)]
    assert split_long(text, num_words, None) == [(0, text)]
    assert split_long(" \n\t", num_words, 1) == []
    assert split_long("", num_words, None) == []


def test_sentences_first_then_clauses_then_white_space() -> None:
    text = "One two. Three four, five six; seven. A b c d e f."
    assert [piece for _, piece in split_long(text, num_words, 4)] == [
        "One two.",
        "Three four, five six;",
        "seven.",
        "A b c d",
        "e f.",
    ]


def test_a_word_over_the_limit_stays_whole() -> None:
    assert split_long("unsplittable b", len, 3) == [(0, "unsplittable"), (13, "b")]


def test_without_the_library_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencex", None)  # as if it were not installed
    assert split_long("One. Two.", num_words, 2) == [(0, "One. Two.")]
    with pytest.raises(RegardError, match=r"needs a package: pip install sentencex$"):
        split_long("One. Two.", num_words, 1)


def test_each_sentence_is_cut_apart_though_the_text_is_short() -> None:
    text = "A dog runs. Two men sit on a bench."
    count = len
    assert split_long(text, count, 1000) == [(0, text)]
    assert split_long(text, count, 1000, each_sentence=True) == [(0, "A dog runs."), (12, "Two men sit on a bench.")]
    assert split_long(" A dog runs. ", count, 1000, each_sentence=True) == [(0, " A dog runs. ")]
    assert split_long(text, count, None, each_sentence=True) == [(0, text)]


def test_single_sentences_are_told_from_texts() -> None:
    single = ["A dog runs.", "Two men sit on a bench", "Is it raining?"] * 5
    assert are_single_sentences(single)
    assert not are_single_sentences([*single, *["One. Two more come."] * 4])
