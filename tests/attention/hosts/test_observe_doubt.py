"""`regard.observe` in doubt: what is nearly torch's or nearly self-attention is read exactly or refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from regard.attention.hosts.agreement import disagreement
from regard.attention.hosts.observe import observe
from regard.attention.pair_scores import PairScores
from regard.errors import ObservationError

BATCH, LENGTH, DIM, HEADS = 3, 7, 10, 2
VECTORS = torch.randn(BATCH, LENGTH, DIM, generator=torch.Generator().manual_seed(1))
REAL = torch.arange(LENGTH) < torch.tensor([LENGTH, 4, 5])[:, None]
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


def split(vectors: Tensor) -> Tensor:
    return vectors.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def by_hand(vectors: Tensor, softmax: Callable[[Tensor], Tensor]) -> Tensor:
    heads = split(vectors)
    return (softmax(heads @ heads.transpose(-2, -1)) @ heads).transpose(1, 2).flatten(2)


class OwnBlock(nn.TransformerEncoderLayer):
    def _sa_block(self, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        heads = split(x)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


class BlockBeside(nn.TransformerEncoderLayer):
    """Attends in its feed-forward part too, beside the attention that can be read."""

    def _ff_block(self, x: Tensor) -> Tensor:
        return OwnBlock._sa_block(self, x)


@pytest.mark.parametrize("kind", [OwnBlock, BlockBeside])
def test_an_encoder_layer_is_fast_only_where_its_fast_path_ran(kind: type[nn.TransformerEncoderLayer]) -> None:
    net = nn.Sequential(kind(DIM, HEADS, 11, batch_first=True))
    with pytest.raises(ObservationError, match=rf"layer `0` \({kind.__name__}\)"), observe(net, entropy=True):
        net(VECTORS)
    net.eval()
    with torch.no_grad():  # torch's fast path asks no subclass
        plain = net(VECTORS)
        with observe(net, entropy=True) as seen:
            assert torch.equal(net(VECTORS), plain)
    assert seen.backend == {"0.self_attn": "torch fast path"}


class Attention(nn.Module):
    def forward(self, vectors: Tensor, *memory: Any, mask: Tensor, **others: Any) -> Tensor:
        heads = split(vectors)
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)


@pytest.mark.parametrize(
    ("memory", "others", "certain"),
    [
        ((), {}, True),
        ((), {"position_ids": torch.arange(LENGTH), "use_cache": False, "position_embeddings": (VECTORS,)}, True),
        ((VECTORS.clone(),), {}, False),
        ((), {"memory": {"states": VECTORS}}, False),
        ((), {"memory": (VECTORS,)}, False),
        ((), {"memory": VECTORS[:, None]}, False),
        ((), {"positives": VECTORS.clone()}, False),
    ],
)
def test_only_certain_self_attention_drops_padded_queries(memory: Any, others: Any, certain: bool) -> None:
    net, mask = nn.Sequential(Attention()), REAL[:, None, None]
    with observe(net, received=True) as seen:
        net[0](VECTORS, *memory, mask=mask, **others)
    counted = REAL.sum(1).float() if certain else torch.full((BATCH,), float(LENGTH))
    torch.testing.assert_close(seen["0"].received.sum(-1), counted[:, None].expand(-1, HEADS))
    with observe(net, received=True, queries=REAL) as seen:
        net[0](VECTORS, *memory, mask=mask, **others)
    torch.testing.assert_close(seen["0"].received.sum(-1), REAL.sum(1)[:, None].expand(-1, HEADS).float())


def test_an_added_bias_shows_in_bfloat16() -> None:
    query = torch.randn(2, 2, 7, 5, generator=torch.Generator().manual_seed(2)).bfloat16()
    pairs = PairScores(query, query, 5**-0.5)
    for bias, seen in ((0.0, False), (1.0, True)):
        scores = query @ query.transpose(-2, -1) * 5**-0.5 + bias * torch.eye(7).bfloat16()
        output = (scores.softmax(-1) @ query).transpose(1, 2)
        assert (disagreement(pairs, query, output, None, 0.0) is not None) is seen


def test_a_trace_keeps_its_own_mask() -> None:
    net, mask = nn.Sequential(Attention()), torch.randn(1, 1, LENGTH, LENGTH)
    with observe(net, trace=True) as seen:
        net[0](VECTORS, mask=mask)
    before = seen["0"].trace.of_queries(torch.arange(LENGTH))
    mask.zero_()
    assert torch.equal(seen["0"].trace.of_queries(torch.arange(LENGTH)), before)


def test_a_parametrized_projection_is_refused() -> None:
    net = nn.Sequential(nn.MultiheadAttention(DIM, HEADS, batch_first=True))
    parametrizations.spectral_norm(net[0], "in_proj_weight")
    wanted = r"layer `0`: `in_proj_weight` of .* is parametrized"
    with pytest.raises(ObservationError, match=wanted), observe(net, entropy=True):
        net[0](VECTORS, VECTORS, VECTORS)


def test_a_forward_past_the_hooks_is_refused_where_it_may_be_fast() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

        def forward(self, vectors: Tensor) -> Tensor:
            return self.attn.forward(vectors, vectors, vectors)[0]

    net = Direct()
    with observe(net, entropy=True) as seen:
        net(VECTORS)
    assert list(seen.layers) == ["attn"]
    wanted = "called past the module's hooks"
    with torch.no_grad(), pytest.raises(ObservationError, match=wanted), observe(net.eval(), entropy=True):
        net(VECTORS)


@pytest.mark.parametrize(
    "softmax", [lambda s: torch.special.softmax(s, -1), lambda s: torch.softmax(s, axis=-1)], ids=["special", "axis"]
)
def test_attention_by_hand_around_an_attending_child_is_refused(softmax: Callable[[Tensor], Tensor]) -> None:
    class AroundAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Attention()

        def forward(self, vectors: Tensor) -> Tensor:
            self.inner(vectors, mask=None)
            return by_hand(vectors, softmax)

    net = nn.Sequential(AroundAttention())
    with pytest.raises(ObservationError, match=r"layer `0` \(AroundAttention\)"), observe(net, entropy=True):
        net(VECTORS)


def test_a_run_in_a_thread_that_was_started_inside_is_told() -> None:
    net = nn.Sequential(Attention())

    def run() -> None:
        net[0](VECTORS, mask=None)
        thread = threading.Thread(target=lambda: net[0](VECTORS, mask=None))
        thread.start()
        thread.join(60)

    with pytest.raises(ObservationError, match="ran in another thread"), observe(net, entropy=True):
        run()


def test_names_and_modules_that_are_not_concerned() -> None:
    net = nn.Sequential(Attention())
    with observe(net, rows=(5,)) as seen:
        with pytest.raises(ObservationError, match="there are 3 queries"):
            net[0](VECTORS[:, :3], mask=None)
        net[0](VECTORS, mask=None)
    assert list(seen.layers) == ["0"]
    with observe(net, entropy=True) as seen:
        nn.Linear(DIM, DIM)(VECTORS)
    assert not seen.layers
