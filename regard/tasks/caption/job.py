"""A captioning run's own part: pictures and vocabulary, the model, its loss, its scores, its directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from regard.data.batches import Batch
from regard.data.columns import Column
from regard.data.corpus import Corpus
from regard.data.picture_columns import CaptionsColumn, PictureColumn
from regard.data.picture_records import read_pictures
from regard.data.records import BadRecords, Record
from regard.errors import ConfigError
from regard.inputs.pictures import PictureError, load_pictures
from regard.inputs.text import Tokenizer
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks.caption import objective as caption_objective
from regard.tasks.caption.captioner import Captioner, CaptionerConfig
from regard.tasks.caption.card import model_card
from regard.tasks.caption.evaluation import Evaluation, evaluate, references_of
from regard.tasks.caption.recipe import CHANNELS, ROLES, CaptionRecipe
from regard.tasks.init_from import load_encoder
from regard.tasks.job import Job
from regard.training.parallel import Objective


class CaptionJob(Job[CaptionRecipe]):
    roles: ClassVar = ROLES

    def prepare(self) -> Corpus:
        data = self.recipe.data
        self.validation = self.world.in_turn(lambda: self.pictures("validation", self.recipe.validation.max_pictures))
        self.test = self.world.in_turn(lambda: self.pictures("test"))
        self.tokenizer = self.world.in_turn(self._tokenizer)
        columns: dict[str, Column] = {
            "source": PictureColumn(data.picture, data.decode_workers),
            "target": CaptionsColumn(self.tokenizer, data.max_tokens),
        }
        return self.corpus(columns, None)

    def read(self, spec: Any, roles: Sequence[str], report: BadRecords, limit: int | None = None) -> Iterator[Record]:
        return iter(read_pictures(spec, on_bad=self.recipe.data.on_bad, report=report, limit=limit))

    def pictures(self, part: str, limit: int | None = None) -> tuple[list[Any], list[list[str]]]:
        """(pictures brought to size, their references) of a part of the data; files that give none are bad records."""
        records = self.records(part, ROLES, limit)
        data, report = self.recipe.data, self.bad_records[part]
        paths = [Path(record.fields["source"]) for record in records]
        pixels, kept = [], []
        for record, loaded in zip(records, load_pictures(paths, data.picture, data.decode_workers), strict=True):
            if isinstance(loaded, PictureError):
                report.add(f"{loaded.reason} source", record.origin, on_bad=data.on_bad)
                self.watcher.said(f"{part} data: {loaded}")
            else:
                pixels.append(loaded.pixels)
                kept.append(record)
        return pixels, references_of(kept)

    def _tokenizer(self) -> Tokenizer:
        """Learnt from the training captions and kept in the run directory."""
        path, config = self.folder / "data" / "tokenizer.json", self.recipe.tokenizer
        if not path.is_file():
            data = self.recipe.data
            records = read_pictures(data.train, on_bad=data.on_bad)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.watcher.said(f"learning a vocabulary of {config.vocab_size:,} subwords from captions")
            texts = (text for several in references_of(records) for text in several)
            Tokenizer.train(texts, config).save(path)
        return Tokenizer.load(path)

    def about_data(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.fingerprint()}

    def model(self) -> EncoderDecoder:
        model = EncoderDecoder(CHANNELS, len(self.tokenizer), self.recipe.model)
        if self.recipe.init_from is not None:
            taken, of = load_encoder(model, self.recipe.init_from)
            self.watcher.said(f"the encoder begins with {taken} of its {of} parameters from {self.recipe.init_from}")
        return model

    def objective(self) -> Objective:
        return caption_objective.objective(self.recipe.training.label_smoothing, self.recipe.attention_penalty)

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        return caption_objective.real_queries(batch)

    def captioner(self, model: nn.Module) -> Captioner:
        """The model with all that it needs to describe pictures."""
        assert isinstance(model, EncoderDecoder)
        recipe = self.recipe
        config = CaptionerConfig(recipe.model, recipe.decoding, recipe.data.picture, self.training)
        return Captioner(model, self.tokenizer, config)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Every metric of really decoded validation captions, and the share that equals one of its references."""
        pixels, references = self.validation
        if not pixels:
            raise ConfigError("validation: no usable picture; check data.validation")
        recipe = self.recipe
        found = evaluate(
            self.captioner(model),
            pixels,
            references,
            options=recipe.validation.decoding,
            batch_pictures=recipe.decoding_pictures,
            bootstrap_samples=0,
        )
        matches = sum(output in several for output, several in zip(found.outputs, references, strict=True))
        values = {metric.name: metric.value for metric in found.scores.metrics}
        return {**values, "distinct": float(found.scores.num_distinct), "exact_match": matches / len(pixels)}

    def evaluate(self, model: nn.Module) -> list[Evaluation]:
        pixels, references = self.test
        if not pixels:
            return []
        return [evaluate(self.captioner(model), pixels, references, batch_pictures=self.recipe.decoding_pictures)]

    def save(self, model: nn.Module, evaluations: Sequence[Any] | None) -> None:
        captioner = self.captioner(model)
        captioner.save(self.folder / "model", model_card(captioner.config, evaluations))
