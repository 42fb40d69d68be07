"""What a task adds to a run: its data, its model, its loss, its scores, what it writes. `run.py` does the rest."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

from regard.data.batches import Batch, BatchStream, TokenBudget
from regard.data.columns import Column
from regard.data.corpus import Corpus, prepare, sha256_of_files
from regard.data.loading import Stream
from regard.data.readers import DataSpec, read
from regard.data.records import BadRecords, Record
from regard.errors import DataError
from regard.tasks.sections import Recipe
from regard.training.monitor import Watcher
from regard.training.parallel import Objective
from regard.training.processes import World

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


class Evaluation(Protocol):
    """What scoring a model on a test set found."""

    def lines(self) -> list[str]:
        """What to print."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The same as plain values: `metrics` by name, each with `value`, `interval` and `signature`."""
        ...


class Job(ABC, Generic[AnyRecipe]):
    """One run's task. A run calls, in every process: `prepare`, `model`, `objective`; then trains, validating in the
    first process; at last, in the first process, `evaluate` and `save`.

    recipe: with every path of its data made absolute. folder: the run directory. training: where the model comes from
    (recipe, data, parameters; at the end its result), which a model directory keeps; set by the run.
    """

    roles: ClassVar[tuple[str, ...]]  # that a batch holds

    def __init__(self, recipe: AnyRecipe, folder: Path, watcher: Watcher, world: World) -> None:
        self.recipe = recipe
        self.folder = folder
        self.watcher = watcher
        self.world = world
        self.training: dict[str, Any] = {}
        self.bad_records: dict[str, BadRecords] = {}  # by part of the data

    @abstractmethod
    def prepare(self) -> Corpus:
        """Looks at all data, so that what is wrong with the test set shows now and not hours later; makes and keeps
        what the model is built on; returns the training corpus."""

    def stream(self, corpus: Corpus, budget: Any) -> Stream:
        """The training batches. budget: the recipe's `data.batch`."""
        return batch_stream(self, corpus, budget)

    @abstractmethod
    def model(self) -> nn.Module:
        """The model with its first weights, drawn from torch's global random numbers."""

    @abstractmethod
    def objective(self) -> Objective:
        """The summed training loss of a batch."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Scores of the model on the validation data; higher is better for the one that the recipe decides by."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Sequence[Evaluation]:
        """Scores on the test data; none where the recipe names none."""

    @abstractmethod
    def save(self, model: nn.Module, evaluations: Sequence[Evaluation] | None) -> None:
        """Writes `folder`/model. evaluations: of the finished model; None while it is in training."""

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        """Which positions are no padding, by the part of the model that asks with them; both bool [batch, length]."""
        return {}

    def about_data(self) -> dict[str, Any]:
        """What a result says of the data beside its hash and its bad records."""
        return {}

    # -- for those who implement the above -----------------------------------------------------------------------------

    def records(self, part: str, roles: Sequence[str], limit: int | None = None) -> list[Record]:
        """The records of the part of the data called `part`, none where there is no such part; says which were bad."""
        report = self.bad_records[part] = BadRecords()
        spec: DataSpec | None = getattr(self.recipe.data, part)
        if spec is None:
            return []
        records = list(self.read(spec, roles, report, limit))
        if report:
            self.watcher.said(f"{part} data: {report.summary()}")
        return records

    def read(self, spec: Any, roles: Sequence[str], report: BadRecords, limit: int | None = None) -> Iterator[Record]:
        """The records of a part of the data, as `readers.read` does; a task whose data is no text reads by itself."""
        return read(spec, roles, on_bad=self.recipe.data.on_bad, report=report, limit=limit)

    def corpus(self, columns: Mapping[str, Column], max_tokens: Mapping[str, int] | int | None) -> Corpus:
        """The training corpus, prepared once and memory-mapped from then on, after one look whether it is still what
        was written.

        Raises: DataError when it is damaged, or was prepared from other data.
        """
        return Corpus.open(self.world.first(lambda: self._prepared(columns, max_tokens).folder))

    def _prepared(self, columns: Mapping[str, Column], max_tokens: Mapping[str, int] | int | None) -> Corpus:
        data = self.recipe.data
        parts: list[Any] = [sha256_of_files(data.train.files()), repr(data.train)]
        parts += [column.fingerprint() for column in columns.values()]
        wanted = hashlib.sha256(json.dumps([*parts, max_tokens, data.on_bad]).encode()).hexdigest()
        path = self.folder / "data" / "train"
        if path.is_dir():
            try:
                corpus = Corpus.open(path)
                if corpus.fingerprint == wanted:
                    corpus.verify()
                    return corpus
            except DataError as error:
                raise DataError(f"{error}: delete {path} and run the same command") from None
            raise DataError(
                f"{path}: was prepared from other data or tokenizers; use another --run, or delete this one"
            )
        report = BadRecords()
        records = self.read(data.train, tuple(columns), report)
        corpus = prepare(
            records, columns, path, max_tokens=max_tokens, on_bad=data.on_bad, report=report, fingerprint=wanted
        )
        self.watcher.said(f"{len(corpus):,} training records; {report.summary()}")
        return corpus


def batch_stream(job: Job[Any], corpus: Corpus, budget: TokenBudget) -> BatchStream:
    """Batches of the records of `corpus`, of similar length."""
    return BatchStream(corpus, budget, seed=job.recipe.seed, roles=job.roles)
