"""The loss of captions: every caption of a picture is learnt from one look of the encoder at it.

Beside the words, the doubly stochastic part of Show, Attend and Tell (Xu et al. 2015, eq. 14): over a caption each
place of the picture should get an attention of 1 in all, penalised by the square of what is missing or too much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.data.batches import Batch, Sequences
from regard.inputs.text import Tokenizer
from regard.models.encoder_decoder import EncoderDecoder
from regard.training.objective import Loss, cross_entropy
from regard.training.parallel import Objective


def captions_apart(joined: Sequences) -> tuple[Tensor, Sequences]:
    """Rows of several captions, each ended by its end token -> a row a caption.

    Returns int64 [captions], which row each comes from, ascending; and the captions, padded.
    """
    values, lengths = joined
    real = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    ends = (real & (values == Tokenizer.EOS)).long()
    counts = ends.sum(1)
    first = counts.cumsum(0) - counts
    number = (first[:, None] + ends.cumsum(1) - ends)[real]  # of the caption that each token is of
    sizes = torch.bincount(number, minlength=int(counts.sum()))
    begins = sizes.cumsum(0) - sizes
    place = torch.arange(len(number), device=values.device) - begins[number]
    captions = values.new_full((len(sizes), int(sizes.max())), Tokenizer.PAD)
    captions[number, place] = values[real]
    rows = torch.repeat_interleave(torch.arange(len(values), device=values.device), counts)
    return rows, Sequences(captions, sizes)


def objective(label_smoothing: float, attention_penalty: float) -> Objective:
    """The summed training loss of a batch of pictures ("source") and their captions ("target").

    attention_penalty: lambda of eq. 14; 0 leaves that part out, and the attention unobserved.
    """
    observe = Observe(rows="all") if attention_penalty else None

    def loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        assert isinstance(model, EncoderDecoder)
        source = batch.source
        rows, captions = captions_apart(batch.target)
        decoder: Any = model.decoder
        with torch.autocast(source.values.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            memories, _ = model.encode(source.values, source.lengths)
            # What does not depend on the words is worked out once a picture, then shared by its captions.
            state = decoder.start(memories).select(rows)
            hidden, _, seen = decoder.read(state, captions.shifted(), observe)
        real = captions.values != Tokenizer.PAD
        found = cross_entropy(
            hidden.float()[real], decoder.head, captions.values[real], smoothing=label_smoothing, dtype=dtype
        )
        if not attention_penalty:
            return found
        return Loss(found.objective + attention_penalty * unevenness(seen, real), found.nll)

    return loss


def unevenness(seen: dict[str, Observation], real: Tensor) -> Tensor:
    """sum_i (1 - sum_t alpha_ti)^2 of every caption, summed; the mean over layers and heads. real: [captions, length].

    Source: Xu et al. 2015, eq. 14.
    """
    parts = []
    for observation in seen.values():
        assert observation.rows is not None, "rows were asked for"
        over_words = (observation.rows.float() * real[:, None, :, None]).sum(2)  # [captions, heads, places]
        parts.append((1.0 - over_words).square().sum(-1).mean(1).sum())
    return torch.stack(parts).mean()


def real_queries(batch: Batch) -> dict[str, Tensor]:
    """As `Job.real_queries`, of a decoder that reads a row a caption."""
    return {"decoder": captions_apart(batch.target)[1].values != Tokenizer.PAD}
