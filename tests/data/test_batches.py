"""Batches: pure functions of their position, within the budget, every sentence once, little padding."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.data.batches import Batch, BatchStream, Position, Sequences, TokenBudget, by_length, cut, load
from regard.data.columns import TextColumn
from regard.data.corpus import Corpus, prepare
from regard.data.readers import DataSpec, read
from regard.errors import ConfigError, DataError
from regard.inputs.text import Tokenizer, TokenizerConfig

CorpusOf = Callable[..., Corpus]


class _Lengths:
    """Stands for a corpus where only lengths matter."""

    folder = Path("made")

    def __init__(self, **lengths: np.ndarray) -> None:
        self._lengths = {role: np.asarray(values, dtype=np.int32) for role, values in lengths.items()}
        self.roles = tuple(lengths)

    def __len__(self) -> int:
        return len(self._lengths[self.roles[0]])

    def lengths(self, role: str) -> np.ndarray:
        return self._lengths[role]


def _stream(source: list[int], target: list[int], budget: TokenBudget, **options: int) -> BatchStream:
    return BatchStream(_Lengths(source=source, target=target), budget, **{"seed": 5, **options})  # type: ignore[arg-type]


pairs = st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=7, max_size=120)


@settings(max_examples=80, deadline=None)
@given(
    pairs=pairs,
    tokens=st.integers(40, 300),
    most=st.none() | st.integers(1, 9),
    multiple=st.integers(1, 8),
    noise=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
)
def test_every_sentence_once_within_the_budget(
    pairs: list[tuple[int, int]],
    tokens: int,
    most: int | None,
    multiple: int,
    noise: float,
    seed: int,
    epoch: int,
) -> None:
    source, target = (list(values) for values in zip(*pairs, strict=True))
    budget = TokenBudget(tokens, most, multiple, noise)
    stream = _stream(source, target, budget, seed=seed)
    batches = stream.batches(epoch)
    assert len(batches) == stream.num_batches(epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(pairs)))
    longest = np.maximum(source, target)
    for batch in batches:
        assert len(batch) >= 1
        assert len(batch) * longest[batch].max() <= tokens
        assert most is None or len(batch) <= most


@settings(max_examples=25, deadline=None)
@given(pairs=pairs, start=st.tuples(st.integers(0, 2), st.integers(0, 99)))
def test_a_fresh_stream_from_any_position_is_the_same_suffix(
    pairs: list[tuple[int, int]], start: tuple[int, int]
) -> None:
    source, target = (list(values) for values in zip(*pairs, strict=True))
    budget = TokenBudget(90)

    def fresh() -> BatchStream:
        return _stream(source, target, budget)

    def walk(stream: BatchStream, position: Position, steps: int) -> list[tuple[Position, list[int]]]:
        found = []
        for _ in range(steps):
            found.append((position, stream.batches(position.epoch)[position.index].tolist()))
            position = stream.after(position)
        return found

    whole = walk(fresh(), Position(), sum(fresh().num_batches(epoch) for epoch in range(4)))
    begin = Position(start[0], start[1] % fresh().num_batches(start[0]))
    suffix = [place for place, _ in whole].index(begin)
    assert walk(fresh(), begin, len(whole) - suffix) == whole[suffix:]
    assert [position.epoch for position, _ in whole] == sorted(position.epoch for position, _ in whole)


def test_iteration_resumes_exactly(corpus_of: CorpusOf) -> None:
    lengths = [3 + n % 13 for n in range(101)]
    corpus = corpus_of(source=lengths, target=lengths[::-1])

    def stream(seed: int = 1) -> BatchStream:
        return BatchStream(corpus, TokenBudget(60), seed=seed)

    def walk(stream: BatchStream, position: Position, steps: int) -> list[tuple[Position, Batch]]:
        found = []
        for _ in range(steps):
            found.append((position, stream.at(position)))
            position = stream.after(position)
        return found

    whole = walk(stream(), Position(), 40)
    assert whole[-1][0].epoch >= 1, "the walk must cross an epoch"
    for begin in (0, 7, 31):
        resumed = walk(stream(), whole[begin][0], 40 - begin)
        for (position, batch), (expected_position, expected) in zip(resumed, whole[begin:], strict=True):
            assert position == expected_position
            assert np.array_equal(batch.indices, expected.indices)
            assert torch.equal(batch.target.values, expected.target.values)
    other = walk(stream(seed=2), Position(), 40)
    assert any(not np.array_equal(a.indices, b.indices) for (_, a), (_, b) in zip(whole, other, strict=True))


def test_going_back_to_an_earlier_epoch_gives_it_again() -> None:
    stream = _stream([5] * 40, [5] * 40, TokenBudget(25))
    first = [batch.tolist() for batch in stream.batches(0)]
    stream.batches(1)
    assert [batch.tolist() for batch in stream.batches(0)] == first


def _compositions(stream: BatchStream, epoch: int) -> set[frozenset[int]]:
    return {frozenset(batch.tolist()) for batch in stream.batches(epoch)}


@pytest.mark.parametrize("lengths", [[9] * 211, list(range(3, 214))], ids=["all alike", "all distinct"])
def test_each_epoch_has_other_batches_in_another_order(lengths: list[int]) -> None:
    stream = _stream(lengths, lengths, TokenBudget(433))
    epochs = [_compositions(stream, epoch) for epoch in range(5)]
    for one, two in itertools.combinations(epochs, 2):
        assert len(one & two) < len(one) / 2
    first, second = ([int(batch.max()) for batch in stream.batches(epoch)] for epoch in range(2))
    assert first != sorted(first)
    assert first != second


def test_the_batch_holds_the_corpus_rows(corpus_of: CorpusOf) -> None:
    corpus = corpus_of(source=[7, 3, 5], target=[4, 11, 6])
    batch = load(corpus, np.array([2, 0]))
    assert batch.source.values.shape == (2, 7)
    assert batch.target.values.shape == (2, 6)
    assert batch.source.values.dtype == batch.source.lengths.dtype == torch.int64
    assert batch.source.lengths.tolist() == [5, 7]
    for row, index in enumerate([2, 0]):
        target = corpus["target", index].tolist()
        padding = [Tokenizer.PAD] * (6 - len(target))
        assert batch.target_outputs[row].tolist() == target + padding
        assert batch.target_inputs[row].tolist() == [Tokenizer.BOS, *target[:-1], *padding]
    assert batch.num_tokens("source") == 12
    assert batch.num_target_tokens == 10
    assert batch.padding_share == pytest.approx(1 - 22 / (14 + 12))
    assert batch.source.padding_share == pytest.approx(1 - 12 / 14)
    assert len(batch) == 2
    moved = batch.to("cpu")
    assert torch.equal(moved["source"].values, batch["source"].values)


def test_shifting_leaves_the_ids_alone() -> None:
    ids = torch.tensor([[11, 13, 2], [17, 2, 0]])
    sequences = Sequences(ids, torch.tensor([3, 2]))
    assert sequences.shifted().tolist() == [[1, 11, 13], [1, 17, 0]]
    assert ids.tolist() == [[11, 13, 2], [17, 2, 0]]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=11),
    pieces=st.integers(1, 13),
)
def test_pieces_are_the_rows_in_their_order(lengths: list[tuple[int, int]], pieces: int) -> None:
    roles = {
        role: Sequences.padded([list(range(10, 9 + length[side])) for length in lengths])
        for side, role in enumerate(("source", "target"))
    }
    batch = Batch(roles, np.arange(len(lengths)) * 7)
    split = batch.split(pieces)
    assert len(split) == min(pieces, len(lengths))
    sizes = [len(piece) for piece in split]
    assert max(sizes) - min(sizes) <= 1
    assert np.concatenate([piece.indices for piece in split]).tolist() == batch.indices.tolist()
    assert sum(piece.num_target_tokens for piece in split) == batch.num_target_tokens
    for role in roles:
        rows = [row[:length] for piece in split for row, length in zip(*piece[role], strict=True)]
        expected = [row[:length] for row, length in zip(*batch[role], strict=True)]
        assert all(torch.equal(row, wanted) for row, wanted in zip(rows, expected, strict=True))
        for piece in split:
            assert piece[role].values.shape == (len(piece), int(piece[role].lengths.max())), (
                "no column is padding alone"
            )


def test_a_batch_of_one_role(corpus_of: CorpusOf) -> None:
    corpus = corpus_of(target=[3, 5, 4, 9])
    stream = BatchStream(corpus, TokenBudget(12), seed=3)
    seen: list[int] = []
    for batch in (stream.at(Position(0, index)) for index in range(stream.num_batches(0))):
        assert set(batch.roles) == {"target"}
        seen += batch.indices.tolist()
    assert sorted(seen) == [0, 1, 2, 3]
    assert isinstance(batch, Batch)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), tokens=st.integers(30, 150))
def test_cut_is_greedy(lengths: list[int], tokens: int) -> None:
    """Against the plain loop over sentences."""
    expected, count, longest = [], 0, 0
    for place, length in enumerate(lengths):
        if count and (count + 1) * max(longest, length) > tokens:
            expected.append(place)
            count, longest = 0, 0
        count, longest = count + 1, max(longest, length)
    assert cut(np.array(lengths), TokenBudget(tokens)).tolist() == [*expected, len(lengths)]


def test_multiples_are_kept_where_the_batch_has_as_many() -> None:
    ends = cut(np.full(61, 5), TokenBudget(58, batch_multiple=4))
    sizes = np.diff(ends, prepend=0)
    assert sizes.tolist() == [8] * 7 + [5]
    assert np.diff(cut(np.full(7, 5), TokenBudget(15, batch_multiple=4)), prepend=0).tolist() == [3, 3, 1]


@given(lengths=st.lists(st.integers(1, 30), max_size=40), batch_tokens=st.integers(1, 90))
def test_sequences_of_like_length_are_read_together(lengths: list[int], batch_tokens: int) -> None:
    batches = [places.tolist() for places in by_length(np.array(lengths, dtype=np.int64), batch_tokens)]
    flat = [place for places in batches for place in places]
    assert flat == sorted(range(len(lengths)), key=lambda place: lengths[place])
    longest = max(lengths, default=0)
    assert all(0 < len(places) * lengths[places[-1]] <= max(batch_tokens, longest) for places in batches)


def test_multi30k_is_padded_little(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "multi30k"
    spec = DataSpec({"source": str(folder / "train.en"), "target": str(folder / "train.de")})
    texts = (text for record in read(spec) for text in record.fields.values())
    tokenizer = Tokenizer.train(texts, TokenizerConfig("bpe", 10_000))
    corpus = prepare(read(spec), dict.fromkeys(("source", "target"), TextColumn(tokenizer)), tmp_path / "c")
    stream = BatchStream(corpus, TokenBudget(4096), seed=1)
    for epoch in range(2):
        shares = stream.padding_share(epoch)
        assert max(shares.values()) < 0.10, shares
    batches = [stream.at(Position(0, index)) for index in range(stream.num_batches(0))]
    measured = 1 - sum(b.num_tokens("source") for b in batches) / sum(b.source.values.numel() for b in batches)
    assert measured == pytest.approx(stream.padding_share(0)["source"])


def test_a_million_sentences_are_cut_in_seconds() -> None:
    chance = np.random.default_rng(7)
    source = np.minimum(chance.poisson(20, 1_000_003) + 2, 200)
    target = np.minimum(source + chance.poisson(5, len(source)), 220)
    stream = BatchStream(_Lengths(source=source, target=target), TokenBudget(4096), seed=1)  # type: ignore[arg-type]
    start = time.perf_counter()
    stream.batches(0)
    assert time.perf_counter() - start < 8  # half a second on an idle core
    assert max(stream.padding_share(0).values()) < 0.1


def test_mistakes_are_named(corpus_of: CorpusOf) -> None:
    corpus = corpus_of(source=[5, 31, 7], target=[3, 3, 3])
    with pytest.raises(
        DataError, match=r"1 sentences exceed batch_tokens 30 .*record 1 has 31 tokens.*raise batch_tok"
    ):
        BatchStream(corpus, TokenBudget(30), seed=1)
    with pytest.raises(ConfigError, match="seed is -1"):
        BatchStream(corpus, TokenBudget(31), seed=-1)
    with pytest.raises(
        ConfigError, match=r"batch_tokens is 0.*; max_sentences is 0.*; batch_multiple is 0.*length_noise"
    ):
        TokenBudget(0, 0, 0, 2.0)
    stream = BatchStream(corpus, TokenBudget(31), seed=1)
    with pytest.raises(IndexError, match="batch 99 of epoch 0"):
        stream.at(Position(0, 99))
