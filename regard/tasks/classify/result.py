"""What a classifier says of an input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regard.attention.records.record import AttentionRecord


@dataclass(frozen=True)
class Classification:
    """One input's label.

    source: the input; of a pair both texts. label: the likeliest. probabilities: of every label, the likeliest first.
    attention: what stands behind the label, rows [1, heads, 1, source tokens] of each layer: `pooling` has the hops as
    its heads; an encoder's layer has what its vectors, pooled as the model pools them, looked at. None unless asked
    for, and where nothing attends.
    """

    source: tuple[str, ...]
    label: str
    probabilities: dict[str, float]
    attention: AttentionRecord | None = field(compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the attention."""
        return {
            "source": self.source[0] if len(self.source) == 1 else list(self.source),
            "label": self.label,
            "probabilities": {label: round(value, 6) for label, value in self.probabilities.items()},
        }
