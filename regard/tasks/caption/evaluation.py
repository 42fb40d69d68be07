"""Scoring a captioning model on pictures with references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from regard.data.picture_records import PictureSpec, read_pictures
from regard.data.records import Record
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, DataError
from regard.tasks.caption.captioner import Captioner
from regard.tasks.caption.scoring import CaptionScores, score
from regard.tasks.recipe import validated


@dataclass(frozen=True)
class Evaluation:
    """scores: of `outputs`, in the order of the pictures."""

    scores: CaptionScores
    outputs: tuple[str, ...]

    def lines(self) -> list[str]:
        """What to print."""
        return self.scores.lines()

    def to_json(self) -> dict[str, Any]:
        """The scores as plain values."""
        return self.scores.to_json()


def references_of(records: Sequence[Record]) -> list[list[str]]:
    """The captions that people gave each picture."""
    return [record.fields["target"].split("\n") for record in records]


def evaluate(
    captioner: Captioner,
    pixels: Sequence[np.ndarray],
    references: Sequence[Sequence[str]],
    *,
    options: DecodingOptions | None = None,
    batch_pictures: int = 32,
    bootstrap_samples: int = 1000,
) -> Evaluation:
    """Describes pictures, brought to size by `Captioner.prepared`, and scores what came of it.

    Raises: DataError without any picture; ConfigError for options that cannot work.
    """
    outputs = captioner.describe(pixels, replace(options or captioner.config.decoding, num_best=1), batch_pictures)
    return Evaluation(score(outputs, references, bootstrap_samples=bootstrap_samples), tuple(outputs))


def evaluate_directory(
    model: Captioner, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
) -> tuple[Evaluation, tuple[str, ...]]:
    """As `regard.tasks.jobs.Evaluate`. options: fields of DecodingOptions.

    Raises: ConfigError for an option that is none of captions, and for options that cannot work.
    """
    if "scoring" in options:
        raise ConfigError("--scoring: captions are scored in one way; leave it out")
    # Settled before the checks: a recipe's num_best may be more than the beam that is asked for here.
    search = model.config.decoding.changed(**{**options, "num_best": 1})
    records = read_pictures(test_spec(model.config.training, data), on_bad="stop")
    said(f"describing {len(records):,} pictures")
    pixels = model.prepared([Path(record.fields["source"]) for record in records])
    found = evaluate(model, pixels, references_of(records), options=search)
    return found, found.outputs


def test_spec(training: Mapping[str, Any], data: str | None) -> PictureSpec:
    """What to score on.

    training: what a model directory says of its making. data: a table, COCO's JSON, or a YAML mapping; the test set of
    the model's recipe unless given.
    Raises: ConfigError when the recipe names no test set, or the mapping cannot be read.
    """
    if data is not None:
        if not data.lstrip().startswith("{"):
            return PictureSpec(data)
        try:
            values = yaml.safe_load(data)
        except yaml.YAMLError:
            raise ConfigError(f"--data {data}: not valid YAML; write it as {{path: FILE, images: FOLDER}}") from None
        return validated(PictureSpec, values, "--data")
    known: dict[str, Any] = training.get("recipe", {}).get("data", {})
    if not known.get("test"):
        raise ConfigError("evaluate: the model's recipe names no test set; give one with --data captions.tsv")
    spec = validated(PictureSpec, known["test"], "the model's recipe")
    if not Path(spec.path).exists():  # a model travels, its test set may not
        raise DataError(f"{spec.path}: no such file; name the test set with --data captions.tsv")
    return spec
