"""Window and global attention in the encoder: linear memory, and the gradients of the materialised attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from regard.attention.backends import parts
from regard.errors import ConfigError
from regard.layers.attention import AttentionConfig, MultiHeadAttention
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.transformer_encoder import TransformerEncoder, TransformerEncoderConfig

VOCAB, DIM = 11, 8
LONG = AttentionConfig(2, window=5, num_global=3)


def encoder(attention: AttentionConfig = LONG, dtype: torch.dtype = torch.float64) -> TransformerEncoder:
    torch.manual_seed(4)
    config = TransformerEncoderConfig(DIM, 2, attention, FeedForwardConfig(16), dropout=0.0)
    return TransformerEncoder(VOCAB, config).to(dtype)


def reach(lengths: list[int], length: int) -> Tensor:
    """Which position of which sequence's output a change of each input position reaches, in one layer."""
    model = MultiHeadAttention(DIM, LONG, is_self=True).double()
    vectors = torch.randn(1, length, DIM, dtype=torch.float64, requires_grad=True)
    query, keys_values = model.project_self(vectors, begin=0)
    output, _ = model(query, keys_values, None)
    rows = [torch.autograd.grad(output[0, row].sum(), vectors, retain_graph=True)[0][0] for row in range(length)]
    return torch.stack(rows).abs().sum(-1) > 0


def test_a_token_sees_its_window_and_the_global_ones_see_all() -> None:
    length = 17
    place = torch.arange(length)
    near = (place[:, None] - place).abs() <= 5
    wanted = near | (place < 3) | (place < 3)[:, None]
    assert torch.equal(reach([length], length), wanted)


@pytest.mark.parametrize("lengths", [[61, 61], [61, 40]], ids=["full", "padded"])
def test_gradients_are_the_materialised_ones(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 in parts merged by logsumexp, against one materialised softmax in float64."""
    monkeypatch.setattr(parts, "FEW_PAIRS", 0)  # small as it is, in parts
    ids = torch.randint(1, VOCAB, (2, 61), generator=torch.Generator().manual_seed(1))
    real = torch.arange(61) < torch.tensor(lengths)[:, None]
    found = []
    for dtype in (torch.float32, torch.float64):
        model = encoder(dtype=dtype)
        if dtype == torch.float64:
            monkeypatch.setattr("regard.layers.attention.attend", materialised)
        memory, _ = model(ids, torch.tensor(lengths))
        # No sum of squares, which the last norm makes a constant.
        weights = torch.randn(2, 61, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        loss = (memory.vectors * (real[..., None] * weights)).sum()
        found.append([memory.vectors[real], *torch.autograd.grad(loss, list(model.parameters()))])
    for fast, exact in zip(*found, strict=True):
        torch.testing.assert_close(fast.double(), exact, rtol=0, atol=2e-5 * exact.abs().max().item())


def materialised(query: Tensor, key: Tensor, value: Tensor, *, mask: object, **rest: object) -> object:
    from regard.attention.attend import Attended
    from regard.attention.observation import Observation

    allowed = mask.dense(query.shape[2], key.shape[2])  # type: ignore[attr-defined]
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~allowed, float("-inf"))
    return Attended(scores.softmax(-1).nan_to_num(0.0) @ value, Observation())


def test_no_tensor_of_all_pairs() -> None:
    length = 2048
    model = encoder(AttentionConfig(2, window=64, num_global=4), torch.float32)
    ids = torch.randint(1, VOCAB, (1, length))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        memory, _ = model(ids, torch.tensor([length]))
        memory.vectors.square().sum().backward()
    found = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    largest = max(event.nbytes() for event in found)
    assert 0 < largest < length * length, "not even a byte a pair"


def test_global_tokens_want_a_window() -> None:
    with pytest.raises(ConfigError, match="num_global 3 without a window changes nothing"):
        MultiHeadAttention(DIM, AttentionConfig(2, num_global=3), is_self=True)
    with pytest.raises(ConfigError, match="num_global is -1, expected at least 0"):
        MultiHeadAttention(DIM, AttentionConfig(2, window=3, num_global=-1), is_self=True)
