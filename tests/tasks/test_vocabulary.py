"""The vocabulary kept in a run directory, and what becomes of a damaged one."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard.errors import ModelFileError
from regard.inputs.text import TokenizerConfig
from regard.inputs.tokenizers import AnyTokenizerConfig
from regard.inputs.words import WordTokenizerConfig
from regard.tasks.vocabulary import kept_any_tokenizer
from regard.training.monitor import Silent


@pytest.mark.parametrize("config", [WordTokenizerConfig("words", 9), TokenizerConfig("bpe", 270)], ids=["words", "bpe"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b'{"format_version": 1, "config": [], "words": []}'])
def test_a_damaged_one_is_named(tmp_path: Path, config: AnyTokenizerConfig, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: damaged tokenizer"):
        kept_any_tokenizer(None, ("source",), config, "tokenizer", path, Silent())  # type: ignore[arg-type]
