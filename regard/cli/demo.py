"""`regard demo`: no data, no network; trains, scores, shows attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regard.cli.progress import TrainingProgress
from regard.errors import ConfigError, suggestion

TASKS = ("translate",)


def demo(
    task: Annotated[str, typer.Argument(help="Which job to show: translate.")] = "translate",
    out: Annotated[Path | None, typer.Option(help="Folder for the run, the page and the picture.")] = None,
    seed: Annotated[int, typer.Option(help="Of the corpus, the weights and the order.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Fewer updates, for a quick look with worse figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a small model from nothing on generated text, score it, and show what it attends to."""
    if task not in TASKS:
        raise ConfigError(f"demo `{task}` is not known{suggestion(task, TASKS) or '; known: ' + ', '.join(TASKS)}")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps is {steps}, expected 1 or more")
    from regard.tasks.translate import demo as translate_demo

    folder = out or Path("runs") / f"demo-{task}"
    with TrainingProgress() as watcher:
        result = translate_demo.demo(
            folder, seed=seed, num_steps=translate_demo.NUM_STEPS if steps is None else steps, watcher=watcher
        )
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    for phrase, translation in result.examples:
        mark = "" if translation.text == phrase.target else f"   (expected: {phrase.target})"
        typer.echo(f"  {phrase.source}\n    -> {translation.text}{mark}")
    typer.echo(
        f"\nexactly right: {result.exact_match:.2%} of {result.num_held_out:,} held-out phrases\n"
        f"alignment of number words recovered: {result.alignment.accuracy:.2%} (chance {result.alignment.chance:.2%})\n"
        f"trained in {result.train_seconds:.0f} s\n\n"
        f"the attention, to look at: {result.page}\n                           {result.picture}\n"
        f'try: regard translate {folder / "run" / "model"} "we have counted forty-two books"'
    )
