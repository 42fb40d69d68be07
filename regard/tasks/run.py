"""A run from recipe to scored model, whatever its task: the run directory, its processes, training, the result.

Several processes under torchrun run it together. The first one holds the run directory, prepares, scores and writes;
the others wait where they need what it makes, and take part in training.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.data.corpus import Corpus
from regard.data.fetch import Progress
from regard.errors import ConfigError, RegardError, TrainingError
from regard.tasks import run_directory
from regard.tasks.job import Job, batch_stream
from regard.tasks.jobs import task_of
from regard.tasks.recipe import differences, plain
from regard.tasks.sections import AutoBudget, Recipe, with_root
from regard.training.batch_budget import Found, find_batch_tokens, kept_batch_tokens
from regard.training.launch import num_on_this_machine
from regard.training.loop import Summary, Trainer
from regard.training.monitor import Silent, Watcher
from regard.training.precision import resolved_precision
from regard.training.processes import World, check_parts, opened

# What a run that never began may leave in its folder.
LEFTOVERS = {run_directory.LOCK, f"{run_directory.RECIPE}.unfinished"}


def train(recipe: Recipe, folder: Path, *, origin: str = "recipe", watcher: Watcher | None = None) -> dict[str, Any]:
    """Trains, or goes on with, the run in `folder`; returns its result (also in result.json).

    origin: the recipe's path, to which its paths are relative, or what else to name in errors. A finished run returns
    its result at once. Of several processes that torchrun has started, all call it and all return the result; the first
    one's watcher is told.
    Raises: any RegardError; the run directory is then usable by the same command, and by any other where the mistake
    was found before the first step.
    """
    with opened() as world:
        watcher = watcher if watcher is not None and world.is_first else Silent()
        _check_alike(recipe, origin, world)
        check_parts(recipe.training.accumulate, world)
        data = world.in_turn(lambda: with_root(recipe.data, Path(origin), _downloads_told(watcher)))
        recipe = recipe.model_copy(update={"data": data})
        with ExitStack() as held:
            is_new = world.first(lambda: _hold(held, recipe, folder, origin))
            _check_shared(folder, world)
            result = world.first(lambda: run_directory.read_result(folder))
            if result is not None:
                watcher.said(f"{folder}: this run has finished; its result follows")
                return result
            try:
                return _train(task_of(recipe.task).job(recipe, folder, watcher, world))
            except RegardError:
                # Where it failed before the first step there is nothing to resume.
                if world.is_first and is_new and not (folder / "metrics.jsonl").exists():
                    (folder / run_directory.RECIPE).unlink(missing_ok=True)
                    shutil.rmtree(folder / "data", ignore_errors=True)
                raise


def _hold(held: ExitStack, recipe: Recipe, folder: Path, origin: str) -> bool:
    """Takes the run directory until `held` ends; whether the run is a new one. Raises: ConfigError, TrainingError."""
    is_new = not (folder / run_directory.RECIPE).is_file()
    if is_new and folder.is_dir():
        foreign = sorted({path.name for path in folder.iterdir()} - LEFTOVERS)
        if foreign:
            remedy = "give a new or empty folder with --run"
            raise ConfigError(f"{folder}: holds {foreign[0]} and no {run_directory.RECIPE}, so it is no run; {remedy}")
    held.enter_context(run_directory.opened(folder, json.loads(json.dumps(plain(recipe))), origin))
    return is_new


def _check_alike(recipe: Recipe, origin: str, world: World) -> None:
    """Raises: ConfigError where this process, on another machine perhaps, has another recipe than the first one."""
    mine = json.loads(json.dumps(plain(recipe)))
    others = differences(world.first(lambda: mine), mine)
    if others:
        keys = ", ".join(f"`{key}`" for key in others)
        raise ConfigError(
            f"{origin}: not the recipe of process 1, it differs in {keys}; start all with the same recipe"
        )


def _check_shared(folder: Path, world: World) -> None:
    """Raises: TrainingError where this process does not see the folder that the first one holds."""
    if not (folder / run_directory.RECIPE).is_file():
        remedy = "give a --run on a disk that all machines of the run share"
        raise TrainingError(f"{folder}: holds the run of process 1 of {world.size}, which is not seen here; {remedy}")


def _train(job: Job[Any]) -> dict[str, Any]:
    recipe, folder, watcher, world = job.recipe, job.folder, job.watcher, job.world
    corpus = job.prepare()
    torch.manual_seed(recipe.seed)
    model = job.model()
    num_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    job.training = {
        "recipe": json.loads(json.dumps(plain(recipe))),
        "data": {
            "train": corpus.sha256,
            "records": len(corpus),
            **job.about_data(),
            "bad_records": {
                "train": corpus.description["bad_records"],
                **{part: report.to_record() for part, report in job.bad_records.items()},
            },
        },
        "parameters": num_parameters,
    }
    stream = job.stream(corpus, world.in_turn(lambda: _budget(job, model, corpus)))
    told = ", ".join(f"{role} {share:.1%}" for role, share in stream.padding_share(0).items())
    watcher.said(f"{num_parameters:,} parameters; {stream.num_batches(0)} batches an epoch; padding {told}")
    if world.size > 1:
        how = {"replicate": "each with all of the model", "shard": "each with a shard of the model"}
        watcher.said(f"{world.size} processes, {how[recipe.training.parallel]}")
    trainer = Trainer(
        model,
        stream,
        recipe.training,
        folder,
        objective=job.objective(),
        validate=job.validate,
        metric=recipe.validation.metric,
        seed=recipe.seed,
        keep_best=lambda trained: job.save(trained, None),
        watcher=watcher,
        real_queries=job.real_queries,
        workers=recipe.data.workers,
        world=world,
        device=world.device(),
    )
    began = time.monotonic()
    summary = trainer.run()
    seconds = time.monotonic() - began
    return world.first(lambda: _finished(job, model, summary, seconds))


def _budget(job: Job[Any], model: nn.Module, corpus: Corpus) -> Any:
    """The recipe's budget of a batch; for `auto` the one that was found when the run began, or is found now.

    Raises: ConfigError where it cannot be found.
    """
    recipe, world = job.recipe, job.world
    batch = recipe.data.batch
    if not isinstance(batch, AutoBudget):
        return batch

    def find() -> Found:
        if world.size > 1 and recipe.training.parallel == "shard":
            raise ConfigError(
                "data.batch.batch_tokens is auto, which is found with all of the model on one device, but"
                " training.parallel is shard; set data.batch.batch_tokens to a number"
            )
        device = world.device()
        job.watcher.said("looking for the number of tokens a batch")
        return find_batch_tokens(
            model,
            lambda batch_tokens: batch_stream(job, corpus, batch.of(batch_tokens)),
            job.objective(),
            # A picture has more rows, and its captions together more tokens, than data.max_tokens.
            smallest=max(recipe.data.max_tokens, *(int(corpus.lengths(role).max()) for role in job.roles)),
            dtype=resolved_precision(recipe.training.precision, device),
            device=device,
            processes=num_on_this_machine(),
        )

    return batch.of(kept_batch_tokens(job.folder / "data" / "batch_tokens.json", find, job.watcher.said))


def _finished(job: Job[Any], model: nn.Module, summary: Summary, seconds: float) -> dict[str, Any]:
    evaluations = job.evaluate(model)
    result = {
        "task": job.recipe.task,
        "steps": summary.step,
        "stopped_early": summary.stopped_early,
        "seconds_of_last_part": round(seconds, 1),  # of this process: a resumed run had earlier parts
        "parameters": job.training["parameters"],
        "validation": {"best_step": summary.best_step, "candidates": summary.candidates, "chosen": summary.chosen},
        "test": [evaluation.to_json() for evaluation in evaluations],
        "data": job.training["data"],
    }
    job.training = {**job.training, "result": result}
    job.save(model, evaluations)
    run_directory.write_result(job.folder, result)
    return result


def _downloads_told(watcher: Watcher) -> Progress:
    """Tells the watcher of each file that is fetched, once."""
    told: set[str] = set()

    def progress(name: str, received: int, size: int | None) -> None:
        if name not in told:
            told.add(name)
            watcher.said(f"fetching {name}" + ("" if size is None else f", {size / 1e6:.1f} MB"))

    return progress
