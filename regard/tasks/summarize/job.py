"""A summarization run's own part: the vocabulary, documents and summaries, the model, its loss, its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.data.batches import Batch
from regard.data.corpus import Corpus
from regard.inputs.text import Tokenizer
from regard.models.copying import CopyingDecoder
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks.job import Job
from regard.tasks.summarize.card import model_card
from regard.tasks.summarize.evaluation import Evaluation, evaluate
from regard.tasks.summarize.reading import DocumentColumn
from regard.tasks.summarize.recipe import ROLES, SummarizeRecipe
from regard.tasks.summarize.scoring import rouge
from regard.tasks.summarize.summarizer import Summarizer, SummarizerConfig
from regard.tasks.vocabulary import kept_any_tokenizer
from regard.training.copying import copying_loss
from regard.training.objective import Loss, cross_entropy
from regard.training.parallel import Objective


class SummarizeJob(Job[SummarizeRecipe]):
    roles: ClassVar = ROLES

    def prepare(self) -> Corpus:
        data = self.recipe.data
        limit = self.recipe.validation.max_documents
        self.validation = self.world.in_turn(lambda: self._pairs("validation", limit))
        self.test = self.world.in_turn(lambda: self._pairs("test"))
        self.tokenizer = self.world.in_turn(
            lambda: kept_any_tokenizer(
                data, ROLES, self.recipe.tokenizer, "tokenizer", self.folder / "data" / "tokenizer.json", self.watcher
            )
        )
        columns = {"source": DocumentColumn(self.tokenizer, data.max_tokens), "target": DocumentColumn(self.tokenizer)}
        corpus = self.corpus(columns, {"target": data.max_summary_tokens})
        cut = int((corpus.lengths("source") == data.max_tokens).sum())
        if cut:
            self.watcher.said(f"{cut:,} documents are read as far as their first {data.max_tokens} tokens")
        return corpus

    def _pairs(self, part: str, limit: int | None = None) -> list[tuple[str, str]]:
        """(document, summary) of a part of the data."""
        return [(one.fields["source"], one.fields["target"]) for one in self.records(part, ROLES, limit)]

    def about_data(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.fingerprint()}

    def model(self) -> EncoderDecoder:
        return EncoderDecoder(len(self.tokenizer), len(self.tokenizer), self.recipe.model)

    def objective(self) -> Objective:
        return objective(self.recipe.training.label_smoothing, self.recipe.coverage_loss)

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        return {"encoder": batch.source.values != Tokenizer.PAD, "decoder": batch.target_outputs != Tokenizer.PAD}

    def summarizer(self, model: nn.Module) -> Summarizer:
        """The model with all that it needs to summarise."""
        assert isinstance(model, EncoderDecoder)
        recipe = self.recipe
        config = SummarizerConfig(recipe.model, recipe.decoding, recipe.data.max_tokens, self.training)
        return Summarizer(model, self.tokenizer, config)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """ROUGE, where the recipe decides by it, and the share of exact matches of really decoded validation data."""
        found = self.summarizer(model).summarize(
            [document for document, _ in self.validation],
            self.recipe.validation.decoding,
            attention=False,
            batch_tokens=self.recipe.decoding_batch_tokens,
        )
        outputs, references = [one.text for one in found], [reference for _, reference in self.validation]
        values = {"exact": sum(map(str.__eq__, outputs, references)) / len(references)}
        if self.recipe.validation.metric != "exact":
            of_kinds = rouge(outputs, references).mean(0)
            values |= dict(zip(("rouge1", "rouge2", "rougel"), of_kinds.tolist(), strict=True))
            values["rouge"] = float(of_kinds.mean())
        return values

    def evaluate(self, model: nn.Module) -> list[Evaluation]:
        if not self.test:
            return []
        summarizer, batch_tokens = self.summarizer(model), self.recipe.decoding_batch_tokens
        return [evaluate(summarizer, self.test, batch_tokens=batch_tokens)]

    def save(self, model: nn.Module, evaluations: Sequence[Any] | None) -> None:
        summarizer = self.summarizer(model)
        summarizer.save(self.folder / "model", model_card(summarizer.config, evaluations))


def objective(label_smoothing: float, coverage: float = 0.0) -> Objective:
    """The training loss of a batch: cross-entropy of the summary, teacher-forced, over both ways to a word where the
    model copies. coverage: the weight of pointing again at the same."""

    def loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        assert isinstance(model, EncoderDecoder)
        source, targets = batch.source, batch.target_outputs
        real = targets != Tokenizer.PAD
        decoder = model.decoder
        with torch.autocast(source.values.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            if not isinstance(decoder, CopyingDecoder):
                hidden = model(source.values, source.lengths, batch.target_inputs)
            else:
                hidden, copied = model.copying(source.values, source.lengths, batch.target_inputs)
        hidden = hidden.float()
        if not isinstance(decoder, CopyingDecoder):
            return cross_entropy(hidden[real], decoder.head, targets[real], smoothing=label_smoothing, dtype=dtype)
        return copying_loss(
            decoder,
            hidden,
            copied,
            source.values,
            targets,
            real,
            smoothing=label_smoothing,
            coverage=coverage,
            dtype=dtype,
        )

    return loss
