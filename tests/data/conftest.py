"""Small corpora and tokenizers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from regard.data.columns import TextColumn
from regard.data.corpus import Corpus, prepare
from regard.data.records import Origin, Record
from regard.inputs.text import Tokenizer, TokenizerConfig


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A tokenizer without merges: every byte is a token, so that lengths can be foretold."""
    return Tokenizer.train(["a"], TokenizerConfig("bpe", 260))


@pytest.fixture
def corpus_of(tmp_path: Path, byte_tokenizer: Tokenizer) -> Callable[..., Corpus]:
    """Makes a corpus whose records have the given token lengths (3 or more: space, letter, end), by role."""
    made: list[None] = []

    def make(**lengths: Sequence[int]) -> Corpus:
        rows = zip(*lengths.values(), strict=True)
        records = (
            Record({role: "x" * (n - 2) for role, n in zip(lengths, row, strict=True)}, Origin("made", number))
            for number, row in enumerate(rows, start=1)
        )
        made.append(None)
        corpus = prepare(records, dict.fromkeys(lengths, TextColumn(byte_tokenizer)), tmp_path / f"corpus{len(made)}")
        for role, wanted in lengths.items():
            assert np.array_equal(corpus.lengths(role), wanted)
        return corpus

    return make
