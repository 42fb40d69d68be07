"""`regard translate`: text in, translations out, a line each."""

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
    from regard.decoding.options import DecodingOptions
    from regard.tasks.translate.result import Translation
    from regard.tasks.translate.translator import Translator

LINES_AT_ONCE = 1000  # translated before the next are read and these are printed


def translate(
    model: Annotated[Path, typer.Argument(help="Model directory, RUN/model.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help='Texts; "-" reads standard input, a line each; after "--" a text may begin with "-".'),
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text file, a line each; may be given again.")] = None,
    beam_size: Annotated[int | None, typer.Option(help="Live hypotheses; 1 is greedy.")] = None,
    num_best: Annotated[
        int | None, typer.Option(help="Translations of each text, printed as: number of the text, score, translation.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw at random in place of searching.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; below 1 sharpens.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that hold this mass.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Exponent; 1 ranks by the average a token.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of one translation.")] = None,
    no_repeat_ngram: Annotated[int | None, typer.Option(help="Forbid repeating this many tokens in a row.")] = None,
    attention: Annotated[Path | None, typer.Option(help="Write what was attended to: .html .png .svg .jsonl.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each text.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
) -> None:
    """Translate texts with a trained model. Texts of several sentences are translated sentence by sentence and joined.

    A line that is not UTF-8 is reported and the rest is done; an empty line, or {"error": ...} with --json, keeps its
    place, and the exit status is 2.
    """
    check_attention_path(attention)
    from regard.tasks.load import load
    from regard.tasks.translate.translator import Translator

    translator = load(model, device=device, dtype=dtype)
    if not isinstance(translator, Translator):
        raise ConfigError(f"{model}: not a translation model; train one with a recipe whose task is translate")
    changes = {
        "beam_size": beam_size,
        "num_best": num_best,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "length_penalty": length_penalty,
        "max_length": max_length,
        "no_repeat_ngram": no_repeat_ngram,
    }
    if sample:
        changes["sample"] = True
    options = translator.config.decoding.changed(
        **{name: value for name, value in changes.items() if value is not None}
    )
    all_good = True
    records: list[AttentionRecord] = []
    number = 0  # of the text, from 1
    for one in _translations(translator, texts or [], file or [], options, attention=attention is not None):
        number += not isinstance(one, BadInput) or one.is_line
        if isinstance(one, BadInput):
            all_good = False
            typer.echo(f"regard: error: {one.message}", err=True)
        elif one.attention is not None:
            records.append(one.attention)
        for line in _printed(one, number, as_json=as_json, num_best=options.num_best):
            typer.echo(line)
    if attention is not None:
        write_attention(records, attention, "text to translate")
    if not all_good:
        raise typer.Exit(2)


def _translations(
    translator: Translator, texts: Sequence[str], files: Sequence[Path], options: DecodingOptions, *, attention: bool
) -> Iterator[Translation | BadInput]:
    """One item an input, in their order; read and translated LINES_AT_ONCE at a time."""
    lines = input_lines(texts, files)
    # Whoever types wants each answer before typing on.
    at_once = 1 if "-" in texts and sys.stdin.isatty() else LINES_AT_ONCE
    first_number = 0  # of the inputs so far: a sample depends on its input's number, whatever is translated at once
    while part := list(itertools.islice(lines, at_once)):
        good = [line for line in part if isinstance(line, str)]
        done = iter(translator.translate(good, options, attention=attention, first_number=first_number))
        first_number += len(good)
        for line in part:
            yield line if isinstance(line, BadInput) else next(done)


def _printed(found: Translation | BadInput, number: int, *, as_json: bool, num_best: int) -> list[str]:
    """The lines of one input. number: its place among the inputs, from 1."""
    if isinstance(found, BadInput):
        if as_json:
            return [json.dumps({"error": found.message}, ensure_ascii=False)]
        return ([f"{number}\t\t"] if num_best > 1 else [""]) if found.is_line else []
    if as_json:
        return [json.dumps(found.to_json(), ensure_ascii=False)]
    if num_best == 1:
        return [_one_line(found.text)]
    return [f"{number}\t{one.score:.4f}\t{_one_line(one.text)}" for one in (found, *found.alternatives)]


def _one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")
