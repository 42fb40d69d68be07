"""The schema of a translation recipe: the one place where a recipe becomes a translation model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from regard.data.batches import TokenBudget
from regard.data.fetch import Progress, cache_folder, fetch
from regard.data.readers import DataSpec
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, RegardError
from regard.inputs.text import TokenizerConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.tasks.recipe import Section
from regard.tasks.translate.scorings import SCORINGS, Scoring
from regard.training.config import TrainingConfig

ROLES = ("source", "target")
SPLITS = ("train", "validation", "test")

# Fields of model configurations that share a range, wherever they stand.
COUNTS = ("model_dim", "num_layers", "heads", "kv_heads", "head_dim", "width", "attention_dim", "max_positions")
POSITIVE = ("eps", "rotary_base")


def _sha256(text: str) -> str:
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):
        raise ValueError("expected the 64 hexadecimal digits that sha256sum prints")
    return text


def _can_work(options: DecodingOptions) -> DecodingOptions:
    options.check()
    return options


Decoding = Annotated[DecodingOptions, AfterValidator(_can_work)]


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


class TranslateData(Section):
    """Which text to learn from."""

    source_language: str  # ISO 639-1 code, e.g. "en"
    target_language: str
    # Folder that the paths below are relative to; itself relative to the working directory. When it is not given,
    # files named in `downloads` are fetched into a cache, and all others are relative to the recipe's own folder.
    root: Path | None = None
    downloads: dict[str, Download] = Field(default_factory=dict)  # path as it stands below -> where it is publicly kept
    train: DataSpec
    validation: DataSpec
    test: DataSpec | None = None
    on_bad: Literal["skip", "stop"] = "skip"  # what a bad record does; it is counted and named either way
    max_tokens: Annotated[int, Field(ge=1)] = 256  # records longer than this on either side are bad
    batch: Budget  # batch_tokens may be auto: as many as make training faster and fit into memory
    # Processes that load batches ahead; 0: the one that trains does it. Any number gives the same batches, and a run
    # may go on with another. Loading text takes 0.5 ms a batch of 4,096 tokens and 1.2 ms of 25,000, less than handing
    # a batch over from another process does: what is mapped and already cut into ids gains nothing from workers.
    workers: Annotated[int, Field(ge=0)] = 0


class Tokenizers(Section):
    """How text is cut into subwords."""

    joint: bool = True  # one vocabulary for both languages
    source: TokenizerConfig
    target: TokenizerConfig | None = None  # as the source's unless given; never given when joint


class Validation(Section):
    """What decides which weights are best."""

    scoring: Scoring = "sacrebleu"
    metric: Literal["bleu", "chrf", "exact_match"] = "bleu"
    decoding: Decoding = DecodingOptions()
    max_sentences: Annotated[int, Field(ge=1)] | None = None  # only the first so many; null: all


class TranslateRecipe(Section):
    """A complete run: data, tokenizers, model, training, decoding."""

    task: Literal["translate"]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    data: TranslateData
    tokenizers: Tokenizers
    model: EncoderDecoderConfig
    training: TrainingConfig
    validation: Validation = Validation()
    decoding: Decoding = DecodingOptions(beam_size=5)  # of the finished model
    decoding_batch_tokens: Annotated[int, Field(ge=1)] = 4096  # padded source tokens decoded at once
    report: tuple[Scoring, ...] = SCORINGS  # scorings of the test set

    @model_validator(mode="after")
    def _fits_together(self) -> TranslateRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        if self.tokenizers.joint and self.tokenizers.target is not None:
            raise ConfigError(
                "tokenizers.target is given though tokenizers.joint is true; remove it, or set joint to false"
            )
        if self.validation.metric == "chrf" and self.validation.scoring != "sacrebleu":
            raise ConfigError(
                f"validation.metric is chrf, which scoring {self.validation.scoring} does not give; set"
                " validation.scoring to sacrebleu, or validation.metric to bleu"
            )
        batch_tokens, longest = self.data.batch.batch_tokens, self.data.max_tokens
        if batch_tokens != "auto" and batch_tokens < longest:
            raise ConfigError(
                f"data.batch.batch_tokens is {batch_tokens}, expected {longest} or more, so that a record of"
                " data.max_tokens fits into a batch; raise it, or lower data.max_tokens"
            )
        check_ranges(self.model)
        if self.model.tie == "all" and not self.tokenizers.joint:
            raise ConfigError(
                "model.tie is all though tokenizers.joint is false; set tokenizers.joint to true, or model.tie to"
                " decoder"
            )
        widths = self.model.encoder.model_dim, self.model.decoder.model_dim
        if self.model.tie == "all" and len(set(widths)) > 1:
            raise ConfigError(
                f"model.tie is all, but model.encoder.model_dim is {widths[0]} and model.decoder.model_dim {widths[1]};"
                " make them equal, or set model.tie to decoder"
            )
        _refuse_what_cannot_be_built(self.model)
        return self


def check_ranges(config: EncoderDecoderConfig) -> None:
    """Raises: ConfigError naming every number that no model can have."""
    problems = list(_out_of_range(config, "model"))
    if problems:
        raise ConfigError("; ".join(problems))


def with_root(recipe: TranslateRecipe, recipe_path: Path, progress: Progress | None = None) -> TranslateData:
    """The recipe's data with every path made absolute; what is publicly kept is fetched when no `data.root` is given.

    The result names no downloads: where its files came from is no part of what a run is. recipe_path: the recipe's
    file, whether it exists or not. progress: told about downloads. Given its own result as data, it changes nothing.

    Raises: DataError when something cannot be fetched, ConfigError for a root that is no folder.
    """
    data = recipe.data
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


def _refuse_what_cannot_be_built(config: EncoderDecoderConfig) -> None:
    """Builds the model with one layer (all are alike) and few words, so that each part's own checks speak up.

    Raises: what they raise, headed by the side it comes from.
    """
    sides: dict[str, Any] = {"encoder": config.encoder, "decoder": config.decoder}
    for name, side in sides.items():
        if hasattr(side, "num_layers"):
            sides[name] = dataclasses.replace(side, num_layers=1)
    num_words = 5
    with torch.random.fork_rng(devices=[]):  # initialisation draws random numbers that belong to somebody else
        whole = dataclasses.replace(config, **sides)
        # Beside a decoder that goes with any encoder, what is wrong is wrong with the encoder.
        any_decoder = AttentionRNNConfig("attention-rnn", model_dim=1, attention_dim=1)
        encoder_alone = dataclasses.replace(whole, decoder=any_decoder, tie="none")
        for name, built in (("encoder", encoder_alone), ("decoder", whole)):
            try:
                EncoderDecoder(num_words, num_words, built)
            except RegardError as error:
                raise ConfigError(f"model.{name}: {error}") from None


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
