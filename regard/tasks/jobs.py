"""Every task that regard knows, by name: what reads its recipes, trains, loads and scores its models.

Each imports its own parts when it is asked for, so that a task costs nothing to those who use another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch

from regard.errors import ConfigError, suggestion
from regard.tasks.job import Evaluation, Job
from regard.tasks.model_directory import ModelDirectory
from regard.tasks.sections import Recipe


class Loader(Protocol):
    """The class of a trained model."""

    def load(self, directory: ModelDirectory, device: torch.device | str, dtype: torch.dtype) -> Any: ...


class Evaluate(Protocol):
    """Scores a loaded model. data: what on, as on a command line; the recipe's test set unless given. options: what the
    command line was told, by name; a task refuses what it does not know. said: is told what is going on.

    Returns what was found, and the outputs, one text an input.
    """

    def __call__(
        self, model: Any, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
    ) -> tuple[Evaluation, tuple[str, ...]]: ...


class Task(NamedTuple):
    """recipe: the schema. job: what a run trains. model: what a model directory becomes. evaluate: what scores it."""

    recipe: type[Recipe]
    job: type[Job[Any]]
    model: Loader
    evaluate: Evaluate


def _translate() -> Task:
    from regard.tasks.translate.evaluation import evaluate_directory
    from regard.tasks.translate.job import TranslateJob
    from regard.tasks.translate.recipe import TranslateRecipe
    from regard.tasks.translate.translator import Translator

    return Task(TranslateRecipe, TranslateJob, Translator, evaluate_directory)


def _generate() -> Task:
    from regard.tasks.generate.evaluation import evaluate_directory
    from regard.tasks.generate.generator import Generator
    from regard.tasks.generate.job import GenerateJob
    from regard.tasks.generate.recipe import GenerateRecipe

    return Task(GenerateRecipe, GenerateJob, Generator, evaluate_directory)


def _caption() -> Task:
    from regard.tasks.caption.captioner import Captioner
    from regard.tasks.caption.evaluation import evaluate_directory
    from regard.tasks.caption.job import CaptionJob
    from regard.tasks.caption.recipe import CaptionRecipe

    return Task(CaptionRecipe, CaptionJob, Captioner, evaluate_directory)


def _classify() -> Task:
    from regard.tasks.classify.evaluation import evaluate_directory
    from regard.tasks.classify.job import ClassifyJob
    from regard.tasks.classify.labeller import Labeller
    from regard.tasks.classify.recipe import ClassifyRecipe

    return Task(ClassifyRecipe, ClassifyJob, Labeller, evaluate_directory)


def _classify_pictures() -> Task:
    from regard.tasks.classify.picture_job import PictureClassifyJob, evaluate_directory
    from regard.tasks.classify.picture_labeller import PictureLabeller
    from regard.tasks.classify.picture_recipe import PictureClassifyRecipe

    return Task(PictureClassifyRecipe, PictureClassifyJob, PictureLabeller, evaluate_directory)


def _pretrain() -> Task:
    from regard.tasks.pretrain.evaluation import evaluate_directory
    from regard.tasks.pretrain.filler import Filler
    from regard.tasks.pretrain.job import PretrainJob
    from regard.tasks.pretrain.recipe import PretrainRecipe

    return Task(PretrainRecipe, PretrainJob, Filler, evaluate_directory)


def _transcribe() -> Task:
    from regard.tasks.transcribe.evaluation import evaluate_directory
    from regard.tasks.transcribe.job import TranscribeJob
    from regard.tasks.transcribe.recipe import TranscribeRecipe
    from regard.tasks.transcribe.transcriber import Transcriber

    return Task(TranscribeRecipe, TranscribeJob, Transcriber, evaluate_directory)


def _summarize() -> Task:
    from regard.tasks.summarize.evaluation import evaluate_directory
    from regard.tasks.summarize.job import SummarizeJob
    from regard.tasks.summarize.recipe import SummarizeRecipe
    from regard.tasks.summarize.summarizer import Summarizer

    return Task(SummarizeRecipe, SummarizeJob, Summarizer, evaluate_directory)


TASKS: dict[str, Callable[[], Task]] = {
    "translate": _translate,
    "generate": _generate,
    "caption": _caption,
    "classify": _classify,
    "classify-pictures": _classify_pictures,
    "pretrain": _pretrain,
    "transcribe": _transcribe,
    "summarize": _summarize,
}


def task_of(name: object, origin: str = "recipe") -> Task:
    """The task called `name`. origin: the file to name in the error. Raises: ConfigError for one that is not known."""
    if not isinstance(name, str) or name not in TASKS:
        hint = suggestion(str(name), TASKS) or f"; known: {', '.join(TASKS)}"
        raise ConfigError(f"{origin}: key `task` is {name!r}{hint}")
    return TASKS[name]()
