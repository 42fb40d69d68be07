from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regard.models.recurrent_encoder import (
    RecurrentEncoder,
    RecurrentEncoderConfig,
    run_packed,
    run_padded,
    run_turned,
)


@pytest.mark.parametrize("way", [run_padded, run_turned])
@pytest.mark.parametrize("bidirectional", [True, False], ids=["both ways", "forward"])
@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("lengths", [[7, 3, 1, 5, 7], [7, 6, 6, 7, 6], [7] * 5], ids=["padded", "little", "full"])
def test_every_way_is_torchs_layer(way: Any, cell: Any, bidirectional: bool, lengths: Any) -> None:
    lengths = torch.tensor(lengths)
    torch.manual_seed(0)
    layer = cell(11, 13, batch_first=True, bidirectional=bidirectional).double()
    vectors = torch.randn(5, 7, 11, dtype=torch.float64, requires_grad=True)
    found, wanted = (run(layer, vectors, lengths) for run in (way, run_packed))
    assert found.shape == (5, 7, 26 if bidirectional else 13)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    real = torch.arange(7) < lengths[:, None]
    assert not found[~real].any()
    goal = torch.randn(found.shape, dtype=torch.float64)
    over = [vectors, *layer.parameters()]
    mine, theirs = (torch.autograd.grad((states * goal).sum(), over) for states in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    assert not mine[0][~real].any(), "padding learns nothing"


def test_an_empty_source() -> None:
    layer = nn.GRU(3, 5, batch_first=True, bidirectional=True)
    for run in (run_padded, run_packed, run_turned):
        states = run(layer, torch.randn(2, 4, 3), torch.tensor([0, 2]))
        assert not states[0].any()
        assert states[1, :2].all()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_configuration_decides(cell: Any) -> None:
    torch.manual_seed(0)
    both, forward = (
        RecurrentEncoder(17, RecurrentEncoderConfig("recurrent", 6, 2, cell, bidirectional=ways, dropout=0.0))
        for ways in (True, False)
    )
    assert (both.memory_dim, forward.memory_dim) == (12, 6)
    ids, lengths = torch.randint(1, 17, (3, 7)), torch.tensor([7, 4, 6])
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] % 16) + 1
    for encoder, reads_back in ((both, True), (forward, False)):
        memory, after = (encoder(given, lengths)[0].vectors for given in (ids, changed))
        assert memory.shape == (3, 7, encoder.memory_dim)
        assert torch.equal(memory[1], after[1])  # that word is behind the end of the second sentence
        assert torch.equal(memory[0, :5], after[0, :5]) != reads_back
        assert not torch.equal(memory[0, 5:], after[0, 5:])
    assert all(type(layer).__name__ == cell.upper() for layer in both.layers)


def test_dropout_acts_in_training_only() -> None:
    encoder = RecurrentEncoder(17, RecurrentEncoderConfig("recurrent", 6, dropout=0.3))
    ids, lengths = torch.randint(1, 17, (3, 7)), torch.tensor([7, 4, 6])
    once, twice = (encoder(ids, lengths)[0].vectors for _ in range(2))
    assert not torch.equal(once, twice)
    encoder.eval()
    once, twice = (encoder(ids, lengths)[0].vectors for _ in range(2))
    assert torch.equal(once, twice)
