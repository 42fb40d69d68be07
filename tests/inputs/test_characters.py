"""Characters as tokens: a text comes back to the last blank, and every character is one token."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from regard.inputs.text import Tokenizer, TokenizerConfig

TEXT = "  Où est l'été?\n\tDer Bär – 12 Äpfel.\n\n"
TOKENIZER = Tokenizer.train([TEXT * 2], TokenizerConfig("characters", 500))


def test_each_character_is_a_token() -> None:
    [found] = TOKENIZER.encode([TEXT])
    assert len(found.ids) == len(TEXT)
    assert found.offsets == [(place, place + 1) for place in range(len(TEXT))]
    assert found.tokens[:4] == ["▁", "▁", "O", "ù"]
    text, spans = TOKENIZER.spans(found.ids)
    assert (text, spans) == (TEXT, found.offsets)


def test_of_characters_the_most_frequent_are_kept() -> None:
    small = Tokenizer.train(["ää éé é"], TokenizerConfig("characters", 4 + 256 + 1))
    assert len(small) == 261
    assert [len(ids) for ids in small.encode_ids(["é", "ä", "e"])] == [1, 2, 1]
    assert len(Tokenizer.train(["abc"], TokenizerConfig("characters", 500))) == 260  # no more than there are


@given(st.text())
@settings(deadline=None)
def test_every_text_comes_back_exactly(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    [ids] = TOKENIZER.encode_ids([text])
    assert TOKENIZER.decode(ids) == text
    assert Tokenizer.from_json(TOKENIZER.to_json()).encode_ids([text]) == [ids]
