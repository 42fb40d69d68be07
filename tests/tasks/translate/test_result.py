"""Joining what was translated piece by piece: places, scores and blocks."""

from __future__ import annotations

import pytest
import torch

from regard.attention.observation import Observation
from regard.attention.records.record import AttentionRecord, Axis
from regard.decoding.hypotheses import Hypothesis
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.tasks.translate.result import Translation, joined, translation_of


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["ein schöner Hund 😀"], TokenizerConfig("bpe", 262, min_frequency=1))


def hypothesis(tokenizer: Tokenizer, text: str, width: int, score: float, *, end: bool = True) -> Hypothesis:
    """An output with attention of three heads in two layers; head h of row t looks at key t + h."""
    ids = [*tokenizer.encode_ids([text])[0], *([Tokenizer.EOS] if end else [])]
    rows = torch.zeros(3, len(ids), width)
    for head in range(3):
        for row in range(len(ids)):
            rows[head, row, (row + head) % width] = 1.0
    attention = {"a.cross": rows, "b.cross": rows.flip(-1).bfloat16()}
    return Hypothesis(ids, score, score * len(ids), [score] * len(ids), end, attention)


def translation(tokenizer: Tokenizer, source: str, *outputs: tuple[str, float]) -> Translation:
    encoded = tokenizer.encode([source])[0]
    width = len(encoded.ids) + 1
    return translation_of(
        source, encoded, [hypothesis(tokenizer, text, width, score) for text, score in outputs], tokenizer
    )


def test_a_hypothesis_becomes_text_with_places(tokenizer: Tokenizer) -> None:
    source = "ein  schöner 😀"
    found = translation(tokenizer, source, ("Hund 😀", -0.5), ("ein", -0.75))
    assert (found.text, found.score, found.finished) == ("Hund 😀", -0.5, True)
    assert found.tokens[-1] == "</s>"
    [other] = found.alternatives
    assert (other.text, other.score) == ("ein", -0.75)
    record = found.attention
    assert record is not None
    assert record.query is not None
    assert record.key is not None
    assert record.query.tokens == found.tokens
    # The emoji is four byte tokens, each of which spans the one character.
    assert [found.text[a:b] for a, b in record.query.spans][-5:] == ["😀"] * 4 + [""]
    assert {source[a:b] for a, b in record.key.spans} >= {"😀"}
    assert record.key.spans[-1] == (len(source), len(source))
    for layer in ("a.cross", "b.cross"):
        rows = record[layer].rows
        assert rows is not None
        assert rows.shape == (1, 3, len(found.tokens), len(record.key))
        assert rows.dtype == torch.float32


def test_an_unfinished_output_and_one_without_attention(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["ein"])[0]
    cut = hypothesis(tokenizer, "Hund", 9, -1.0, end=False)
    found = translation_of("ein", encoded, [Hypothesis(cut.tokens, -1.0, -1.0, [], False)], tokenizer)
    assert not found.finished
    assert found.attention is None
    assert found.to_json() == {
        "source": "ein",
        "text": "Hund",
        "score": -1.0,
        "tokens": list(found.tokens),
        "finished": False,
    }


def test_one_piece_that_is_the_whole_text_stays_as_it_is(tokenizer: Tokenizer) -> None:
    one = translation(tokenizer, "ein", ("Hund", -0.5))
    assert joined("ein", [one], [0]) is one


