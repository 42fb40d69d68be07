"""A transcription run's own part: sound as frames, the vocabulary, the model, its loss, its scores, its directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from regard.data.batches import Batch
from regard.data.clips import Clip, FramesColumn, frames_of_clip
from regard.data.columns import TextColumn
from regard.data.corpus import Corpus
from regard.data.records import BadRecords, Record
from regard.data.speech_records import SpeechSpec, read_speech
from regard.errors import DataError
from regard.inputs.frame_statistics import corpus_statistics
from regard.inputs.text import Tokenizer
from regard.models.ctc import ctc_nll
from regard.models.ctc_model import CTCModel
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks.job import Job
from regard.tasks.transcribe.boundaries import Boundaries, attended, following, nearest, timed
from regard.tasks.transcribe.card import model_card
from regard.tasks.transcribe.evaluation import Evaluation, evaluate
from regard.tasks.transcribe.recipe import ROLES, TranscribeRecipe, built, source_of
from regard.tasks.transcribe.scoring import score
from regard.tasks.transcribe.search import AcousticConfig, AcousticModel
from regard.tasks.transcribe.transcriber import TOKENIZER, Transcriber, TranscriberConfig
from regard.tasks.transcribe.word_times import Timing
from regard.training.objective import Loss, cross_entropy, mixed, of_outputs
from regard.training.parallel import Objective

MOST_TIMED = 200  # validation utterances by which the method of timestamps is chosen
MOST_RANKED = 50  # validation utterances by which heads of attention are chosen: every head is warped by itself


@dataclass(frozen=True)
class ChosenTiming:
    """How words get their times, and what each method came to on validation, where that was measured."""

    timing: Timing
    measured: tuple[Boundaries, ...] = ()


class TranscribeJob(Job[TranscribeRecipe]):
    roles: ClassVar = ROLES
    chosen = ChosenTiming(Timing())  # until `evaluate` chooses by the finished model

    def prepare(self) -> Corpus:
        recipe = self.recipe
        limit = recipe.validation.max_utterances
        self.validation = self.world.in_turn(lambda: self.records("validation", ROLES, limit))
        self.test = self.world.in_turn(lambda: self.records("test", ROLES))
        self.tokenizer = self.world.in_turn(self._tokenizer)
        self.column = FramesColumn(recipe.front_end)
        self.validation_frames = self._frames(self.validation)
        corpus = self.corpus({"source": self.column, "target": TextColumn(self.tokenizer)}, recipe.data.max_tokens)
        self.longest_frames = int(corpus.lengths("source").max())
        self.model_config = self._resolved(corpus)
        return corpus

    def read(
        self, spec: SpeechSpec, roles: Sequence[str], report: BadRecords, limit: int | None = None
    ) -> Iterator[Record]:
        return read_speech(spec, on_bad=self.recipe.data.on_bad, report=report, limit=limit)

    def about_data(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.fingerprint()}

    def model(self) -> AcousticModel:
        return built(self.recipe.front_end, len(self.tokenizer), self.model_config)

    def objective(self) -> Objective:
        return objective(self.recipe.training.label_smoothing)

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        """The decoder's alone: how many vectors an encoder hears of a sound is the source's affair."""
        return {"decoder": batch.target_outputs != Tokenizer.PAD}

    def transcriber(self, model: nn.Module) -> Transcriber:
        """The model with all that it needs to transcribe."""
        assert isinstance(model, EncoderDecoder | CTCModel)
        recipe, timing = self.recipe, self.chosen.timing
        config = TranscriberConfig(
            recipe.front_end,
            self.model_config,
            recipe.decoding,
            self.longest_frames,
            self.training,
            timing.method,
            timing.placement,
            recipe.compared,
            recipe.decoding_frames,
            heads=timing.heads,
        )
        return Transcriber(model, self.tokenizer, config)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracies (100 less the error rate) and the share of exact matches of really decoded validation sound."""
        transcriber = self.transcriber(model)
        found = transcriber.recognise(self.validation_frames, self.recipe.validation.decoding)
        outputs = [self.tokenizer.decode(one.tokens) for one in found]
        references = [one.fields["target"] for one in self.validation]
        scores = score(outputs, references, compared=self.recipe.compared, bootstrap_samples=0)
        rates = {rate.name: rate.value for rate in scores.rates}
        return {
            "word_accuracy": 100.0 - rates["WER"],
            "character_accuracy": 100.0 - rates["CER"],
            "exact_match": scores.num_exact / scores.num_utterances,
        }

    def evaluate(self, model: nn.Module) -> list[Evaluation]:
        """As every job's; before that it chooses `chosen`, by which the model is scored here and saved by `save`."""
        self.chosen = self._choose_timing(model)
        for one in self.chosen.measured:
            self.watcher.said(f"validation: {one.line()}")
        return [evaluate(self.transcriber(model), self.test)] if self.test else []

    def save(self, model: nn.Module, evaluations: Sequence[Any] | None) -> None:
        transcriber = self.transcriber(model)
        if self.chosen.measured:
            about = {**transcriber.config.training, "timestamps": [one.to_json() for one in self.chosen.measured]}
            transcriber.config = dataclasses.replace(transcriber.config, training=about)
        transcriber.save(self.folder / "model", model_card(transcriber.config, evaluations))

    def _choose_timing(self, model: nn.Module) -> ChosenTiming:
        """What is nearest to the true places of validation words, where these are known."""
        transcriber, shift = self.transcriber(model), self.recipe.front_end.shift_seconds
        placed = [place for place, one in enumerate(self.validation) if one.fields.get("words")][:MOST_TIMED]
        has_no_ctc = isinstance(model, EncoderDecoder) and model.ctc is None
        heads = None
        if isinstance(model, EncoderDecoder) and (placed or has_no_ctc):
            ranked = range(len(self.validation))[:MOST_RANKED]
            texts = [self.validation[place].fields["target"] for place in ranked]
            heads = following(attended(transcriber, [self.validation_frames[place] for place in ranked], texts)) or None
        by_ctc, by_attention = Timing("ctc"), Timing("attention", heads=heads)
        found = []
        for timing in (by_ctc, by_attention) if placed else ():
            utterances = timed(
                transcriber,
                [self.validation_frames[place] for place in placed],
                [self.validation[place].fields["target"] for place in placed],
                [self.validation[place].fields["words"] for place in placed],
                timing,
            )
            found.append(nearest(utterances, timing, shift))
        measured = tuple(one for one in found if one is not None)
        if measured:
            return ChosenTiming(max(measured, key=lambda one: one.within).timing, measured)
        return ChosenTiming(by_attention if has_no_ctc else by_ctc)

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer, trained on the training transcripts and kept in the run directory."""
        path = self.folder / "data" / TOKENIZER
        if not path.is_file():
            report = BadRecords()
            spec = dataclasses.replace(self.recipe.data.train, speeds=(1.0,))
            texts = (one.fields["target"] for one in self.read(spec, ROLES, report))
            path.parent.mkdir(parents=True, exist_ok=True)
            self.watcher.said(f"learning a vocabulary of up to {self.recipe.tokenizer.vocab_size:,} tokens")
            Tokenizer.train(texts, self.recipe.tokenizer).save(path)
        return Tokenizer.load(path)

    def _frames(self, records: Sequence[Record]) -> list[np.ndarray]:
        """Validation is decoded many times: its frames are kept. Raises: DataError for a clip that cannot be read."""
        frames = []
        for one in records:
            found = frames_of_clip(Clip.of_field(one.fields["source"]), self.column.front_end)
            if not len(found):
                raise DataError(f"{one.origin}: shorter than a frame; leave it out of the validation data")
            frames.append(found)
        return frames

    def _resolved(self, corpus: Corpus) -> AcousticConfig:
        """The recipe's model, with the statistics of the training frames where they are asked for."""
        config = self.recipe.model
        source = source_of(config)
        if source.normalization != "corpus" or source.mean is not None:
            return config
        mean, deviation = corpus_statistics(corpus["source", place] for place in range(len(corpus)))
        source = dataclasses.replace(source, mean=mean, deviation=deviation)
        encoder: Any = dataclasses.replace(config.encoder, embedding=source)
        return dataclasses.replace(config, encoder=encoder)


