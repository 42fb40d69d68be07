"""A run that learns to classify pictures: its own part, and how a finished one is scored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from regard.data.batches import Batch
from regard.data.columns import LabelColumn
from regard.data.corpus import Corpus
from regard.data.picture_columns import PictureColumn
from regard.data.picture_records import read_pictures
from regard.data.records import BadRecords, Record
from regard.errors import DataError
from regard.inputs.pictures import PictureError, load_pictures
from regard.models.classifier import POOLED, Classifier
from regard.tasks.caption.evaluation import test_spec
from regard.tasks.caption.recipe import CHANNELS, ROLES
from regard.tasks.classify.card import picture_card
from regard.tasks.classify.job import MOST_LABELS, check_labels, objective
from regard.tasks.classify.picture_labeller import PictureLabeller, PictureLabellerConfig
from regard.tasks.classify.picture_recipe import PictureClassifyRecipe
from regard.tasks.classify.scoring import Scores, score
from regard.tasks.evaluation_data import refuse_options
from regard.tasks.init_from import load_encoder
from regard.tasks.job import Job
from regard.tasks.run_directory import write_text
from regard.training.parallel import Objective

LABEL = "target"


class PictureClassifyJob(Job[PictureClassifyRecipe]):
    roles: ClassVar = ROLES

    def prepare(self) -> Corpus:
        data = self.recipe.data
        self.labels = self.world.in_turn(self._labels)
        limit = self.recipe.validation.max_records
        self.validation = self.world.in_turn(lambda: self._known("validation", limit))
        self.test = self.world.in_turn(lambda: self._known("test"))
        columns = {"source": PictureColumn(data.picture, data.decode_workers), "target": LabelColumn(self.labels)}
        return self.corpus(columns, None)  # type: ignore[arg-type]

    def read(self, spec: Any, roles: Sequence[str], report: BadRecords, limit: int | None = None) -> Iterator[Record]:
        return iter(read_pictures(spec, on_bad=self.recipe.data.on_bad, report=report, limit=limit))

    def _labels(self) -> tuple[str, ...]:
        """All labels, kept in the run directory once they are known. Raises: DataError for data that cannot teach."""
        path, data = self.folder / "data" / "labels.json", self.recipe.data
        if path.is_file():
            return tuple(json.loads(path.read_text(encoding="utf-8")))
        records = read_pictures(data.train, on_bad=data.on_bad)
        labels = sorted({record.fields[LABEL] for record in records})
        if not 2 <= len(labels) <= MOST_LABELS:
            shown = labels[0][:40]
            raise DataError(
                f"{data.train.path}: {len(labels):,} different labels, e.g. {shown!r}; expected 2 to {MOST_LABELS:,}:"
                " name the column that holds them as data.train.columns.target"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(labels, ensure_ascii=False))
        return tuple(labels)

    def _known(self, part: str, limit: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
        """(pictures brought to size, the places of their labels) of a part; files that give none are bad records."""
        records = self.records(part, ROLES, limit)
        check_labels(records, self.labels)
        data, report = self.recipe.data, self.bad_records[part]
        pixels, places = [], []
        paths = [Path(record.fields["source"]) for record in records]
        for record, loaded in zip(records, load_pictures(paths, data.picture, data.decode_workers), strict=True):
            if isinstance(loaded, PictureError):
                report.add(f"{loaded.reason} source", record.origin, on_bad=data.on_bad)
                self.watcher.said(f"{part} data: {loaded}")
            else:
                pixels.append(loaded.pixels)
                places.append(self.labels.index(record.fields[LABEL]))
        return pixels, np.array(places, dtype=np.int64)

    def about_data(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}

    def model(self) -> Classifier:
        model = Classifier(CHANNELS, len(self.labels), self.recipe.model)
        if self.recipe.init_from is not None:
            taken, of = load_encoder(model, self.recipe.init_from)
            self.watcher.said(f"the encoder begins with {taken} of its {of} parameters from {self.recipe.init_from}")
        return model

    def objective(self) -> Objective:
        return objective(self.recipe.training.label_smoothing, word_dropout=0.0)

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        hops = self.recipe.model.pooling.hops
        return {POOLED: torch.ones(len(batch), hops, dtype=torch.bool, device=batch.source.values.device)}

    def labeller(self, model: nn.Module) -> PictureLabeller:
        """The model with all that it needs to classify."""
        assert isinstance(model, Classifier)
        config = PictureLabellerConfig(self.recipe.model, self.labels, self.recipe.data.picture, self.training)
        return PictureLabeller(model, config)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy, macro-F1 and the log-likelihood a picture."""
        pixels, wanted = self.validation
        if not pixels:
            raise DataError("validation: no usable picture; check data.validation")
        probabilities = self.labeller(model).probabilities(pixels, self.recipe.pictures_at_once)
        scores = score(probabilities, wanted, self.labels, samples=0)
        likelihood = np.log(np.maximum(probabilities[np.arange(len(wanted)), wanted], 1e-300)).mean()
        return {**{metric.name: metric.value for metric in scores.metrics}, "log_likelihood": float(likelihood)}

    def evaluate(self, model: nn.Module) -> list[Scores]:
        pixels, wanted = self.test
        if not pixels:
            return []
        probabilities = self.labeller(model).probabilities(pixels, self.recipe.pictures_at_once)
        commonest = Counter(wanted.tolist()).most_common(1)[0][1] / len(wanted)
        return [score(probabilities, wanted, self.labels, baselines={"the commonest label": commonest})]

    def save(self, model: nn.Module, evaluations: Sequence[Any] | None) -> None:
        labeller = self.labeller(model)
        labeller.save(self.folder / "model", picture_card(labeller.config, evaluations))


def evaluate_directory(
    model: PictureLabeller, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
) -> tuple[Scores, tuple[str, ...]]:
    """As `regard.tasks.jobs.Evaluate`; the outputs are labels, and there are no options."""
    refuse_options(options, "classify-pictures")
    records = read_pictures(test_spec(model.config.training, data), on_bad="stop")
    labels = model.config.labels
    check_labels(records, labels)
    said(f"classifying {len(records):,} pictures")
    pixels = []
    for loaded in load_pictures([Path(record.fields["source"]) for record in records], model.config.picture):
        if isinstance(loaded, PictureError):
            raise loaded
        pixels.append(loaded.pixels)
    probabilities = model.probabilities(pixels)
    wanted = np.array([labels.index(record.fields[LABEL]) for record in records])
    return score(probabilities, wanted, labels), tuple(labels[place] for place in probabilities.argmax(1))