@pytest.mark.parametrize("separator", [" ", ""])
def test_joined_pieces_keep_their_places(tokenizer: Tokenizer, separator: str) -> None:
    source = "ein 😀  schöner;  Hund "
    parts = ["ein 😀", "schöner;", "Hund"]
    begins = [source.index(part) for part in parts]
    outputs = [("Hund", -0.5), ("", -2.0), ("schöner 😀", -0.25)]  # the second is nothing but its end token
    pieces = [translation(tokenizer, part, output) for part, output in zip(parts, outputs, strict=True)]
    whole = joined(source, pieces, begins, separator)
    assert whole.text == f"Hund{separator}schöner 😀"
    counts = [len(piece.tokens) for piece in pieces]
    assert counts[1] == 1
    expected = (-0.5 * counts[0] - 2.0 - 0.25 * counts[2]) / sum(counts)
    assert whole.score == pytest.approx(expected)
    assert whole.finished

    record = whole.attention
    assert record is not None
    assert record.query is not None
    assert record.key is not None
    assert record.query.tokens == whole.tokens
    assert (record.query.text, record.key.text) == (whole.text, source)
    said = [text for piece, (text, _) in zip(pieces, outputs, strict=True) for text in [text] * len(piece.tokens)]
    for (begin, end), token, text in zip(record.query.spans, whole.tokens, said, strict=True):
        assert 0 <= begin <= end <= len(whole.text)
        assert (begin == end) == (token in ("</s>", "▁"))
        assert whole.text[begin:end] in text
    assert "".join(dict.fromkeys(whole.text[a:b] for a, b in record.query.spans)).count("😀") == 1
    found = {source[a:b] for a, b in record.key.spans}
    assert "😀" in found
    assert {place for a, b in record.key.spans for place in range(a, b)} == {
        place for place, letter in enumerate(source) if letter != " "
    }
    for layer in ("a.cross", "b.cross"):
        rows = record[layer].rows
        assert rows is not None
        blocks = [piece.attention[layer].rows[0] for piece in pieces if piece.attention]  # type: ignore[index]
        expected_rows = torch.stack([torch.block_diag(*(block[head] for block in blocks)) for head in range(3)])
        assert torch.equal(rows[0], expected_rows)
        assert torch.equal(rows.sum(-1), torch.ones(1, 3, len(whole.tokens)))


def test_a_last_piece_without_text_ends_inside_the_text(tokenizer: Tokenizer) -> None:
    pieces = [translation(tokenizer, "ein", ("Hund", -0.5)), translation(tokenizer, "Hund", ("", -1.0))]
    whole = joined("ein Hund", pieces, [0, 4])
    assert whole.text == "Hund"
    assert whole.attention is not None
    assert whole.attention.query is not None
    assert whole.attention.query.spans[-1] == (4, 4)


def test_alternatives_pair_up_rank_by_rank(tokenizer: Tokenizer) -> None:
    first = translation(tokenizer, "ein", ("Hund", -0.1), ("ein", -0.2), ("schöner", -0.3))
    second = translation(tokenizer, "Hund", ("😀", -0.1), ("Hund", -0.4))
    whole = joined("ein Hund", [first, second], [0, 4])
    assert [other.text for other in whole.alternatives] == ["ein Hund"]
    assert whole.alternatives[0].attention is not None


def test_a_piece_without_attention_leaves_the_whole_without(tokenizer: Tokenizer) -> None:
    one = translation(tokenizer, "ein", ("Hund", -0.1))
    bare = Translation("Hund", "x", -1.0, ("x",), None, finished=False)
    whole = joined("ein Hund", [one, bare], [0, 4])
    assert whole.attention is None
    assert not whole.finished
    assert len(whole.tokens) == len(one.tokens) + 1


def test_over_words_of_a_joined_text(tokenizer: Tokenizer) -> None:
    pieces = [translation(tokenizer, "ein", ("Hund", -0.5)), translation(tokenizer, "Hund", ("ein", -1.0))]
    record = joined("ein Hund", pieces, [0, 4]).attention
    assert record is not None
    words = record.over_words([(0, 4), (5, 8)], [(0, 3), (4, 8)])
    assert words.query is not None
    assert words.key is not None
    assert words.query.tokens == ("Hund", "</s>", "ein", "</s>")
    assert words.key.tokens == ("ein", "</s>", "Hund", "</s>")
    rows = words.rows("a.cross")
    assert torch.allclose(rows.sum(1), torch.ones(4))
    assert float(rows[:2, 2:].abs().max()) == float(rows[2:, :2].abs().max()) == 0.0


def test_a_record_says_what_its_axes_are() -> None:
    empty = AttentionRecord({"a": Observation(rows=torch.zeros(1, 1, 0, 0))}, Axis("", (), ()), Axis("", (), ()))
    assert empty.rows("a").shape == (0, 0)
