"""A classifier's run: its own part, from labelled text to a directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.data.batches import Batch, Sequences
from regard.data.columns import LabelColumn, TextColumn
from regard.data.corpus import Corpus
from regard.data.readers import read
from regard.data.records import Record
from regard.errors import DataError
from regard.inputs.text import Tokenizer
from regard.models.classifier import POOLED, Classifier
from regard.tasks.classify.card import model_card
from regard.tasks.classify.labeller import Labeller, LabellerConfig, Source
from regard.tasks.classify.naive_bayes import NaiveBayes
from regard.tasks.classify.recipe import LABEL, SECOND, SOURCE, ClassifyRecipe
from regard.tasks.classify.scoring import Scores, score
from regard.tasks.job import Job
from regard.tasks.pretrain.start import begin_with, pretrained
from regard.tasks.run_directory import write_text
from regard.tasks.vocabulary import kept_tokenizer
from regard.training.objective import Loss
from regard.training.parallel import Objective

MOST_LABELS = 1000  # more are taken for a column that is none of labels


class ClassifyJob(Job[ClassifyRecipe]):
    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.recipe.data.roles

    def prepare(self) -> Corpus:
        recipe = self.recipe
        self.labels = self.world.in_turn(self._labels)
        limit = recipe.validation.max_records
        self.validation = self.world.in_turn(lambda: self._known("validation", limit))
        self.test = self.world.in_turn(lambda: self._known("test"))
        self.tokenizer = self.world.in_turn(self._tokenizer)
        check_lengths([*self.validation, *self.test], self.tokenizer, recipe.data.max_tokens)
        text = TextColumn(self.tokenizer)
        columns = {role: LabelColumn(self.labels) if role == LABEL else text for role in self.roles}
        self.train = self.corpus(columns, recipe.data.max_tokens)
        return self.train

    def _labels(self) -> tuple[str, ...]:
        """All labels, kept in the run directory once they are known. Raises: DataError for data that cannot teach."""
        path, data = self.folder / "data" / "labels.json", self.recipe.data
        if path.is_file():
            return tuple(json.loads(path.read_text(encoding="utf-8")))
        found = Counter(one.fields[LABEL] for one in read(data.train, data.roles, on_bad=data.on_bad))
        name = data.train.path if isinstance(data.train.path, str) else ", ".join(data.train.path.values())
        if len(found) > MOST_LABELS and data.labels is None:
            raise DataError(
                f"{name}: {len(found):,} different labels, e.g. {next(iter(found))[:40]!r}; name the column that holds"
                " them under data.train.columns, or list them as data.labels"
            )
        labels = data.labels or tuple(sorted(found))
        missing = [label for label in labels if not found[label]]
        if missing:
            named = ", ".join(f"`{label}`" for label in missing)
            raise DataError(
                f"{name}: no example of {named} among {found.total():,} training records; add some, or take it out of"
                " data.labels"
            )
        if len(labels) < 2:
            raise DataError(f"{name}: all records have the label `{labels[0]}`; expected at least 2 to tell apart")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(labels, ensure_ascii=False))
        return labels

    def _known(self, part: str, limit: int | None = None) -> list[Record]:
        records = self.records(part, self.roles, limit)
        check_labels(records, self.labels)
        return records

    def _tokenizer(self) -> Tokenizer:
        recipe, path = self.recipe, self.folder / "data" / "tokenizer.json"
        if recipe.init_from is not None:
            return pretrained(recipe.init_from).tokenizer
        assert recipe.tokenizer is not None
        roles = tuple(role for role in self.roles if role != LABEL)
        return kept_tokenizer(recipe.data, roles, recipe.tokenizer, "tokenizer", path, self.watcher)

    def about_data(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.fingerprint(), "labels": list(self.labels)}

    def model(self) -> Classifier:
        model = Classifier(len(self.tokenizer), len(self.labels), self.recipe.model)
        if self.recipe.init_from is not None:
            begin_with(model.encoder, pretrained(self.recipe.init_from))
        if model.ngrams is not None:
            texts = [role for role in self.roles if role != LABEL]
            places = range(len(self.train))
            model.ngrams.count(
                (np.concatenate([self.train[role, place] for role in texts]) for place in places),
                (int(self.train[LABEL, place][0]) for place in places),
            )
        return model

    def objective(self) -> Objective:
        recipe = self.recipe
        return objective(recipe.training.label_smoothing, recipe.word_dropout)

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        _, lengths = inputs_of(batch)
        real = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        hops = self.recipe.model.pooling.hops
        return {"encoder": real, POOLED: torch.ones(len(lengths), hops, dtype=torch.bool, device=lengths.device)}

    def labeller(self, model: nn.Module) -> Labeller:
        """The model with all that it needs to classify."""
        assert isinstance(model, Classifier)
        data = self.recipe.data
        config = LabellerConfig(self.recipe.model, self.labels, data.pairs, data.max_tokens, self.training)
        return Labeller(model, self.tokenizer, config)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy, macro-F1 and the log-likelihood a record."""
        probabilities, wanted = outputs(self.labeller(model), self.validation, self.recipe.batch_tokens)
        scores = score(probabilities, wanted, self.labels, samples=0)
        values = {metric.name: metric.value for metric in scores.metrics}
        likelihood = np.log(np.maximum(probabilities[np.arange(len(wanted)), wanted], 1e-300)).mean()
        return {**values, "log_likelihood": float(likelihood)}

    def evaluate(self, model: nn.Module) -> list[Scores]:
        if not self.test:
            return []
        probabilities, wanted = outputs(self.labeller(model), self.test, self.recipe.batch_tokens)
        return [score(probabilities, wanted, self.labels, baselines=self._baselines())]

    def _baselines(self) -> dict[str, float]:
        """What counting words, and always telling the commonest label, would score on the test data."""
        data = self.recipe.data
        train = list(read(data.train, data.roles, on_bad=data.on_bad))
        texts, labels = zip(*((as_one_text(one), one.fields[LABEL]) for one in train), strict=True)
        tested, wanted = zip(*((as_one_text(one), one.fields[LABEL]) for one in self.test), strict=True)
        commonest = Counter(labels).most_common(1)[0][0]
        return {
            "bigram naive Bayes": NaiveBayes(texts, labels).accuracy(tested, wanted),
            "the commonest label": sum(label == commonest for label in wanted) / len(wanted),
        }

    def save(self, model: nn.Module, evaluations: Sequence[Any] | None) -> None:
        labeller = self.labeller(model)
        labeller.save(self.folder / "model", model_card(labeller.config, evaluations))


