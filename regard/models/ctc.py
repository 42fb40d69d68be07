"""Connectionist temporal classification: every frame says one token or the blank, and an output is read off the frames.

An alignment gives each frame a label; the output that it stands for is what is left when equal neighbours are merged
and blanks dropped. The probability of an output is the sum over all its alignments, so nobody has to say which frame
belongs to which token. Source: Graves et al. 2006, sec. 3 and 4.

The blank has the padding token's id, which no output holds: head, decoder and language models share one vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import ConfigError, ShapeError
from regard.layers.dropout import Dropout

BLANK = 0


@dataclass(frozen=True)
class CTCConfig:
    """A CTC head on the memory that an attention decoder reads, too."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # Its share of the training loss; the decoder's cross-entropy has the rest (Watanabe et al. 2017, eq. 11: lambda).
    weight: float = 0.3
    dropout: float = 0.1  # on the memory, before the head


class CTCHead(nn.Module):
    """Memory vectors -> log-probabilities of every token, and of the blank, at every frame.

    Raises: ConfigError when the weight is not a share.
    """

    def __init__(self, memory_dim: int, vocab: int, config: CTCConfig) -> None:
        super().__init__()
        if not 0.0 <= config.weight <= 1.0:
            raise ConfigError(f"ctc: weight is {config.weight}, expected a share of the loss, from 0 to 1")
        self.weight = config.weight
        self.dropout = Dropout(config.dropout)
        self.projection = nn.Linear(memory_dim, vocab)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, memory: Tensor) -> Tensor:
        """[batch, frames, memory_dim] -> log-probabilities [batch, frames, vocab], in float32 at least."""
        logits = self.projection(self.dropout(memory))
        return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def frames_needed(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """The fewest frames that can say each output, int64 [batch]: one a token, and a blank between equal neighbours.

    targets: ids [batch, target_len], padded behind with anything; target_lengths: [batch].
    """
    real = torch.arange(targets.shape[1], device=targets.device) < target_lengths[:, None]
    repeated = (targets[:, 1:] == targets[:, :-1]) & real[:, 1:]
    return target_lengths + repeated.sum(1)


def ctc_nll(
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    skip_impossible: bool = False,
) -> Tensor:
    """-log p(output | frames) of every row, in nats, [batch]; carries gradient.

    log_probs: [batch, frames, vocab], normalised, as `CTCHead` gives them; lengths: [batch], real frames.
    targets: ids [batch, target_len] without EOS, padded behind with anything; target_lengths: [batch]; 0 is the output
    of nothing but blanks.
    skip_impossible: rows with fewer frames than their output needs cost 0 and teach nothing; else they are refused.

    Raises: ShapeError, naming the first row whose frames are too few, and a target that is the blank.
    """
    refuse_misfits("ctc", log_probs, lengths, targets, target_lengths, allow_short=skip_impossible)
    padded = torch.arange(targets.shape[1], device=targets.device) >= target_lengths[:, None]
    if not targets.shape[1]:  # torch wants a column to look at
        targets, padded = targets.new_ones(len(targets), 1), padded.new_ones(len(targets), 1)
    wide = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    return F.ctc_loss(
        wide.transpose(0, 1),
        targets.masked_fill(padded, BLANK + 1),  # whatever pads the targets becomes a valid id
        lengths,
        target_lengths,
        blank=BLANK,
        reduction="none",
        zero_infinity=skip_impossible,
    )


def refuse_misfits(
    name: str,
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    allow_short: bool = False,
) -> None:
    """Raises: ShapeError, naming every mismatch; see `ctc_nll`."""
    batch = log_probs.shape[0] if log_probs.ndim else 0
    problems = []
    if log_probs.ndim != 3:
        problems.append(f"log_probs has shape {tuple(log_probs.shape)}, expected (batch, frames, vocab)")
    if targets.ndim != 2 or targets.shape[0] != batch:
        problems.append(f"targets has shape {tuple(targets.shape)}, expected ({batch}, target_len)")
    for what, given in (("lengths", lengths), ("target_lengths", target_lengths)):
        if given.shape != (batch,):
            problems.append(f"{what} has shape {tuple(given.shape)}, expected ({batch},)")
    if problems:
        raise ShapeError(f"{name}: " + "; ".join(problems))
    real = torch.arange(targets.shape[1], device=targets.device) < target_lengths[:, None]
    blanks = ((targets == BLANK) & real).any(1).nonzero()[:, 0].tolist()
    if blanks:
        raise ShapeError(
            f"{name}: the target of row {blanks[0]} holds id {BLANK}, which is the blank; expected tokens alone: give "
            "target_lengths without padding"
        )
    needed = frames_needed(targets, target_lengths)
    short = (lengths < needed).nonzero()[:, 0].tolist()
    if short and not allow_short:
        row = short[0]
        raise ShapeError(
            f"{name}: row {row} has {int(lengths[row])} frames for {int(target_lengths[row])} tokens, which need at "
            f"least {int(needed[row])}; leave it out, subsample less or take longer tokens"
        )
