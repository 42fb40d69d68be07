"""Rescoring: what a model gives to outputs that somebody else chose, in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from regard.attention.observation import Observation, Observe
from regard.decoding.frontier import first_inputs, start_rows
from regard.errors import ShapeError
from regard.models.decoder import Decoder
from regard.models.memory import Memory


class Forced(NamedTuple):
    """token_log_probs: [rows, num_tokens], 0 beyond a row's length; log_prob: [rows], their sum.

    attention: layer -> Observation over the queries of BOS, the prefix and all tokens but the last, as the decoder gave
    it: the last num_tokens queries are those that chose the tokens.
    """

    token_log_probs: Tensor
    log_prob: Tensor
    attention: Mapping[str, Observation]


def force(
    decoder: Decoder,
    memories: Mapping[str, Memory],
    tokens: Tensor,
    lengths: Tensor | None = None,
    *,
    bos: int,
    prefix: Tensor | None = None,
    observe: Observe | None = None,
) -> Forced:
    """The log-probabilities of given outputs; carries gradient.

    tokens: output ids [rows, num_tokens] without BOS, with EOS where the output has one, padded behind with anything.
    lengths: int64 [rows], how many tokens are real; None: all. prefix: as in `decode`.

    Raises: ShapeError when tokens, lengths and memories differ in rows, or when there is no token.
    """
    state, rows, device = start_rows(decoder, memories, prefix)
    if tokens.dim() != 2 or tokens.shape[0] != rows or tokens.shape[1] < 1:
        raise ShapeError(
            f"force: tokens has shape {list(tokens.shape)}, expected [{rows}, at least 1]: one output a sentence"
        )
    if lengths is None:
        lengths = torch.full((rows,), tokens.shape[1], dtype=torch.int64, device=device)
    if lengths.shape != (rows,):
        raise ShapeError(f"force: lengths has shape {list(lengths.shape)}, expected [{rows}]: one an output")
    real = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
    safe = tokens.masked_fill(~real, 0)  # whatever pads the outputs is a valid id
    inputs = torch.cat([first_inputs(decoder, bos, prefix, rows, device), decoder.outputs.inputs(safe[:, :-1])], dim=1)
    step, _ = decoder.advance(state, inputs, observe)
    log_probs = step.log_probs[:, -tokens.shape[1] :]
    chosen = log_probs.gather(-1, safe[:, :, None])[:, :, 0].masked_fill(~real, 0.0)
    return Forced(chosen, chosen.sum(-1), step.attention)
