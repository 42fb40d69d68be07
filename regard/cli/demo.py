"""`regard demo`: no data, no network; trains, scores, shows attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regard.cli.progress import TrainingProgress
from regard.errors import ConfigError
from regard.tasks.demos import DEMOS, demo_of


def demo(
    task: Annotated[str, typer.Argument(help=f"Which job to show: {', '.join(DEMOS)}.")] = DEMOS[0],
    out: Annotated[Path | None, typer.Option(help="Folder for the run, the page and the picture.")] = None,
    seed: Annotated[int, typer.Option(help="Of the corpus, the weights and the order.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Fewer updates, for a quick look with worse figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a small model from nothing on data that it makes itself, score it, and show what it attends to."""
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps is {steps}, expected 1 or more")
    chosen = demo_of(task)
    with TrainingProgress() as watcher:
        result = chosen(out or Path("runs") / f"demo-{task}", seed=seed, num_steps=steps, watcher=watcher)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    for line in result.lines():
        typer.echo(line)
