"""Scoring a speech model on a test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from regard.data.clips import Clip, frames_of_clip
from regard.data.records import Record
from regard.data.speech_records import SpeechSpec, read_speech
from regard.errors import ConfigError, DataError
from regard.tasks.recipe import validated
from regard.tasks.transcribe.boundaries import Boundaries, measured, timed
from regard.tasks.transcribe.scoring import Scores, score
from regard.tasks.transcribe.search import SpeechDecoding
from regard.tasks.transcribe.transcriber import Transcriber


@dataclass(frozen=True)
class Evaluation:
    """scores: of `outputs`, in the order of the records. boundaries: of the words, where their places are known."""

    scores: Scores
    boundaries: Boundaries | None
    outputs: tuple[str, ...]

    def lines(self) -> list[str]:
        """What to print."""
        return [*self.scores.lines(), *([self.boundaries.line()] if self.boundaries is not None else [])]

    def to_json(self) -> dict[str, Any]:
        """The scores as plain values; `scoring` says how texts were compared."""
        values = {"scoring": self.scores.compared, **self.scores.to_json()}
        return values | ({"boundaries": self.boundaries.to_json()} if self.boundaries is not None else {})


def evaluate(
    transcriber: Transcriber,
    records: Sequence[Record],
    *,
    decoding: SpeechDecoding | None = None,
    bootstrap_samples: int = 1000,
) -> Evaluation:
    """Transcribes every record's clip, each as a whole, and scores the texts.

    Raises: DataError without any record and for a clip that cannot be read: a score must not leave sounds out.
    """
    if not records:
        raise DataError("evaluate: received no records, expected at least one sound with its text; check the test set")
    frames = [frames_of_clip(Clip.of_field(one.fields["source"]), transcriber.front_end) for one in records]
    short = next((one.origin for one, its in zip(records, frames, strict=True) if not len(its)), None)
    if short is not None:
        raise DataError(f"{short}: shorter than a frame; leave it out of the test set")
    texts = [one.fields["target"] for one in records]
    outputs = tuple(transcriber.tokenizer.decode(one.tokens) for one in transcriber.recognise(frames, decoding))
    scores = score(outputs, texts, compared=transcriber.config.compared, bootstrap_samples=bootstrap_samples)
    placed = [place for place, one in enumerate(records) if one.fields.get("words")]
    boundaries = None
    if placed:
        config = transcriber.config
        found = timed(
            transcriber,
            [frames[place] for place in placed],
            [texts[place] for place in placed],
            [records[place].fields["words"] for place in placed],
            config.timing,
        )
        boundaries = measured(found, config.timing, config.front_end.shift_seconds)
    return Evaluation(scores, boundaries, outputs)


def evaluate_directory(
    model: Any, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
) -> tuple[Evaluation, tuple[str, ...]]:
    """As `jobs.Evaluate` says. data: a manifest, a folder, or a mapping as a recipe has it.

    options: beam_size, length_penalty, max_length, ctc_weight, language_model, language_weight, length_reward.
    """
    assert isinstance(model, Transcriber)
    known = [one.name for one in dataclasses.fields(SpeechDecoding)] + ["beam_size", "length_penalty", "max_length"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"evaluate: {', '.join(unknown)} has no meaning for transcripts; remove it")
    decoding = model.decoding_with(**options)
    records = list(read_speech(_spec(model, data), on_bad="stop"))
    said(f"transcribing {len(records):,} sounds")
    found = evaluate(model, records, decoding=decoding)
    return found, found.outputs


def _spec(model: Transcriber, data: str | None) -> SpeechSpec:
    if data is None:
        known = model.config.training.get("recipe", {}).get("data", {}).get("test")
        if not known:
            raise ConfigError("evaluate: the model's recipe names no test set; give one with --data MANIFEST")
        return validated(SpeechSpec, known, "the model's recipe")
    if not data.lstrip().startswith("{"):
        return SpeechSpec(data)
    try:
        values = yaml.safe_load(data)
    except yaml.YAMLError:
        raise ConfigError(f"--data {data}: not valid YAML; write it as {{path: FILE, columns: {{...}}}}") from None
    return validated(SpeechSpec, values, "--data")
