"""What a command that answers input by input prints, and what it leaves: lines, error lines, attention, its status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from regard.cli.attention_file import write_attention
from regard.cli.inputs import BadInput

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord


class Hypothesis(Protocol):
    """One output of a search."""

    @property
    def text(self) -> str: ...

    @property
    def score(self) -> float: ...


class Answer(Hypothesis, Protocol):
    """The best output for an input, with the others that were asked for."""

    @property
    def alternatives(self) -> Sequence[Hypothesis]: ...

    @property
    def attention(self) -> AttentionRecord | None: ...

    def to_json(self) -> dict[str, Any]: ...


def one_line(text: str) -> str:
    """The text without line breaks, since an output has a line."""
    return text.replace("\r", " ").replace("\n", " ")


def ranked(found: Answer, number: int, *, as_json: bool, num_best: int, before: str = "") -> list[str]:
    """The lines of one input: its output, or all of them with number and score.

    number: of the input, from 1. before: what stands before every output.
    """
    if as_json:
        return [json.dumps(found.to_json(), ensure_ascii=False)]
    if num_best == 1:
        return [one_line(before + found.text)]
    return [f"{number}\t{one.score:.4f}\t{one_line(before + one.text)}" for one in (found, *found.alternatives)]


def bad_lines(bad: BadInput, number: int, *, as_json: bool, num_best: int) -> list[str]:
    """What keeps the place of an input that cannot be used."""
    if as_json:
        return [json.dumps({"error": bad.message}, ensure_ascii=False)]
    if not bad.is_line:
        return []
    return [f"{number}\t\t"] if num_best > 1 else [""]


class Answers:
    """Prints answers as they come; reports bad inputs and goes on; keeps attention until all are there."""

    def __init__(self, *, attention: Path | None, as_json: bool = False, num_best: int = 1) -> None:
        """attention: the file to write in the end; None for none."""
        self.records: list[AttentionRecord] = []
        self._path = attention
        self._as_json, self._num_best = as_json, num_best
        self._all_good = True

    def add(self, found: Answer | BadInput, number: int) -> None:
        """An input's answer, or what is wrong with it. number: of the input, from 1."""
        if isinstance(found, BadInput):
            self.bad(found, number)
        else:
            lines = ranked(found, number, as_json=self._as_json, num_best=self._num_best)
            self.good(lines, found.attention)

    def good(self, lines: Iterable[str], *records: AttentionRecord | None) -> None:
        """An input's lines, and what was attended to."""
        self.records += [record for record in records if record is not None]
        for line in lines:
            typer.echo(line)

    def bad(self, bad: BadInput, number: int = 1, lines: Iterable[str] | None = None) -> None:
        """lines: what is printed in its place, where that is not the usual."""
        self._all_good = False
        typer.echo(f"regard: error: {bad.message}", err=True)
        if lines is None:
            lines = bad_lines(bad, number, as_json=self._as_json, num_best=self._num_best)
        for line in lines:
            typer.echo(line)

    def finish(self, nothing: str, write: Callable[[list[AttentionRecord], Path], object] | None = None) -> None:
        """Writes the attention. nothing, write: as for `write_attention`.

        Raises: typer.Exit with status 2 when an input was bad; ConfigError when there is no attention to write.
        """
        if self._path is not None:
            write_attention(self.records, self._path, nothing, write=write)
        if not self._all_good:
            raise typer.Exit(2)
