"""The vocabulary of a run: learnt once from its training text, kept in the run directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from regard.data.readers import read
from regard.errors import ConfigError
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.inputs.tokenizers import AnyTokenizer, AnyTokenizerConfig, train_tokenizer
from regard.inputs.words import WordTokenizer
from regard.tasks.sections import Data
from regard.training.monitor import Watcher

UNITS = {"words": "words", "whole-words": "words", "characters": "characters"}  # what a kind of tokenizer learns


def kept_tokenizer(
    data: Data, roles: Sequence[str], config: TokenizerConfig, key: str, path: Path, watcher: Watcher
) -> Tokenizer:
    """The tokenizer at `path`, trained on the text of `roles` where there is none. key: where the recipe has `config`.

    Raises: DataError for data that cannot be read; ConfigError, naming the key, for a vocabulary that cannot be learnt.
    """
    tokenizer = kept_any_tokenizer(data, roles, config, key, path, watcher)
    assert isinstance(tokenizer, Tokenizer), "as its configuration says"
    return tokenizer


def kept_any_tokenizer(
    data: Data, roles: Sequence[str], config: AnyTokenizerConfig, key: str, path: Path, watcher: Watcher
) -> AnyTokenizer:
    """The same, also of whole words."""
    if not path.is_file():
        texts = _texts(data, roles)  # a file that cannot be read is told here, before any learning
        path.parent.mkdir(parents=True, exist_ok=True)
        unit = UNITS.get(config.kind, "subwords")
        watcher.said(f"learning a vocabulary of {config.vocab_size:,} {unit} from {' and '.join(roles)}")
        try:
            train_tokenizer(texts, config).save(path)
        except ConfigError as error:
            raise ConfigError(str(error).replace("tokenizer.vocab_size", f"{key}.vocab_size")) from None
    return (WordTokenizer if config.kind == "words" else Tokenizer).load(path)


def _texts(data: Data, roles: Iterable[str]) -> Iterator[str]:
    """The training text of `roles`. Raises: DataError at once for a missing or empty file."""
    roles = tuple(roles)
    records = read(data.train, roles, on_bad=data.on_bad)
    return (record.fields[role] for record in records for role in roles)
