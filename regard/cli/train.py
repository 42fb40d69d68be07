"""`regard train`: a recipe becomes a model; the same command again resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from regard.cli.progress import TrainingProgress
from regard.errors import ConfigError
from regard.training.launch import is_first, of_this_machine


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, see the recipes/ folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values in place of the recipe's.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run directory; runs/<recipe's name> unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the scores.")] = False,
) -> None:
    """Train a model from a recipe. The same command again resumes where the run was stopped or killed.

    Started by torchrun, several processes train one model: torchrun --nproc-per-node 2 -m regard train RECIPE
    """
    from regard.tasks.jobs import task_of
    from regard.tasks.recipe import read_yaml, validated, with_overrides
    from regard.tasks.run import train as train_run

    try:
        values = with_overrides(read_yaml(recipe), overrides or [])
    except ConfigError as error:
        raise of_this_machine(error) from None  # another machine may have another recipe, or none
    checked = validated(task_of(values.get("task"), str(recipe)).recipe, values, str(recipe))
    folder = run or Path("runs") / recipe.stem
    if not is_first():  # one of several processes, of which the first one prints
        train_run(checked, folder, origin=str(recipe))
        return
    with TrainingProgress() as watcher:
        result = train_run(checked, folder, origin=str(recipe), watcher=watcher)
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
    else:
        for line in summary(result, folder):
            typer.echo(line)


def summary(result: dict[str, Any], folder: Path) -> list[str]:
    """What a finished run came to, as lines."""
    validation = result["validation"]
    lines = [
        f"{result['steps']:,} steps, {result['parameters']:,} parameters; kept: {validation['chosen']} "
        f"(validation {max(validation['candidates'].values()):.4g})"
    ]
    for scores in result["test"]:
        scoring = f"{scores['scoring']} " if "scoring" in scores else ""
        for name, metric in scores["metrics"].items():
            low, high = metric["interval"]
            digits = 2 if high >= 10 else 4  # points of 100, or shares and nats
            interval = f"[{low:.{digits}f}, {high:.{digits}f}]"
            lines.append(f"test {scoring}{name} {metric['value']:.{digits}f} {interval}  {metric['signature']}")
    lines.append(f"model: {folder / 'model'}")
    return lines
