"""Packing: every token is predicted once, from nothing but its own document, and any position is a pure function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.data.batches import Position
from regard.data.columns import TextColumn
from regard.data.corpus import Corpus, prepare
from regard.data.records import Origin, Record
from regard.data.windows import INPUTS, Packing, WindowBudget, WindowStream, document_begins, evaluation_batches
from regard.errors import ConfigError
from regard.inputs.text import Tokenizer

BOS, EOS = Tokenizer.BOS, Tokenizer.EOS


def _documents(lengths: list[int]) -> list[np.ndarray]:
    """Ids that name their document and place, each ended by the end token."""
    return [np.array([*(10 + 100 * number + np.arange(length - 1)), EOS]) for number, length in enumerate(lengths)]


def _packing(lengths: list[int], window: int, shift: int = 0) -> Packing:
    documents = _documents(lengths)
    return Packing(
        np.array(lengths, dtype=np.int64),
        lambda number, begin, end: documents[number][begin:end],
        order=np.arange(len(lengths)),
        window=window,
        shift=shift,
    )


def test_by_hand() -> None:
    packing = _packing([3, 1, 4], window=4)
    assert len(packing) == 2
    read, follows = packing.row(0)
    assert read.tolist() == [BOS, 10, 11, BOS]
    assert follows.tolist() == [10, 11, EOS, EOS]
    read, follows = packing.row(1)
    assert read.tolist() == [BOS, 210, 211, 212]
    assert follows.tolist() == [210, 211, 212, EOS]
    read, follows = _packing([6], window=4).row(1)
    assert (read.tolist(), follows.tolist()) == ([13, 14], [14, EOS])  # the token before the window is read


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    window=st.integers(1, 11),
    data=st.data(),
)
@settings(deadline=None)
def test_every_token_is_predicted_once_after_what_stands_before_it(
    lengths: list[int], window: int, data: st.DataObject
) -> None:
    packing = _packing(lengths, window, shift=data.draw(st.integers(0, window - 1)))
    rows = [packing.row(number) for number in range(len(packing))]
    stream = np.concatenate(_documents(lengths))
    assert np.concatenate([follows for _, follows in rows]).tolist() == stream.tolist()
    before = np.where(np.r_[EOS, stream[:-1]] == EOS, BOS, np.r_[EOS, stream[:-1]])
    assert np.concatenate([read for read, _ in rows]).tolist() == before.tolist()
    assert all(1 <= len(read) <= window for read, _ in rows)


@pytest.fixture
def corpus(tmp_path: Path, byte_tokenizer: Tokenizer) -> Corpus:
    records = [Record({"target": "x" * length}, Origin("made", length)) for length in (5, 2, 31, 1, 17)]
    return prepare(records, {"target": TextColumn(byte_tokenizer)}, tmp_path / "c")


def test_a_stream_is_a_pure_function_of_its_position(corpus: Corpus) -> None:
    budget = WindowBudget(window_tokens=8, num_windows=3)
    first, second = (WindowStream(corpus, budget, seed=7) for _ in range(2))
    position, seen = Position(), []
    while position.epoch < 2:
        seen.append((position, first.at(position)))
        position = first.after(position)
    for place, batch in reversed(seen):  # in any order, by another stream
        again = second.at(place)
        assert again.target.values.tolist() == batch.target.values.tolist()
        assert again[INPUTS].values.tolist() == batch[INPUTS].values.tolist()
        assert again.num_target_tokens == int((batch.target.values != Tokenizer.PAD).sum())
    for epoch in (0, 1):
        tokens = sum(batch.num_target_tokens for place, batch in seen if place.epoch == epoch)
        assert tokens == corpus.num_tokens("target")
    orders = [[batch.target.values.tolist() for place, batch in seen if place.epoch == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert WindowStream(corpus, budget, seed=8).at(Position()).target.values.tolist() != orders[0][0]
    assert 0.0 <= first.padding_share()["target"] < 0.3
    with pytest.raises(IndexError, match="of epoch 0, which has"):
        first.at(Position(0, 99))


def test_batches_of_an_evaluation_hold_all_in_order() -> None:
    documents = [[5, 6, 7], [8], [9, 10]]
    batches = list(evaluation_batches(documents, WindowBudget(window_tokens=4, num_windows=2)))
    follows = [row[:length] for batch in batches for row, length in zip(*batch.target, strict=True)]
    assert [token for row in follows for token in row.tolist()] == [5, 6, 7, EOS, 8, EOS, 9, 10, EOS]
    begins = [document_begins(batch[INPUTS].values).tolist() for batch in batches]
    assert begins[0][0] == [True, False, False, False]
    assert begins[0][1] == [True, False, True, False]
    assert list(evaluation_batches([], WindowBudget(4, 2))) == []


def test_a_stretch_is_a_part_of_a_record(corpus: Corpus) -> None:
    whole = corpus["target", 2]
    assert corpus.stretch("target", 2, 3, 9).tolist() == whole[3:9].tolist()
    assert corpus.stretch("target", 2, 0, 10**6).tolist() == whole.tolist()


def test_what_cannot_be_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="window_tokens is 0, expected 1 or more; num_windows is -1, expected"):
        WindowBudget(0, -1)
    with pytest.raises(ConfigError, match="seed is -1"):
        WindowStream(corpus, WindowBudget(8, 1), seed=-1)
