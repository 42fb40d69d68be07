"""`regard translate`: text in, translations out, a line each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli.inputs import input_lines
from regard.errors import ConfigError, RegardError

if TYPE_CHECKING:
    from regard.tasks.translate.result import Translation

ENDINGS = (".html", ".png", ".svg", ".jsonl")
LINES_AT_ONCE = 1000  # translated before the next are printed


def translate(
    model: Annotated[Path, typer.Argument(help="Model directory, RUN/model.")],
    texts: Annotated[list[str] | None, typer.Argument(help='Texts; "-" reads standard input, a line each.')] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text file, a line each; may be given again.")] = None,
    beam_size: Annotated[int | None, typer.Option(help="Live hypotheses; 1 is greedy.")] = None,
    num_best: Annotated[int | None, typer.Option(help="Translations printed for each text.")] = None,
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
    """Translate texts with a trained model. Long texts are translated sentence by sentence and joined."""
    if attention is not None and attention.suffix not in ENDINGS:
        raise ConfigError(f"--attention {attention}: the ending says the kind of file; known: {', '.join(ENDINGS)}")
    if attention is not None and not attention.parent.is_dir():
        raise ConfigError(f"--attention {attention}: no folder {attention.parent}; make it first")
    from regard.tasks.load import load
    from regard.tasks.translate.translator import Translator

    translator = load(model, device=device, dtype=dtype)
    if not isinstance(translator, Translator):
        raise ConfigError(f"{model}: not a translation model; train one with a recipe whose task is translate")
    changes: dict[str, Any] = {
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
    changes = {name: value for name, value in changes.items() if value is not None}
    options = translator.config.decoding
    if sample:
        options = replace(options, sample=True, beam_size=1)
    elif num_best is not None and beam_size is None:
        changes["beam_size"] = max(num_best, options.beam_size)
    options = replace(options, **changes)
    options.check()
    lines = input_lines(texts or [], file or [])
    records = []
    for begin in range(0, len(lines), LINES_AT_ONCE):
        found = translator.translate(lines[begin : begin + LINES_AT_ONCE], options, attention=attention is not None)
        for translation in found:
            _print(translation, as_json=as_json, num_best=options.num_best)
        records += [translation.attention for translation in found if translation.attention is not None]
    if attention is not None:
        if not records:
            raise RegardError(f"--attention {attention}: not written, every text was empty")
        from regard.attention.record import WRITERS

        WRITERS[attention.suffix](records, attention)


def _print(translation: Translation, *, as_json: bool, num_best: int) -> None:
    if as_json:
        typer.echo(json.dumps(translation.to_json(), ensure_ascii=False))
    elif num_best == 1:
        typer.echo(translation.text)
    else:
        for one in (translation, *translation.alternatives):
            typer.echo(f"{one.score:.4f}\t{one.text}")