def check_labels(records: Sequence[Record], labels: Sequence[str]) -> None:
    """Raises: DataError naming the first record whose label no model of these labels can tell."""
    for record in records:
        if record.fields[LABEL] not in labels:
            known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
            raise DataError(
                f"{record.origin}: unknown label {record.fields[LABEL][:40]!r}, the model knows {known}; mend the"
                " record, or train with it"
            )


def check_lengths(records: Sequence[Record], tokenizer: Tokenizer, longest: int) -> None:
    """Raises: DataError naming the first record with a text of more tokens than a model learns from."""
    for role in (SOURCE, SECOND):
        given = [record for record in records if role in record.fields]
        for record, ids in zip(given, tokenizer.encode_ids([one.fields[role] for one in given]), strict=True):
            if len(ids) >= longest:
                raise DataError(
                    f"{record.origin}: {role} has {len(ids) + 1:,} tokens, more than data.max_tokens, {longest}; a"
                    " score must leave no record out: raise it, or shorten the record"
                )


def as_one_text(record: Record) -> str:
    """The words of a record, of a pair those of both."""
    return " ".join(record.fields[role] for role in (SOURCE, SECOND) if role in record.fields)


def outputs(labeller: Labeller, records: Sequence[Record], batch_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities [records, labels], the true labels' places)."""
    sources: list[Source] = [
        (one.fields[SOURCE], one.fields[SECOND]) if SECOND in one.fields else one.fields[SOURCE] for one in records
    ]
    found = labeller.classify(sources, batch_tokens=batch_tokens)
    labels = labeller.config.labels
    probabilities = np.array([[one.probabilities[label] for label in labels] for one in found])
    return probabilities, np.array([labels.index(one.fields[LABEL]) for one in records])


def inputs_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """(values, lengths) that a classifier reads: the source, of a pair both texts one behind the other."""
    first = batch.source
    if SECOND not in batch.roles:
        return first.values, first.lengths
    second = batch[SECOND]
    return behind(first, second)


def behind(first: Sequences, second: Sequences) -> Sequences:
    """Rows of ids with the rows of `second` right behind them, their end tokens between."""
    lengths = first.lengths + second.lengths
    place = torch.arange(int(lengths.max()), device=lengths.device)[None].expand(len(lengths), -1)
    of_second = (place - first.lengths[:, None]).clamp(0, second.values.shape[1] - 1)
    values = torch.where(
        place < first.lengths[:, None],
        first.values.gather(1, place.clamp(max=first.values.shape[1] - 1)),
        second.values.gather(1, of_second),
    )
    return Sequences(values.masked_fill(place >= lengths[:, None], Tokenizer.PAD), lengths)


def objective(label_smoothing: float, word_dropout: float) -> Objective:
    """The training loss of a batch: label-smoothed cross-entropy of the labels, the mean of the
    model's parts, and what the hops are fined."""

    def loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        assert isinstance(model, Classifier)
        values, lengths = inputs_of(batch)
        if word_dropout and model.training:
            dropped = torch.rand(values.shape, device=values.device) < word_dropout
            values = torch.where(dropped & (values > Tokenizer.UNK), Tokenizer.UNK, values)
        with torch.autocast(values.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = model(values, lengths)
        targets = batch.target.values[:, 0]
        nll = F.cross_entropy(found.logits.float(), targets, reduction="sum")
        smoothed = [
            F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)
            for logits in found.parts
        ]
        fine = model.config.pooling.penalty * found.penalty.float()
        return Loss(torch.stack(smoothed).mean() + fine, nll.detach())

    return loss
