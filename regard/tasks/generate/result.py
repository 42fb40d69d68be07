"""What a language model wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regard.attention.records.record import AttentionRecord


@dataclass(frozen=True)
class Continuation:
    """One prompt's continuation.

    text: what follows the prompt, without it. score: length-normalised log-probability, what the search ranked by;
    nats. tokens: of the continuation, end token included where the model produced it. attention: self-attention of
    every layer, rows [1, heads, tokens, keys]: row t is where the model looked when it chose token t; its keys are the
    begin token if the model reads one, the prompt and the continuation so far. Of a text longer than the model's
    context its rows are those of the last `context` tokens; what the model no longer read by then has weight 0. None
    unless asked for. finished: False where the length limit cut it off. alternatives: further ones, best first.
    """

    prompt: str
    text: str
    score: float
    tokens: tuple[str, ...]
    attention: AttentionRecord | None = field(compare=False, repr=False)
    finished: bool = True
    alternatives: tuple[Continuation, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the attention."""
        values: dict[str, Any] = {
            "prompt": self.prompt,
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
