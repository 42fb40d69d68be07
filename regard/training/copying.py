"""The objective of a model that copies: the likelihood of both ways to a word, and the price of pointing twice.

See et al. 2017, eq. 9 (the mixture) and 12 and 13 (coverage).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.models.copying import Copied, CopyingDecoder
from regard.training.objective import Loss, Mixture, cross_entropy


def copying_loss(
    decoder: CopyingDecoder,
    hidden: Tensor,
    copied: Copied,
    source: Tensor,
    targets: Tensor,
    real: Tensor,
    *,
    smoothing: float = 0.0,
    coverage: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Loss:
    """The loss of predicting `targets`, summed over its real places.

    hidden [batch, target_len, model_dim], copied: what `decoder.read_copying` says. source: int64 [batch, source_len],
    ids as the corpus has them: those of unknown words lie beyond the vocabulary. targets: int64 [batch, target_len],
    likewise; an unknown word that the source does not have counts as the token for unknown words. real: bool [batch,
    target_len]. smoothing, dtype: as for `cross_entropy`. coverage: the weight of `Copied.repeated` in the objective;
    the paper's lambda, 1 there.
    """
    vocab, unknown = decoder.outputs
    hidden, targets, gate = hidden[real], targets[real], copied.gate[real]
    row = real.nonzero()[:, 0]
    # [tokens, source_len]: as large as the attention that is at hand anyway.
    mass = (copied.attention[real] * (source[row] == targets[:, None])).sum(-1)
    found = mass > 0
    tiny = torch.finfo(mass.dtype).tiny
    copy = (mass.clamp_min(tiny).log() + F.logsigmoid(-gate)).masked_fill(~found, float("-inf"))
    # What the source offers is copied; what neither it nor the vocabulary has is the token for unknown words.
    only_copied = (targets >= vocab) & found
    generate = F.logsigmoid(gate).masked_fill(only_copied, float("-inf"))
    known = targets.masked_fill(targets >= vocab, unknown)
    loss = cross_entropy(hidden, decoder.head, known, smoothing=smoothing, dtype=dtype, mixture=Mixture(generate, copy))
    if coverage:
        loss = Loss(loss.objective + coverage * copied.repeated[real].sum(), loss.nll)
    return loss
