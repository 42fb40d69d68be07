"""The option --attention of commands, and --out of `look`: where a command writes what its model attended to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.errors import ConfigError

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord

OF_ONE_RECORD = ".safetensors"  # the kind of file that holds one record, whole
ENDINGS = (".html", ".png", ".svg", ".jsonl", OF_ONE_RECORD)


def check_attention_path(path: Path | None, option: str = "--attention", *, num_inputs: int | None = None) -> None:
    """Refuses before anything is loaded what would fail after everything is done.

    num_inputs: how many there are, where that is known before they are read.
    """
    if path is None:
        return
    if path.suffix not in ENDINGS:
        raise ConfigError(f"{option} {path}: the ending says the kind of file; known: {', '.join(ENDINGS)}")
    if path.suffix == OF_ONE_RECORD and num_inputs is not None and num_inputs > 1:
        raise ConfigError(f"{option} {path}: holds one record, received {num_inputs} inputs; give one input, or .html")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: no folder {path.parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; give the path of a file")


def write_attention(
    records: Sequence[AttentionRecord],
    path: Path,
    nothing: str,
    option: str = "--attention",
    *,
    write: Callable[[list[AttentionRecord], Path], object] | None = None,
) -> None:
    """nothing: what there was none of, where there is no record, as in "text to translate".

    write: makes pages, pictures and lines, where the task has a way of its own.
    """
    if not records:
        raise ConfigError(f"{option} {path}: not written, there was no {nothing}; give one")
    if path.suffix == OF_ONE_RECORD:
        if len(records) > 1:
            raise ConfigError(f"{option} {path}: holds one record, there are {len(records)}; give one input, or .html")
        records[0].save(path)
        return
    if write is None:
        from regard.attention.records.record import WRITERS

        write = WRITERS[path.suffix]
    write(list(records), path)
