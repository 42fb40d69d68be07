"""Tokens that are whole words."""

from __future__ import annotations

from regard.inputs.text import Tokenizer, TokenizerConfig

TEXTS = ["YES GO", "GO ON", "YES THIRTEEN", "GO TWO GO", "G M E F"] * 2 + ["NOVEMBER"]


def test_frequent_words_are_one_token_wherever_they_stand() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig("whole-words", 1000))
    [encoded] = tokenizer.encode(["GO YES GO"])
    assert encoded.tokens == ["▁GO", "▁YES", "▁GO"] and encoded.ids[0] == encoded.ids[2]
    assert encoded.offsets == [(0, 2), (3, 6), (7, 9)]
    assert len(tokenizer) == 4 + 256 + 9  # GO YES ON THIRTEEN TWO G M E F
    assert tokenizer.decode(encoded.ids) == "GO YES GO"


def test_a_rare_word_is_spelled_and_comes_back() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig("whole-words", 1000))
    [encoded] = tokenizer.encode(["GO NOVEMBER É"])
    assert encoded.tokens[:3] == ["▁GO", "▁", "N"]
    assert tokenizer.decode(encoded.ids) == "GO NOVEMBER É"
    assert "▁NOVEMBER" in Tokenizer.train(TEXTS, TokenizerConfig("whole-words", 1000, min_frequency=1)).tokens_of(
        range(270)
    )


def test_the_most_frequent_words_stay_where_there_is_no_room() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig("whole-words", 262))
    assert [len(ids) for ids in tokenizer.encode_ids(["GO", "YES", "ON"])] == [1, 1, 3]


def test_it_is_kept_and_read_back() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig("whole-words", 1000))
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again == tokenizer and again.encode_ids(TEXTS) == tokenizer.encode_ids(TEXTS)
