"""The option --attention of commands, and --out of `look`: where a command writes what its model attended to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.errors import ConfigError

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord

ENDINGS = (".html", ".png", ".svg", ".jsonl")
OF_ONE_RECORD = (".safetensors",)  # kinds of file that hold one record, whole


def check_attention_path(path: Path | None, option: str = "--attention", *, more: Sequence[str] = ()) -> None:
    """Refuses before anything is loaded what would fail after everything is done. more: endings known besides."""
    if path is None:
        return
    known = (*ENDINGS, *more)
    if path.suffix not in known:
        raise ConfigError(f"{option} {path}: the ending says the kind of file; known: {', '.join(known)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: no folder {path.parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; give the path of a file")


def write_attention(records: Sequence[AttentionRecord], path: Path, nothing: str, option: str = "--attention") -> None:
    """nothing: what there was none of, where there is no record, as in "text to translate"."""
    if not records:
        raise ConfigError(f"{option} {path}: not written, there was no {nothing}; give one")
    if path.suffix in OF_ONE_RECORD:
        if len(records) > 1:
            raise ConfigError(f"{option} {path}: holds one record, there are {len(records)}; give one input, or .html")
        records[0].save(path)
        return
    from regard.attention.records.record import WRITERS

    WRITERS[path.suffix](list(records), path)
