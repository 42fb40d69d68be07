"""The option --attention of commands: where a command writes what its model attended to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.errors import ConfigError

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord

ENDINGS = (".html", ".png", ".svg", ".jsonl")


def check_attention_path(path: Path | None) -> None:
    """Refuses before anything is loaded what would fail after everything is done."""
    if path is None:
        return
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--attention {path}: the ending says the kind of file; known: {', '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--attention {path}: no folder {path.parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"--attention {path}: is a folder; give the path of a file")


def write_attention(records: Sequence[AttentionRecord], path: Path, nothing: str) -> None:
    """nothing: what there was none of, where there is no record, as in "text to translate"."""
    if not records:
        raise ConfigError(f"--attention {path}: not written, there was no {nothing}; give one")
    from regard.attention.records.record import WRITERS

    WRITERS[path.suffix](list(records), path)
