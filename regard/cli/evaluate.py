"""`regard evaluate`: scores with signatures and intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regard.cli import options as opt
from regard.errors import ConfigError

# What a task may be told in place of its recipe's settings; one that has no meaning for it is refused.
SETTINGS = (
    *("scoring", "beam_size", "length_penalty", "max_length"),
    *("ctc_weight", "language_model", "language_weight", "length_reward"),
)


def evaluate(
    model: opt.Model,
    data: Annotated[
        str | None,
        typer.Option(help="What to score on: a file, SOURCE,TARGET text files, or a YAML mapping; else the recipe's."),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            help="Of translations: sacrebleu, or moses-lowercase (normalised, lowercased, tokenised on both sides)."
        ),
    ] = None,
    beam_size: Annotated[int | None, typer.Option(help="Live hypotheses; the recipe's unless given.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Exponent; the recipe's unless given.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of one output.")] = None,
    ctc_weight: opt.CtcWeight = None,
    language_model: opt.LanguageModelPath = None,
    language_weight: opt.LanguageWeight = None,
    length_reward: opt.LengthReward = None,
    output: Annotated[Path | None, typer.Option(help="Write the outputs here, a line each.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "float32",
) -> None:
    """Run a model on a test set and print its scores, with signatures and bootstrap intervals."""
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        problem = "is a folder" if output.is_dir() else f"no folder {output.parent}"
        raise ConfigError(f"--output {output}: {problem}; give the path of a file in a folder that exists")
    from regard.tasks.jobs import TASKS
    from regard.tasks.load import load
    from regard.tasks.model_directory import read_config
    from regard.tasks.run_directory import write_text

    loaded = load(model, device=device, dtype=dtype)
    options = opt.given(locals(), SETTINGS)
    task = TASKS[read_config(model)["task"]]()
    found, outputs = task.evaluate(loaded, data, options, lambda message: typer.echo(message, err=True))
    if output is not None:
        lines = (text.replace("\r", " ").replace("\n", " ") for text in outputs)
        write_text(output, "".join(line + "\n" for line in lines))
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    for line in found.lines():
        typer.echo(line)
