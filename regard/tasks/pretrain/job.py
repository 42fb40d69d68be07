"""A pre-training run: its own part, from bare text to an encoder that others begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.data.batches import Batch
from regard.data.columns import TextColumn
from regard.data.corpus import Corpus
from regard.inputs.text import Tokenizer
from regard.models.masked_language_model import MaskedLanguageModel, hide
from regard.tasks.job import Job
from regard.tasks.pretrain.filler import Filler, FillerConfig
from regard.tasks.pretrain.recipe import ROLE, PretrainRecipe
from regard.tasks.pretrain.scoring import Scores, score
from regard.tasks.vocabulary import kept_tokenizer
from regard.training.objective import Loss, cross_entropy
from regard.training.parallel import Objective


class PretrainJob(Job[PretrainRecipe]):
    roles: ClassVar = (ROLE,)

    def prepare(self) -> Corpus:
        recipe, path = self.recipe, self.folder / "data" / "tokenizer.json"
        limit = recipe.validation.max_records
        self.validation = self.world.in_turn(lambda: self._texts("validation", limit))
        self.test = self.world.in_turn(lambda: self._texts("test"))
        self.tokenizer = self.world.in_turn(
            lambda: kept_tokenizer(recipe.data, (ROLE,), recipe.tokenizer, "tokenizer", path, self.watcher)
        )
        return self.corpus({ROLE: TextColumn(self.tokenizer)}, recipe.data.max_tokens)

    def _texts(self, part: str, limit: int | None = None) -> list[str]:
        return [record.fields[ROLE] for record in self.records(part, (ROLE,), limit)]

    def about_data(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.fingerprint()}

    def model(self) -> MaskedLanguageModel:
        return MaskedLanguageModel(len(self.tokenizer), self.recipe.model)

    def objective(self) -> Objective:
        return objective(len(self.tokenizer), self.recipe.training.label_smoothing)

    def real_queries(self, batch: Batch) -> dict[str, Tensor]:
        return {"encoder": batch.target_outputs != Tokenizer.PAD}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """The log-likelihood of a hidden token, and the share that is filled in rightly."""
        assert isinstance(model, MaskedLanguageModel)
        found = score(model, self.tokenizer, self.validation, self.recipe.batch_tokens)
        return {"log_likelihood": -found.nats / found.num_tokens, "accuracy": found.right / found.num_tokens}

    def evaluate(self, model: nn.Module) -> list[Scores]:
        assert isinstance(model, MaskedLanguageModel)
        return [score(model, self.tokenizer, self.test, self.recipe.batch_tokens)] if self.test else []

    def save(self, model: nn.Module, evaluations: Sequence[Any] | None) -> None:
        assert isinstance(model, MaskedLanguageModel)
        Filler(model, self.tokenizer, FillerConfig(self.recipe.model, self.training)).save(self.folder / "model")


def objective(vocab: int, label_smoothing: float) -> Objective:
    """The training loss of a batch: cross-entropy of the tokens that are hidden, weighed as if all tokens were."""

    def loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        assert isinstance(model, MaskedLanguageModel)
        ids, lengths = batch.target
        hidden = hide(ids, lengths, vocab, model.config.hidden_share)
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            vectors, _ = model(hidden.inputs, lengths)
        wanted = ids[hidden.wanted]
        found = cross_entropy(
            vectors.float()[hidden.wanted], model.head, wanted, smoothing=label_smoothing, dtype=dtype
        )
        # A batch's loss is divided by all of its tokens, of which only some are predicted.
        weight = float(lengths.sum()) / max(len(wanted), 1)
        return Loss(found.objective * weight, found.nll * weight)

    return loss
