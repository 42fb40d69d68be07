"""Notes what a training process is doing, in a mapped file that outlives it: benchmarks/kills.py reads it after a kill.

Python imports a module of this name when it starts, so that the command under test is `python -m regard train` itself.
Functions are wrapped as their modules are imported: the wrappers write one byte and change nothing else. (A thread that
looks at the main thread's stack instead has crashed Python 3.11.)
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# What a process is doing, by the number that its file holds.
PLACES = (
    "starting Python and importing",
    "preparing: reading text, building the model",
    "learning the vocabulary",
    "preparing the corpus",
    "starting and waiting for data workers",
    "an update's first batch, forward and backward",
    "an update's second batch, forward and backward",
    "clipping, changing the weights, averaging",
    "writing metrics",
    "validating",
    "writing a checkpoint",
    "deleting an old checkpoint",
    "reading checkpoints",
    "writing model/",
    "choosing among best, last and average",
    "scoring the finished model",
    "between these",
)
# Function: what the process is doing until it returns; "next" what it is doing from then on, whoever returns.
WITHIN = {
    "regard.tasks.run": {
        "train": "preparing: reading text, building the model",
        "_finished": "scoring the finished model",
    },
    "regard.inputs.text": {"Tokenizer.train": "learning the vocabulary"},
    "regard.data.corpus": {"prepare": "preparing the corpus"},
    "regard.training.loop": {
        "Trainer.run": "between these",
        "Trainer._train_step": "starting and waiting for data workers",
        "Trainer._validate": "validating",
        "Trainer._finish": "choosing among best, last and average",
    },
    "regard.training.update": {"Updates.take": "between these"},
    "regard.training.monitor": {"Metrics.write": "writing metrics", "Metrics.flush": "writing metrics"},
    "regard.training.checkpoint_folder": {
        "write": "writing a checkpoint",
        "whole_state": "reading checkpoints",
        "load": "reading checkpoints",
    },
    "regard.training.checkpoint": {"Checkpoints._tidy": "deleting an old checkpoint"},
    "regard.tasks.model_directory": {"write": "writing model/"},
}
NEXT = {
    "regard.training.update": {"Updates._loss": "an update's {} batch, forward and backward"},
    "regard.training.parallel": {"Alone.clipped_norm": "clipping, changing the weights, averaging"},
}
BATCHES = ("first", "second")


class Note(importlib.abc.MetaPathFinder):
    """Wraps functions of the modules above when they are imported, and keeps the number of the place in `file`."""

    def __init__(self, file: mmap.mmap) -> None:
        self.file = file

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in {*WITHIN, *NEXT}:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for name, place in WITHIN.get(fullname, {}).items():
                self._wrap(module, name, self._within(PLACES.index(place)))
            for name, place in NEXT.get(fullname, {}).items():
                self._wrap(module, name, self._next(place))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _wrap(self, module: ModuleType, name: str, wrapper: Callable[[Any], Any]) -> None:
        owner: Any = module
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        found = vars(owner)[last]
        wrapped = classmethod(wrapper(found.__func__)) if isinstance(found, classmethod) else wrapper(found)
        setattr(owner, last, wrapped)

    def _within(self, place: int) -> Callable[[Any], Any]:
        def wrapper(function: Any) -> Any:
            @functools.wraps(function)
            def noted(*values: Any, **named: Any) -> Any:
                before, self.file[0] = self.file[0], place
                try:
                    return function(*values, **named)
                finally:
                    self.file[0] = before

            return noted

        return wrapper

    def _next(self, place: str) -> Callable[[Any], Any]:
        def wrapper(function: Any) -> Any:
            @functools.wraps(function)
            def noted(*values: Any, **named: Any) -> Any:
                # A loss is given the number of its batch: self, step, number, ...
                number = values[2] if "{}" in place else 0
                self.file[0] = PLACES.index(place.format(BATCHES[number]))
                return function(*values, **named)

            return noted

        return wrapper


def watch(path: str) -> None:
    with open(path, "w+b") as file:
        file.truncate(1)
        sys.meta_path.insert(0, Note(mmap.mmap(file.fileno(), 1)))


if path := os.environ.pop("REGARD_KILL_PROBE", ""):  # taken out: processes that this one starts are not watched
    watch(path)
