"""`regard classify`: texts or pictures in, labels out, a line each."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli.attention_file import check_attention_path, write_attention
from regard.cli.inputs import BadInput, input_lines
from regard.errors import ConfigError

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord
    from regard.tasks.classify.labeller import Labeller
    from regard.tasks.classify.picture_labeller import PictureLabeller
    from regard.tasks.classify.result import Classification

LINES_AT_ONCE = 1000  # classified before the next are read and these are printed
PICTURES_AT_ONCE = 64  # likewise
MOST_SHOWN = 5  # labels a line; --json has all


def classify(
    model: Annotated[Path, typer.Argument(help="Model directory, RUN/model.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help='Texts, of pairs with a tab between; "-" reads standard input, a line each. Of a model that '
            'classifies pictures: files; "-" reads one.'
        ),
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text file, a line each; may be given again.")] = None,
    attention: Annotated[
        Path | None, typer.Option(help="Write what stands behind the labels: .html .png .svg .jsonl.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each text.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
) -> None:
    """Tell the label of texts, or of pictures, by a trained classifier, with the probability of each label.

    An empty line, and one that is not UTF-8, is reported and the rest is done; an empty line, or {"error": ...} with
    --json, keeps its place, and the exit status is 2.
    """
    check_attention_path(attention)
    from regard.tasks.classify.labeller import Labeller
    from regard.tasks.classify.picture_labeller import PictureLabeller
    from regard.tasks.load import load

    labeller = load(model, device=device, dtype=dtype)
    if isinstance(labeller, PictureLabeller):
        told = _of_pictures(labeller, texts or [], file or [], attention=attention is not None)
    elif isinstance(labeller, Labeller):
        told = _told(labeller, input_lines(texts or [], file or []), attention=attention is not None)
    else:
        raise ConfigError(f"{model}: no classifier; train one with a recipe whose task is classify")
    all_good = True
    records: list[AttentionRecord] = []
    for found in told:
        if isinstance(found, BadInput):
            all_good = False
            typer.echo(f"regard: error: {found.message}", err=True)
            if as_json:
                typer.echo(json.dumps({"error": found.message}, ensure_ascii=False))
            elif found.is_line:
                typer.echo()
            continue
        if found.attention is not None:
            records.append(found.attention)
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False) if as_json else _line(found))
    if attention is not None:
        write_attention(records, attention, "attention behind a label: no text, or a model that pools without any")
    if not all_good:
        raise typer.Exit(2)


def _told(
    labeller: Labeller, lines: Iterator[str | BadInput], *, attention: bool
) -> Iterator[Classification | BadInput]:
    """One item an input, in their order."""
    checked = (_checked(line, number, labeller) for number, line in enumerate(lines, start=1))
    while part := list(itertools.islice(checked, LINES_AT_ONCE)):
        good = [line for line in part if not isinstance(line, BadInput)]
        done = iter(labeller.classify(good, attention=attention))
        for line in part:
            yield line if isinstance(line, BadInput) else next(done)


def _of_pictures(
    labeller: PictureLabeller, texts: Sequence[str], files: Sequence[Path], *, attention: bool
) -> Iterator[Classification | BadInput]:
    """One item a picture, in their order."""
    if not texts or files:
        raise ConfigError("this model classifies pictures: give their paths, without --file")
    for begin in range(0, len(texts), PICTURES_AT_ONCE):
        part = [
            sys.stdin.buffer.read() if name == "-" else Path(name) for name in texts[begin : begin + PICTURES_AT_ONCE]
        ]
        for found in labeller.try_classify(part, attention=attention):
            yield BadInput(str(found)) if isinstance(found, Exception) else found


def _checked(line: str | BadInput, number: int, labeller: Labeller) -> str | tuple[str, str] | BadInput:
    if isinstance(line, BadInput):
        return line
    source: str | tuple[str, str] = line
    if labeller.config.pairs and line.strip():
        first, tab, second = line.partition("\t")
        if not tab or "\t" in second:
            return BadInput(f"text {number}: this model classifies pairs; give both texts with one tab between")
        source = first, second
    elif not line.strip():
        return BadInput(f"text {number}: is empty, expected text; leave it out")
    reason = labeller.refuses(source)
    return source if reason is None else BadInput(f"text {number}: {reason}")


def _line(found: Classification) -> str:
    """The label, and the likeliest labels with their probabilities."""
    shares = list(found.probabilities.items())[:MOST_SHOWN]
    return f"{found.label}\t" + "\t".join(f"{label} {value:.4f}" for label, value in shares)
