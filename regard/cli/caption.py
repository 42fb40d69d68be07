"""`regard caption`: pictures in, captions out, a line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.errors import ConfigError

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord
    from regard.decoding.options import DecodingOptions
    from regard.inputs.pictures import PictureError
    from regard.tasks.caption.captioner import Captioner
    from regard.tasks.caption.result import Caption

ENDINGS = (".html", ".png", ".svg", ".jsonl", ".safetensors")
PICTURES_AT_ONCE = 32  # described before the next are read and these are printed


def caption(
    model: Annotated[Path, typer.Argument(help="Model directory, RUN/model.")],
    pictures: Annotated[
        list[str], typer.Argument(help='Picture files; "-" reads one file from standard input.', show_default=False)
    ],
    beam_size: Annotated[int | None, typer.Option(help="Live hypotheses; 1 is greedy.")] = None,
    num_best: Annotated[
        int | None, typer.Option(help="Captions of each picture, printed as: number of the picture, score, caption.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw at random in place of searching.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; below 1 sharpens.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that hold this mass.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Exponent; 1 ranks by the average a token.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of one caption.")] = None,
    attention: Annotated[
        Path | None, typer.Option(help=f"Write where it looked: {' '.join(ENDINGS)} (the last for one picture).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each picture.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
) -> None:
    """Describe pictures (JPEG, PNG, WebP, TIFF) with a trained model.

    A file that gives no picture is reported and the rest is done; an empty line, or {"error": ...} with --json, keeps
    its place, and the exit status is 2.
    """
    _check_attention(attention, len(pictures))
    from regard.tasks.caption.captioner import Captioner
    from regard.tasks.load import load

    captioner = load(model, device=device, dtype=dtype)
    if not isinstance(captioner, Captioner):
        raise ConfigError(f"{model}: not a captioning model; train one with a recipe whose task is caption")
    changes: dict[str, Any] = {
        "beam_size": beam_size,
        "num_best": num_best,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "length_penalty": length_penalty,
        "max_length": max_length,
    }
    if sample:
        changes["sample"] = True
    options = captioner.options(**{name: value for name, value in changes.items() if value is not None})
    records: list[AttentionRecord] = []
    all_good = True
    for number, found in enumerate(_captions(captioner, pictures, options, attention=attention is not None), 1):
        if isinstance(found, Exception):
            all_good = False
            typer.echo(f"regard: error: {found}", err=True)
        elif found.attention is not None:
            records.append(found.attention)
        for line in _printed(found, number, as_json=as_json, num_best=options.num_best):
            typer.echo(line)
    if attention is not None:
        _write_attention(records, attention)
    if not all_good:
        raise typer.Exit(2)


def _captions(
    captioner: Captioner, pictures: Sequence[str], options: DecodingOptions, *, attention: bool
) -> Iterator[Caption | PictureError]:
    """One item a picture, in their order, described PICTURES_AT_ONCE at a time."""
    for begin in range(0, len(pictures), PICTURES_AT_ONCE):
        part = [
            sys.stdin.buffer.read() if name == "-" else Path(name)
            for name in pictures[begin : begin + PICTURES_AT_ONCE]
        ]
        yield from captioner.try_captions(part, options, attention=attention, first_number=begin)


def _printed(found: Caption | PictureError, number: int, *, as_json: bool, num_best: int) -> list[str]:
    """The lines of one picture. number: its place among the pictures, from 1."""
    if isinstance(found, Exception):
        if as_json:
            return [json.dumps({"error": str(found)}, ensure_ascii=False)]
        return [f"{number}\t\t"] if num_best > 1 else [""]
    if as_json:
        return [json.dumps(found.to_json(), ensure_ascii=False)]
    if num_best == 1:
        return [_one_line(found.text)]
    return [f"{number}\t{one.score:.4f}\t{_one_line(one.text)}" for one in (found, *found.alternatives)]


def _one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")


def _check_attention(path: Path | None, num_pictures: int) -> None:
    """Refuses before anything is loaded what would fail after everything is described."""
    if path is None:
        return
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--attention {path}: the ending says the kind of file; known: {', '.join(ENDINGS)}")
    if path.suffix == ".safetensors" and num_pictures > 1:
        raise ConfigError(f"--attention {path}: holds one picture's attention, received {num_pictures}; give one")
    if not path.parent.is_dir():
        raise ConfigError(f"--attention {path}: no folder {path.parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"--attention {path}: is a folder; give the path of a file")


def _write_attention(records: list[AttentionRecord], path: Path) -> None:
    if not records:
        raise ConfigError(f"--attention {path}: not written, there was no picture to describe; give one")
    from regard.attention.records.record import WRITERS

    if path.suffix == ".safetensors":
        records[0].save(path)
    else:
        WRITERS[path.suffix](records, path)
