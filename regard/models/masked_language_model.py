"""Masked language modelling: an encoder learns from bare text by filling in hidden tokens. Devlin et al. 2019."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import TextEmbedding
from regard.inputs.text import Tokenizer
from regard.layers.head import HeadConfig, OutputHead
from regard.models.transformer_encoder import TransformerEncoder, TransformerEncoderConfig

MASK = Tokenizer.UNK  # what stands for a hidden token: no text is ever encoded to it
OF_HIDDEN_MASKED, OF_HIDDEN_REPLACED = 0.8, 0.1  # the rest stays what it is, so that every vector must be good


@dataclass(frozen=True)
class MaskedLanguageModelConfig:
    """An encoder, and how much it must fill in."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    encoder: TransformerEncoderConfig
    hidden_share: float = 0.15  # of all tokens but the end, to be predicted

    def __post_init__(self) -> None:
        if not 0.0 < self.hidden_share < 1.0:
            raise ConfigError(f"model.hidden_share is {self.hidden_share}, expected between 0 and 1")


class Hidden(NamedTuple):
    """inputs: ids with some hidden, [batch, length]. wanted: bool [batch, length], which are to be predicted."""

    inputs: Tensor
    wanted: Tensor


class MaskedLanguageModel(nn.Module):
    """vocab: of the text. The head's matrix is the embedding's."""

    def __init__(self, vocab: int, config: MaskedLanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TransformerEncoder(vocab, config.encoder)
        embedding = self.encoder.embedding
        if not isinstance(embedding, TextEmbedding):
            raise ConfigError("model.encoder.embedding: words are filled in by an encoder of text; leave `type` out")
        self.head = OutputHead(embedding.weight, HeadConfig(bias=True))

    def forward(
        self, ids: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[Tensor, dict[str, Observation]]:
        """ids [batch, length] -> (hidden vectors [batch, length, model_dim], observations by layer name)."""
        memory, observations = self.encoder(ids, lengths, observe)
        return memory.vectors, observations

    def num_parameters(self) -> int:
        """Trained numbers, shared matrices counted once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def hide(ids: Tensor, lengths: Tensor, vocab: int, share: float, generator: torch.Generator | None = None) -> Hidden:
    """Chooses what an encoder must fill in.

    ids: int64 [batch, length], each row ended by its end token, which is never hidden. generator: torch's global one
    unless given. In every row with text at least one token is hidden.
    """
    chance = torch.rand(ids.shape, generator=generator).to(ids.device)
    real = torch.arange(ids.shape[1], device=ids.device) < (lengths - 1)[:, None]
    wanted = (chance < share) & real
    # A row of few tokens may have none: it gives the one with the smallest draw.
    least = torch.where(real, chance, 2.0).argmin(1, keepdim=True)
    lacking = ~wanted.any(1, keepdim=True) & real.any(1, keepdim=True)
    wanted = wanted.scatter(1, least, wanted.gather(1, least) | lacking)
    fate = torch.rand(ids.shape, generator=generator).to(ids.device)
    others = torch.randint(len(_SPECIAL), vocab, ids.shape, generator=generator).to(ids.device)
    inputs = torch.where(wanted & (fate < OF_HIDDEN_MASKED), MASK, ids)
    replaced = wanted & (fate >= OF_HIDDEN_MASKED) & (fate < OF_HIDDEN_MASKED + OF_HIDDEN_REPLACED)
    return Hidden(torch.where(replaced, others, inputs), wanted)


_SPECIAL = (Tokenizer.PAD, Tokenizer.BOS, Tokenizer.EOS, Tokenizer.UNK)
