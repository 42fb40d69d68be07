"""No encoder: the vectors of the source are the memory, as in Show, Attend and Tell (Xu et al. 2015, sec. 3.1.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.inputs.embeddings import EmbeddingConfig
from regard.inputs.sources import SourceConfig, build_source
from regard.models.memory import Memory


@dataclass(frozen=True)
class NoEncoderConfig:
    """A source, and nothing behind it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["none"]
    model_dim: int  # width of the source's vectors
    embedding: SourceConfig = field(default_factory=EmbeddingConfig)


class NoEncoder(nn.Module):
    """A source -> its vectors as memory. source_size: see `build_source`."""

    def __init__(self, source_size: int, config: NoEncoderConfig) -> None:
        super().__init__()
        self.memory_dim = config.model_dim
        self.embedding = build_source(source_size, config.model_dim, config.embedding)

    def forward(
        self, values: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[Memory, dict[str, Observation]]:
        """values, lengths: as `Source` reads them -> (memory, no observations: nothing attends here)."""
        return Memory(*self.embedding.represent(values, lengths)), {}
