"""What a caption is: text, score, tokens, and where the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from regard.attention.observation import Observation
from regard.attention.records.axis import Axis, PictureGrid
from regard.attention.records.record import AttentionRecord
from regard.decoding.hypotheses import Hypothesis
from regard.inputs.text import Tokenizer


@dataclass(frozen=True)
class Caption:
    """One picture's caption.

    picture: its name. score: length-normalised log-probability, what the search ranked by; nats. tokens: the subwords
    of the output, end token included where the model produced it. attention: of the decoder to the picture, rows [1,
    heads, tokens, places]: row t is where the model looked when it produced token t; its key axis is the picture's
    grid. finished: False where the length limit cut the output off. alternatives: further hypotheses of an n-best list.
    """

    picture: str
    text: str
    score: float
    tokens: tuple[str, ...]
    attention: AttentionRecord | None = field(compare=False, repr=False)
    finished: bool = True
    alternatives: tuple[Caption, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the attention."""
        values: dict[str, Any] = {
            "picture": self.picture,
            "text": self.text,
            "score": round(self.score, 6),
            "tokens": list(self.tokens),
            "finished": self.finished,
        }
        if self.alternatives:
            values["alternatives"] = [
                {"text": other.text, "score": round(other.score, 6), "finished": other.finished}
                for other in self.alternatives
            ]
        return values


def caption_of(name: str, hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer, grid: PictureGrid | None) -> Caption:
    """The best hypothesis, with the rest as its alternatives. grid: what attention is drawn on; None for none."""
    best, *others = (_one(name, hypothesis, tokenizer, grid) for hypothesis in hypotheses)
    return replace(best, alternatives=tuple(others))


def _one(name: str, hypothesis: Hypothesis, tokenizer: Tokenizer, grid: PictureGrid | None) -> Caption:
    ids = list(hypothesis.tokens)
    text, spans = tokenizer.spans(ids)
    tokens = tuple(tokenizer.tokens_of(ids))
    record = None
    if hypothesis.attention and grid is not None:
        layers = {
            layer: Observation(rows=rows[None].float().cpu(), row_index=torch.arange(rows.shape[1]))
            for layer, rows in hypothesis.attention.items()
        }
        record = AttentionRecord(layers, Axis(text, tokens, tuple(spans)), Axis.of_picture(name, grid))
    return Caption(name, text, hypothesis.score, tokens, record, hypothesis.finished)
