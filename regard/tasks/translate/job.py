"""A translation run's own part: vocabularies and sentence pairs, the model, its loss, its scores, its directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.data.batches import Batch
from regard.data.columns import TextColumn
from regard.data.corpus import Corpus
from regard.inputs.sentences import are_single_sentences
from regard.inputs.text import Tokenizer
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks.job import Job
from regard.tasks.translate.card import model_card
from regard.tasks.translate.evaluation import Evaluation, evaluate
from regard.tasks.translate.recipe import ROLES, TranslateRecipe
from regard.tasks.translate.scoring import score
from regard.tasks.translate.translator import Translator, TranslatorConfig
from regard.tasks.vocabulary import kept_tokenizer
from regard.training.objective import Loss, cross_entropy
from regard.training.parallel import Objective


class TranslateJob(Job[TranslateRecipe]):
    roles: ClassVar = ROLES

    def prepare(self) -> Corpus:
        limit = self.recipe.validation.max_sentences
        self.validation = self.world.in_turn(lambda: self._pairs("validation", limit))
        self.test = self.world.in_turn(lambda: self._pairs("test"))
        self.source, self.target = self.world.in_turn(self.tokenizers)
        columns = {"source": TextColumn(self.source), "target": TextColumn(self.target)}
        corpus = self.corpus(columns, self.recipe.data.max_tokens)
        self.longest_source = int(corpus.lengths("source").max())
        return corpus

    def _pairs(self, part: str, limit: int | None = None) -> list[tuple[str, str]]:
        """(source, target) of a part of the data."""
        return [(one.fields["source"], one.fields["target"]) for one in self.records(part, ROLES, limit)]

    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """The source's and the target's tokenizer, trained on the training text and kept in the run directory."""
        config, data, folder = self.recipe.tokenizers, self.recipe.data, self.folder / "data"
        if config.joint:
            path = folder / "tokenizer.json"
            joint = kept_tokenizer(data, ROLES, config.source, "tokenizers.source", path, self.watcher)
            return joint, joint
        key = "tokenizers.source" if config.target is None else "tokenizers.target"
        ours, theirs = folder / "tokenizer.source.json", folder / "tokenizer.target.json"
        return (
            kept_tokenizer(data, ("source",), config.source, "tokenizers.source", ours, self.watcher),
            kept_tokenizer(data, ("target",), config.target or config.source, key, theirs, self.watcher),
        )

    def about_data(self) -> dict[str, Any]:
        return {"tokenizer": self.source.fingerprint()}

    def model(self) -> EncoderDecoder:
        return EncoderDecoder(len(self.source), len(self.target), self.recipe.model)

    def objective(self) -> Objective:
        return objective(self.recipe.training.label_smoothing)

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        return real_queries(batch)

    def translator(self, model: nn.Module) -> Translator:
        """The model with all that it needs to translate."""
        assert isinstance(model, EncoderDecoder)
        recipe, language = self.recipe, self.recipe.data.source_language
        config = TranslatorConfig(
            language,
            recipe.data.target_language,
            recipe.model,
            recipe.decoding,
            self.longest_source,
            self.training,
            sentence_level=are_single_sentences([source for source, _ in self.validation], language),
        )
        return Translator(model, self.source, self.target, config)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """BLEU, chrF and the share of exact matches of really decoded validation text."""
        recipe, references = self.recipe, [target for _, target in self.validation]
        found = self.translator(model).translate(
            [source for source, _ in self.validation],
            recipe.validation.decoding,
            attention=False,
            split=False,
            batch_tokens=recipe.decoding_batch_tokens,
        )
        outputs = [one.text for one in found]
        language = recipe.data.target_language
        scores = score(outputs, references, language=language, scoring=recipe.validation.scoring, bootstrap_samples=0)
        values = {metric.name.lower(): metric.value for metric in scores.metrics}
        matches = sum(output == reference for output, reference in zip(outputs, references, strict=True))
        return {**values, "exact_match": matches / len(references)}

    def evaluate(self, model: nn.Module) -> list[Evaluation]:
        if not self.test:
            return []
        recipe = self.recipe
        return evaluate(self.translator(model), self.test, recipe.report, batch_tokens=recipe.decoding_batch_tokens)

    def save(self, model: nn.Module, evaluations: Sequence[Any] | None) -> None:
        translator = self.translator(model)
        translator.save(self.folder / "model", model_card(translator.config, evaluations))


def objective(label_smoothing: float) -> Objective:
    """The training loss of a batch: label-smoothed cross-entropy of the target, teacher-forced."""

    def loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        assert isinstance(model, EncoderDecoder)
        device = batch.source.values.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = model(batch.source.values, batch.source.lengths, batch.target_inputs)
        targets = batch.target_outputs
        real = targets != Tokenizer.PAD
        head = model.decoder.head
        return cross_entropy(hidden.float()[real], head, targets[real], smoothing=label_smoothing, dtype=dtype)

    return loss


def real_queries(batch: Batch) -> dict[str, Tensor]:
    """As `Job.real_queries`, of text to text."""
    return {"encoder": batch.source.values != Tokenizer.PAD, "decoder": batch.target_outputs != Tokenizer.PAD}
