"""A tokenizer of any kind, chosen by its configuration or by what was kept of it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.inputs.words import WordTokenizer, WordTokenizerConfig

AnyTokenizer = Tokenizer | WordTokenizer
AnyTokenizerConfig = TokenizerConfig | WordTokenizerConfig


def train_tokenizer(texts: Iterable[str], config: AnyTokenizerConfig) -> AnyTokenizer:
    """The tokenizer that `config` describes, learnt from `texts`. Raises: as each kind's own `train`."""
    if config.kind == "words":
        return WordTokenizer.train(texts, config)
    return Tokenizer.train(texts, config)


def tokenizer_from_json(content: str, *, name: str = "tokenizer") -> AnyTokenizer:
    """The tokenizer of either kind that `to_json` described. Raises: ModelFileError."""
    try:
        kind = json.loads(content)["config"]["kind"]
    except (ValueError, KeyError, TypeError):
        kind = None  # damaged, as either kind says in its own words
    return (WordTokenizer if kind == "words" else Tokenizer).from_json(content, name=name)
