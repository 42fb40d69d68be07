"""A language model's run: its own part, from documents to a directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.data.batches import Batch
from regard.data.columns import TextColumn
from regard.data.corpus import Corpus
from regard.data.windows import INPUTS, TARGET, WindowStream, document_begins
from regard.inputs.text import Tokenizer
from regard.models.language_model import Documents, LanguageModel
from regard.tasks.generate.card import model_card
from regard.tasks.generate.generator import Generator, GeneratorConfig
from regard.tasks.generate.recipe import ROLE, GenerateRecipe
from regard.tasks.generate.scoring import Scores, score
from regard.tasks.job import Job
from regard.tasks.vocabulary import kept_tokenizer
from regard.training.objective import Loss, cross_entropy
from regard.training.parallel import Objective


class GenerateJob(Job[GenerateRecipe]):
    roles: ClassVar = (INPUTS, TARGET)

    def prepare(self) -> Corpus:
        recipe, path = self.recipe, self.folder / "data" / "tokenizer.json"
        limit = recipe.validation.max_documents
        self.validation = self.world.in_turn(lambda: self._texts("validation", limit))
        self.test = self.world.in_turn(lambda: self._texts("test"))
        self.tokenizer = self.world.in_turn(
            lambda: kept_tokenizer(recipe.data, (ROLE,), recipe.tokenizer, "tokenizer", path, self.watcher)
        )
        corpus = self.corpus({ROLE: TextColumn(self.tokenizer)}, recipe.data.max_tokens)
        # Where documents are longer than windows on the average, most windows begin in the middle of one.
        self.begins = corpus.num_tokens(ROLE) <= len(corpus) * recipe.data.batch.window_tokens
        return corpus

    def _texts(self, part: str, limit: int | None = None) -> list[str]:
        return [record.fields[ROLE] for record in self.records(part, (ROLE,), limit)]

    def about_data(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.fingerprint()}

    def stream(self, corpus: Corpus, budget: Any) -> WindowStream:
        return WindowStream(corpus, budget, seed=self.recipe.seed, role=ROLE)

    def model(self) -> LanguageModel:
        return LanguageModel(len(self.tokenizer), self.recipe.model)

    def objective(self) -> Objective:
        return objective(self.recipe.training.label_smoothing)

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        return {"layers": batch.target_outputs != Tokenizer.PAD}

    def generator(self, model: nn.Module) -> Generator:
        """The model with all that it needs to write."""
        assert isinstance(model, LanguageModel)
        recipe = self.recipe
        window = recipe.data.batch.window_tokens
        config = GeneratorConfig(recipe.model, recipe.decoding, window, self.begins, self.training)
        return Generator(model, self.tokenizer, config)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """The log-likelihood a token, and bits per byte, of the validation text."""
        assert isinstance(model, LanguageModel)
        found = score(model, self.tokenizer, self.validation, self.recipe.data.batch)
        return {"log_likelihood": -found.nats_per_token, "bits_per_byte": found.bits_per_byte}

    def evaluate(self, model: nn.Module) -> list[Scores]:
        assert isinstance(model, LanguageModel)
        return [score(model, self.tokenizer, self.test, self.recipe.data.batch)] if self.test else []

    def save(self, model: nn.Module, evaluations: Sequence[Any] | None) -> None:
        generator = self.generator(model)
        generator.save(self.folder / "model", model_card(generator.config, evaluations))


def objective(label_smoothing: float) -> Objective:
    """The training loss of a batch of windows: cross-entropy of what follows each token."""

    def loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        assert isinstance(model, LanguageModel)
        inputs, targets = batch[INPUTS].values, batch.target_outputs
        documents = Documents.beginning_at(document_begins(inputs))
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = model(inputs, documents)
        real = targets != Tokenizer.PAD
        return cross_entropy(hidden.float()[real], model.head, targets[real], smoothing=label_smoothing, dtype=dtype)

    return loss
