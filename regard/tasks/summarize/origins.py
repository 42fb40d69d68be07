"""Where the words of an output came from: which part of each token's probability was copying, and from where.

An output is read once more by the decoder that wrote it. A token's probability is g P_vocab(w) + (1 - g) A(w), A(w) the
attention on its occurrences in the source; the second summand's share says how far it was copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regard.data.batches import Sequences
from regard.inputs.text import Tokenizer
from regard.models.copying import CopyingDecoder
from regard.models.memory import Memory


class Origins(NamedTuple):
    """Of one output, an entry a token. copied: the share of copying, 0 to 1. places: the source token that it was most
    copied from; None where that share is 0."""

    copied: list[float]
    places: list[int | None]


@torch.no_grad()
def origins_of(
    decoder: CopyingDecoder, memories: Mapping[str, Memory], rows: Tensor, outputs: Sequence[Sequence[int]]
) -> list[Origins]:
    """The origins of outputs, each of the source at its entry of `rows`. outputs: ids with their end where they have
    one, at least one id each."""
    device = rows.device
    lengths = [len(ids) for ids in outputs]
    ids = torch.full((len(outputs), max(lengths)), Tokenizer.PAD, dtype=torch.int64)
    for place, own in enumerate(outputs):
        ids[place, : len(own)] = torch.tensor(own)
    inputs = Sequences(ids, torch.tensor(lengths)).shifted().to(device)
    ids = ids.to(device)
    state = decoder.start(memories).select(rows)
    hidden, copied, _, _ = decoder.read_copying(state, inputs)
    vocab = decoder.outputs.vocab
    generated = decoder.head.log_probs(hidden).gather(-1, ids.clamp_max(vocab - 1)[..., None])[..., 0].exp()
    gate = copied.gate.sigmoid()
    of_vocabulary = (gate * generated).masked_fill(ids >= vocab, 0.0)
    weights = copied.attention * (state.outputs[:, None] == ids[..., None])  # [outputs, tokens, source_len]
    of_copying = (1.0 - gate) * weights.sum(-1)
    share = (of_copying / (of_copying + of_vocabulary)).nan_to_num(0.0)
    best = weights.argmax(-1)
    return [
        Origins(
            share[place, :length].tolist(),
            [
                int(at) if part > 0 else None
                for at, part in zip(best[place, :length], share[place, :length], strict=True)
            ],
        )
        for place, length in enumerate(lengths)
    ]
