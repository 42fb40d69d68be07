"""Step 1 for text: token ids become vectors that know their position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regard.errors import ConfigError, ShapeError
from regard.inputs.source import Represented
from regard.layers.dropout import Dropout


@dataclass(frozen=True)
class EmbeddingConfig:
    """How tokens and positions become vectors."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # "sinusoidal": Vaswani et al. 2017, sec. 3.5. "learned": a vector a position (Gehring et al. 2017).
    # "none": no position here, for recurrent models and for rotary attention.
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    max_positions: int = 1024  # length limit of learned positions, in tokens; the others have none
    scale_by_root: bool = True  # multiply embeddings by sqrt(model_dim), Vaswani et al. 2017, sec. 3.4
    norm: bool = False  # layer norm after the sum, as BERT and BART do
    dropout: float = 0.0


def sinusoidal_positions(
    begin: int, end: int, model_dim: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[end - begin, model_dim]: even channels sin, odd channels cos, wavelengths from 2 pi to 10,000 * 2 pi positions.

    Numerics: worked out in float64, given in `dtype`. Raises: ConfigError when model_dim is odd.
    Source: Vaswani et al. 2017, sec. 3.5.
    """
    _check_even(model_dim)
    position = torch.arange(begin, end, dtype=torch.float64, device=device)[:, None]
    channel = torch.arange(0, model_dim, 2, dtype=torch.float64, device=device)
    angle = position * torch.exp(channel * (-math.log(10_000.0) / model_dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(dtype)


def _check_even(model_dim: int) -> None:
    if model_dim % 2:
        raise ConfigError(
            f"embedding: sinusoidal positions want an even model_dim, not {model_dim}; change it or embedding.positions"
        )


class TextEmbedding(nn.Module):
    """Token vectors plus positions.

    vocab: number of tokens; padding: the id whose vector is never trained by its own lookup.

    Raises: ConfigError for sinusoids of an odd width; ShapeError when a text outgrows the learned positions.
    """

    def __init__(self, vocab: int, model_dim: int, config: EmbeddingConfig, *, padding: int = 0) -> None:
        super().__init__()
        self.config = config
        self.model_dim = model_dim
        self.tokens = nn.Embedding(vocab, model_dim, padding_idx=padding)
        nn.init.normal_(self.tokens.weight, std=model_dim**-0.5)
        with torch.no_grad():
            self.tokens.weight[padding].zero_()
        self.scale = math.sqrt(model_dim) if config.scale_by_root else 1.0
        if config.positions == "sinusoidal":
            _check_even(model_dim)
        self.learned = None
        if config.positions == "learned":
            self.learned = nn.Embedding(config.max_positions, model_dim)
            # As large as the token vectors they are added to.
            nn.init.normal_(self.learned.weight, std=1.0 if config.scale_by_root else model_dim**-0.5)
        self.norm = nn.LayerNorm(model_dim) if config.norm else None
        self.dropout = Dropout(config.dropout)
        self._table = torch.empty(0)  # sinusoids so far; grown when a longer text comes

    @property
    def weight(self) -> nn.Parameter:
        """The token vectors, [vocab, model_dim]: what a tied head or another embedding shares."""
        assert isinstance(self.tokens.weight, nn.Parameter)
        return self.tokens.weight

    def forward(self, ids: Tensor, begin: int = 0, positions: Tensor | None = None) -> Tensor:
        """ids [batch, length] at positions begin, begin + 1, ... -> [batch, length, model_dim].

        positions: int64 [batch, length], where they are others, as of documents packed into one row.
        """
        vectors = self.tokens(ids)
        if self.scale != 1.0:
            vectors = vectors * self.scale
        if self.config.positions != "none":
            if positions is None:
                vectors = vectors + self._positions(begin, begin + ids.shape[1], vectors)
            else:
                vectors = vectors + self._positions(0, ids.shape[1], vectors)[positions]
        if self.norm is not None:
            vectors = self.norm(vectors)
        result: Tensor = self.dropout(vectors)
        return result

    def represent(self, values: Tensor, lengths: Tensor) -> Represented:
        """As a source: a vector for each id."""
        return Represented(self(values), lengths)

    def _positions(self, begin: int, end: int, like: Tensor) -> Tensor:
        if self.learned is not None:
            if end > self.config.max_positions:
                raise ShapeError(
                    f"embedding: {end} tokens, but learned positions end at {self.config.max_positions}; "
                    "shorten the input or train with a larger embedding.max_positions"
                )
            learned: Tensor = self.learned.weight[begin:end]
            return learned
        table = self._table
        if table.shape[0] < end or table.device != like.device or table.dtype != like.dtype:
            # Doubling keeps a text that grows token by token from computing the table at every step.
            length = max(end, 128, 2 * table.shape[0] if table.shape[0] < end else table.shape[0])
            table = self._table = sinusoidal_positions(0, length, self.model_dim, like.device, like.dtype)
        return table[begin:end]
