"""`regard evaluate`: scores with signatures and intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.errors import ConfigError
from regard.tasks.translate.scorings import SCORINGS


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model directory, RUN/model.")],
    data: Annotated[
        str | None,
        typer.Option(help="What to score on: a file, SOURCE,TARGET text files, or a YAML mapping; else the recipe's."),
    ] = None,
    scoring: Annotated[
        str, typer.Option(help="sacrebleu, or moses-lowercase: normalised, lowercased, tokenised on both sides.")
    ] = "sacrebleu",
    beam_size: Annotated[int | None, typer.Option(help="Live hypotheses; the recipe's unless given.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Exponent; the recipe's unless given.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of one translation.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the translations here, a line each.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
) -> None:
    """Translate a test set and print BLEU and chrF with sacreBLEU's signatures and bootstrap intervals."""
    chosen = next((known for known in SCORINGS if known == scoring), None)
    if chosen is None:
        raise ConfigError(f"--scoring {scoring}: expected one of {', '.join(SCORINGS)}")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        problem = "is a folder" if output.is_dir() else f"no folder {output.parent}"
        raise ConfigError(f"--output {output}: {problem}; give the path of a file in a folder that exists")
    from regard.tasks.load import load
    from regard.tasks.run_directory import write_text
    from regard.tasks.translate.evaluation import evaluate as evaluate_translation
    from regard.tasks.translate.evaluation_data import evaluation_pairs
    from regard.tasks.translate.translator import Translator

    translator = load(model, device=device, dtype=dtype)
    if not isinstance(translator, Translator):
        raise ConfigError(f"{model}: not a translation model")
    pairs = evaluation_pairs(translator, data)
    changes = {"beam_size": beam_size, "length_penalty": length_penalty, "max_length": max_length}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    options = replace(translator.config.decoding, **given)
    options.check()
    typer.echo(f"translating {len(pairs):,} sentences", err=True)
    [found] = evaluate_translation(translator, pairs, [chosen], options=options)
    if output is not None:
        lines = (text.replace("\r", " ").replace("\n", " ") for text in found.outputs)
        write_text(output, "".join(line + "\n" for line in lines))
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    for line in found.lines():
        typer.echo(line)
