"""What a translation is: text, score, tokens, and what was attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from regard.attention.observation import Observation
from regard.attention.records.record import AttentionRecord, Axis
from regard.decoding.hypotheses import Hypothesis
from regard.inputs.text import Encoded, Tokenizer


@dataclass(frozen=True)
class Translation:
    """One input's translation.

    score: length-normalised log-probability, what the search ranked by; nats. tokens: the subwords of the output, end
    token included where the model produced it. attention: cross-attention of the decoder, rows [1, heads, target_len,
    source_len]: row t is where the model looked when it produced token t; float32, on the CPU. None unless asked for,
    and for an empty source, which nothing looked at. finished: False where the length limit cut the output off.
    alternatives: the further hypotheses of an n-best list, best first.
    """

    source: str
    text: str
    score: float
    tokens: tuple[str, ...]
    attention: AttentionRecord | None = field(compare=False, repr=False)
    finished: bool = True
    alternatives: tuple[Translation, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the attention."""
        values: dict[str, Any] = {
            "source": self.source,
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


def translation_of(
    source: str, encoded: Encoded, hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer
) -> Translation:
    """The best hypothesis, with the rest as its alternatives. encoded: the source as the model read it, without its
    end."""
    best, *others = (_one(source, encoded, hypothesis, tokenizer) for hypothesis in hypotheses)
    return replace(best, alternatives=tuple(others))


def _one(source: str, encoded: Encoded, hypothesis: Hypothesis, tokenizer: Tokenizer) -> Translation:
    ids = list(hypothesis.tokens)
    text, spans = tokenizer.spans(ids)
    tokens = tuple(tokenizer.tokens_of(ids))
    record = None
    if hypothesis.attention:
        end = tokenizer.tokens_of([Tokenizer.EOS])[0]
        key = Axis(source, (*encoded.tokens, end), (*encoded.offsets, (len(source), len(source))))
        layers = {
            name: Observation(rows=rows[None].float().cpu(), row_index=torch.arange(rows.shape[1]))
            for name, rows in hypothesis.attention.items()
        }
        record = AttentionRecord(layers, Axis(text, tokens, tuple(spans)), key)
    return Translation(source, text, hypothesis.score, tokens, record, hypothesis.finished)


def joined(source: str, pieces: Sequence[Translation], begins: Sequence[int], separator: str = " ") -> Translation:
    """The translation of a text that was translated piece by piece.

    begins: where each piece begins in `source`, in characters. Texts are joined by `separator`; the score is the mean
    over all tokens; attention is block-diagonal, since no piece saw another; alternatives pair up rank by rank.
    """
    if len(pieces) == 1 and pieces[0].source == source:
        return pieces[0]
    text = separator.join(piece.text for piece in pieces if piece.text)
    counts = [max(len(piece.tokens), 1) for piece in pieces]
    score = sum(piece.score * count for piece, count in zip(pieces, counts, strict=True)) / sum(counts)
    records = [piece.attention for piece in pieces]
    attention = None
    if all(record is not None for record in records):
        attention = _block_diagonal(
            source, text, [record for record in records if record is not None], begins, separator
        )
    ranks = min(len(piece.alternatives) for piece in pieces)
    alternatives = [
        joined(source, [piece.alternatives[rank] for piece in pieces], begins, separator) for rank in range(ranks)
    ]
    return Translation(
        source,
        text,
        score,
        tuple(token for piece in pieces for token in piece.tokens),
        attention,
        all(piece.finished for piece in pieces),
        tuple(alternatives),
    )


def _block_diagonal(
    source: str, text: str, records: Sequence[AttentionRecord], begins: Sequence[int], separator: str
) -> AttentionRecord:
    axes = [record.query for record in records if record.query is not None]
    query_begins, begin = [], 0
    for axis in axes:
        query_begins.append(min(begin, len(text)))  # behind the last text there is no separator
        begin += len(axis.text) + len(separator) if axis.text else 0
    layers = {}
    for name in records[0].layers:
        blocks = [rows for record in records if (rows := record[name].rows) is not None]
        heads = blocks[0].shape[1]
        rows = torch.stack([torch.block_diag(*(block[0, head] for block in blocks)) for head in range(heads)])[None]
        layers[name] = Observation(rows=rows, row_index=torch.arange(rows.shape[2]))
    query = _concatenated(text, axes, query_begins)
    key = _concatenated(source, [record.key for record in records if record.key is not None], begins)
    return AttentionRecord(layers, query, key)


def _concatenated(text: str, axes: Sequence[Axis], begins: Sequence[int]) -> Axis:
    tokens = tuple(token for axis in axes for token in axis.tokens)
    spans = tuple((a + begin, b + begin) for axis, begin in zip(axes, begins, strict=True) for a, b in axis.spans)
    return Axis(text, tokens, spans)