def objective(label_smoothing: float) -> Objective:
    """The training loss of a batch: CTC of whole outputs, cross-entropy of a forced decoder, or their mixture.

    A sound with fewer vectors than its text needs teaches CTC nothing.
    """

    def loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        frames, lengths = batch.source
        targets = batch.target_outputs
        with torch.autocast(frames.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            if isinstance(model, CTCModel):
                log_probs, vectors = model(frames, lengths)
                return of_outputs(_ctc(log_probs, vectors, batch))
            assert isinstance(model, EncoderDecoder)
            hidden, memories = model.forced(frames, lengths, batch.target_inputs)
            memory = memories["source"]
            log_probs = None if model.ctc is None else model.ctc(memory.vectors)
        real = targets != Tokenizer.PAD
        told = cross_entropy(
            hidden.float()[real], model.decoder.head, targets[real], smoothing=label_smoothing, dtype=dtype
        )
        if model.ctc is None or log_probs is None:
            return told
        return mixed(told, of_outputs(_ctc(log_probs, memory.lengths, batch)), model.ctc.weight)

    return loss


def _ctc(log_probs: Tensor, vectors: Tensor, batch: Batch) -> Tensor:
    """-log p of each output, [batch]; the end token is none of CTC's."""
    return ctc_nll(log_probs, vectors, batch.target.values, batch.target.lengths - 1, skip_impossible=True)
