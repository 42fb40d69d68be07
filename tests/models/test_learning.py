"""Both families learn to say a sentence backwards, through the objective that training uses."""

from __future__ import annotations

import pytest
import torch
from small_models import luong, recurrent, transformer

from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.training.objective import cross_entropy

VOCAB, BOS, LONGEST = 13, 1, 5


@pytest.mark.parametrize(
    "config",
    [
        transformer(),
        *(recurrent(score, layers=1) for score in ("additive", "dot", "bilinear")),
        recurrent(layers=1, cell="conditional-gru"),
        luong("dot"),
        luong("concat"),
        luong("bilinear", input_feeding=False),
    ],
    ids=[
        "transformer",
        "additive",
        "dot",
        "bilinear",
        "conditional",
        "luong dot",
        "luong concat",
        "luong bilinear, nothing fed",
    ],
)
def test_a_few_sentences_are_learnt_by_heart(config: EncoderDecoderConfig) -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(VOCAB, VOCAB, config)
    lengths = torch.randint(2, LONGEST + 1, (11,))
    source = torch.randint(2, VOCAB, (11, LONGEST))
    real = torch.arange(LONGEST) < lengths[:, None]
    source = source * real
    place = (lengths[:, None] - 1 - torch.arange(LONGEST)).clamp_min(0)
    target = source.gather(1, place) * real
    inputs = torch.cat([torch.full((11, 1), BOS), target[:, :-1]], 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def nll() -> torch.Tensor:
        hidden = model(source, lengths, inputs)[real]
        loss = cross_entropy(hidden, model.decoder.head, target[real], smoothing=0.05)
        optimizer.zero_grad()
        (loss.objective / len(hidden)).backward()
        return loss.nll / len(hidden)

    first = nll()
    assert first > 2.0, "ln 13 is 2.56"
    for _ in range(80):
        optimizer.step()
        last = nll()
    assert last < 0.15
