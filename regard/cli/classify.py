"""`regard classify`: texts or pictures in, labels out, a line each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli import options as opt
from regard.cli.answers import Answers
from regard.cli.attention_file import check_attention_path
from regard.cli.inputs import BadInput, check_files, files_at_once, input_lines, num_inputs
from regard.errors import ConfigError

if TYPE_CHECKING:
    from regard.tasks.classify.labeller import Labeller
    from regard.tasks.classify.picture_labeller import PictureLabeller
    from regard.tasks.classify.result import Classification

LINES_AT_ONCE = 1000  # classified before the next are read and these are printed
PICTURES_AT_ONCE = 64  # likewise
MOST_SHOWN = 5  # labels a line; --json has all


def classify(
    model: opt.Model,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help='Texts, of pairs with a tab between; "-" reads standard input, a line each. Of a model that '
            'classifies pictures: files; "-" reads one.'
        ),
    ] = None,
    file: opt.TextFiles = None,
    attention: opt.AttentionPath = None,
    as_json: opt.AsJson = False,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "float32",
) -> None:
    """Tell the label of texts, or of pictures, by a trained classifier, with the probability of each label.

    An empty line, and one that is not UTF-8, is reported and the rest is done; an empty line, or {"error": ...} with
    --json, keeps its place, and the exit status is 2.
    """
    check_attention_path(attention, num_inputs=num_inputs(texts or [], file or []))
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
    answers = Answers(attention=attention, as_json=as_json)
    for found in told:
        if isinstance(found, BadInput):
            answers.bad(found)
        else:
            line = json.dumps(found.to_json(), ensure_ascii=False) if as_json else _line(found)
            answers.good([line], found.attention)
    answers.finish("attention behind a label: no text, or a model that pools without any")


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
    check_files(texts)
    for part in files_at_once(texts, PICTURES_AT_ONCE):
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
