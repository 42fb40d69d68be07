"""Sections of recipes that tasks share: where data lies, how large a batch is, how a model searches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from regard.data.batches import TokenBudget
from regard.data.fetch import Progress, cache_folder, fetch
from regard.data.readers import DataSpec
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError
from regard.tasks.recipe import Section
from regard.training.config import TrainingConfig

SPLITS = ("train", "validation", "test")

# Fields of model configurations that share a range, wherever they stand.
COUNTS = ("model_dim", "num_layers", "heads", "kv_heads", "head_dim", "width", "attention_dim", "max_positions")
POSITIVE = ("eps", "rotary_base")


def _can_work(options: DecodingOptions) -> DecodingOptions:
    options.check()
    return options


Decoding = Annotated[DecodingOptions, AfterValidator(_can_work)]


# -- data --------------------------------------------------------------------------------------------------------------


def _sha256(text: str) -> str:
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):
        raise ValueError("expected the 64 hexadecimal digits that sha256sum prints")
    return text


class Download(Section):
    """A file that is publicly kept."""

    url: str  # address; what ends in .gz is unpacked
    # Of the file as it is kept: unpacked, Unicode line separators inside a line turned into spaces (see
    # regard/data/fetch.py).
    sha256: Annotated[str, AfterValidator(_sha256)]


def _auto(value: Any) -> Any:
    if value != "auto":
        raise ValueError(f"received {json.dumps(value)}, expected a whole number or auto")
    return value


class AutoBudget(Section):
    """`TokenBudget` with as many tokens as suit the machine that a run begins on (regard/training/batch_budget.py)."""

    batch_tokens: Annotated[Literal["auto"], BeforeValidator(_auto)]
    max_sentences: int | None = None
    batch_multiple: int = 1
    length_noise: float = 0.04

    def of(self, batch_tokens: int) -> TokenBudget:
        """The budget with this number of tokens. Raises: ConfigError."""
        return TokenBudget(batch_tokens, self.max_sentences, self.batch_multiple, self.length_noise)

    @model_validator(mode="after")
    def _fits_together(self) -> AutoBudget:
        self.of(1)
        return self


def _kind_of_budget(value: Any) -> str:
    """Which class of budget a value is, or is to become: words ask for the search."""
    batch_tokens = value.get("batch_tokens") if isinstance(value, dict) else getattr(value, "batch_tokens", None)
    return (AutoBudget if isinstance(batch_tokens, str) else TokenBudget).__name__


Budget = Annotated[
    Annotated[TokenBudget, Tag(TokenBudget.__name__)] | Annotated[AutoBudget, Tag(AutoBudget.__name__)],
    Discriminator(_kind_of_budget),
]


class Data(Section):
    """What to learn from. Tasks add to it."""

    # Folder that the paths below are relative to; itself relative to the working directory. When it is not given,
    # files named in `downloads` are fetched into a cache, and all others are relative to the recipe's own folder.
    root: Path | None = None
    downloads: dict[str, Download] = Field(default_factory=dict)  # path as it stands below -> where it is publicly kept
    train: DataSpec
    validation: DataSpec
    test: DataSpec | None = None
    on_bad: Literal["skip", "stop"] = "skip"  # what a bad record does; it is counted and named either way
    max_tokens: Annotated[int, Field(ge=1)] = 256  # records longer than this in any role are bad
    batch: Budget  # batch_tokens may be auto: as many as make training faster and fit into memory
    # Processes that load batches ahead; 0: the one that trains does it. Any number gives the same batches, and a run
    # may go on with another. Loading text takes 0.5 ms a batch of 4,096 tokens and 1.2 ms of 25,000, less than handing
    # a batch over from another process does: what is mapped and already cut into ids gains nothing from workers.
    workers: Annotated[int, Field(ge=0)] = 0

    def check_budget(self) -> None:
        """Raises: ConfigError when a record may be too long for a batch."""
        batch_tokens, longest = self.batch.batch_tokens, self.max_tokens
        if batch_tokens != "auto" and batch_tokens < longest:
            raise ConfigError(
                f"data.batch.batch_tokens is {batch_tokens}, expected {longest} or more, so that a record of"
                " data.max_tokens fits into a batch; raise it, or lower data.max_tokens"
            )


AnyData = TypeVar("AnyData", bound=Data)


def with_root(data: AnyData, recipe_path: Path, progress: Progress | None = None) -> AnyData:
    """The data with every path made absolute; what is publicly kept is fetched when no `data.root` is given.

    The result names no downloads: where its files came from is no part of what a run is. recipe_path: the recipe's
    file, whether it exists or not. progress: told about downloads. Given its own result as data, it changes nothing.

    Raises: DataError when something cannot be fetched, ConfigError for a root that is no folder.
    """
    specs: dict[str, DataSpec] = {name: spec for name in SPLITS if (spec := getattr(data, name)) is not None}
    if data.root is not None:
        root = data.root.expanduser().resolve()
        if not root.is_dir():
            raise ConfigError(f"{recipe_path}: `data.root` is {data.root}, but there is no such folder; give another")
        placed = {name: spec.resolved(root) for name, spec in specs.items()}
        return data.model_copy(update={"root": root, "downloads": {}, **placed})
    cache = cache_folder(recipe_path.stem)
    wanted: dict[str, tuple[str, str]] = {}
    resolved: dict[str, DataSpec] = {}
    for name, spec in specs.items():
        paths = [spec.path] if isinstance(spec.path, str) else list(spec.path.values())
        public = spec.format != "hub" and all(path in data.downloads for path in paths)
        if public:
            wanted |= {path: (data.downloads[path].url, data.downloads[path].sha256) for path in paths}
        resolved[name] = spec.resolved(cache if public else recipe_path.resolve().parent)
    if wanted:
        fetch(wanted, cache, progress)
    return data.model_copy(update={"downloads": {}, **resolved})


# -- the whole ---------------------------------------------------------------------------------------------------------


class Recipe(Section):
    """A complete run, as far as all tasks agree. A task's own adds what its data becomes, its model, how it is
    validated (`validation.metric` names the score that decides) and what is reported."""

    task: str
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    data: Data
    training: TrainingConfig


# -- models ------------------------------------------------------------------------------------------------------------


def check_ranges(config: Any) -> None:
    """config: a model's, a tree of dataclasses. Raises: ConfigError naming every number that no model can have."""
    problems = list(_out_of_range(config, "model"))
    if problems:
        raise ConfigError("; ".join(problems))


def _out_of_range(config: Any, place: str) -> Iterator[str]:
    """A phrase for each number of a model's configuration that no model can have."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{place}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _out_of_range(value, name)
        elif value is None:
            continue
        elif field.name in COUNTS and value < 1:
            yield f"{name} is {value}, expected 1 or more"
        elif field.name in POSITIVE and not value > 0:
            yield f"{name} is {value}, expected above 0"
        elif field.name == "dropout" and not 0.0 <= value < 1.0:
            yield f"{name} is {value}, expected 0 to below 1"
