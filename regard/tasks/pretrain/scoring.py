"""How well an encoder fills in hidden tokens; which ones are hidden does not depend on the model or the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from regard.data.batches import Sequences, by_length
from regard.inputs.text import Tokenizer
from regard.models.masked_language_model import MaskedLanguageModel, hide
from regard.tasks.metrics import Metric, metrics_json

SEED = 12345  # of the choice of what is hidden


@dataclass(frozen=True)
class Scores:
    """nats: of the hidden tokens, summed. right: how many were the likeliest. num_tokens: how many were hidden."""

    nats: float
    right: int
    num_tokens: int
    hidden_share: float

    def lines(self) -> list[str]:
        """What to print."""
        return [
            f"nats per hidden token {self.nats / self.num_tokens:.4f}, filled in rightly "
            f"{self.right / self.num_tokens:.4f}  hidden:{self.hidden_share:g}|tokens:{self.num_tokens}"
        ]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values; there is no interval."""
        signature = f"hidden:{self.hidden_share:g}|tokens:{self.num_tokens}"
        values = {"nats_per_hidden_token": self.nats / self.num_tokens, "accuracy": self.right / self.num_tokens}
        metrics = [Metric(name, value, (value, value), signature) for name, value in values.items()]
        return {"scoring": "filling in", "metrics": metrics_json(metrics)}


@torch.no_grad()
def score(model: MaskedLanguageModel, tokenizer: Tokenizer, texts: Sequence[str], batch_tokens: int) -> Scores:
    """Hides the same tokens of `texts` every time, and has them filled in."""
    device = next(model.parameters()).device
    rows = tokenizer.encode_ids(texts)
    lengths = np.array([len(ids) + 1 for ids in rows], dtype=np.int64)
    generator = torch.Generator().manual_seed(SEED)
    share = model.config.hidden_share
    nats, right, count = [], 0, 0
    for places in by_length(lengths, batch_tokens):
        ids, of_rows = (tensor.to(device) for tensor in Sequences.padded([rows[place] for place in places]))
        hidden = hide(ids, of_rows, len(tokenizer), share, generator)
        vectors, _ = model(hidden.inputs, of_rows)
        log_probs, wanted = model.head.log_probs(vectors[hidden.wanted]), ids[hidden.wanted]
        nats.append(-float(log_probs.gather(1, wanted[:, None]).double().sum()))
        right += int((log_probs.argmax(-1) == wanted).sum())
        count += len(wanted)
    return Scores(math.fsum(nats), right, count, share)
