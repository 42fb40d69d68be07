"""The schema of a translation recipe: the one place where a recipe becomes a translation model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from regard.data.batches import TokenBudget
from regard.data.readers import DataSpec
from regard.decoding.options import DecodingOptions
from regard.inputs.text import TokenizerConfig
from regard.models.encoder_decoder import EncoderDecoderConfig
from regard.tasks.recipe import Section
from regard.training.config import TrainingConfig

ROLES = ("source", "target")


class Download(Section):
    """A file that is publicly kept."""

    url: str  # address; a name that ends in .gz is unpacked
    sha256: str  # of the file as it lies under data.root, unpacked


class TranslateData(Section):
    """Which text to learn from."""

    source_language: str  # ISO 639-1 code, e.g. "en"
    target_language: str
    root: Path | None = None  # folder that the paths below are relative to
    downloads: dict[str, Download] = {}  # file name under root -> where to fetch it when `root` is not given
    train: DataSpec
    validation: DataSpec
    test: DataSpec | None = None
    on_bad: Literal["skip", "stop"] = "skip"  # what a bad record does; it is counted and named either way
    max_tokens: int = 256  # records longer than this on either side are bad
    batch: TokenBudget


class Tokenizers(Section):
    """How text is cut into subwords."""

    joint: bool = True  # one vocabulary for both languages
    source: TokenizerConfig
    target: TokenizerConfig | None = None  # as the source's unless given; never given when joint


class Validation(Section):
    """What decides which weights are best."""

    scoring: Literal["sacrebleu", "moses-lowercase"] = "sacrebleu"
    metric: Literal["bleu", "chrf", "exact_match"] = "bleu"
    decoding: DecodingOptions = DecodingOptions()
    max_sentences: int | None = None  # only the first so many; null: all


class TranslateRecipe(Section):
    """A complete run: data, tokenizers, model, training, decoding."""

    task: Literal["translate"]
    seed: int = 1
    data: TranslateData
    tokenizers: Tokenizers
    model: EncoderDecoderConfig
    training: TrainingConfig
    validation: Validation = Validation()
    decoding: DecodingOptions = DecodingOptions(beam_size=5)  # of the finished model
    decoding_batch_tokens: int = 4096  # padded source tokens decoded at once
    # Further scorings of the test set beside detokenised sacreBLEU.
    report: tuple[Literal["sacrebleu", "moses-lowercase"], ...] = ("sacrebleu", "moses-lowercase")
