"""What surrounds `regard.observe`: choices and their mistakes, nested contexts, threads, errors, compiled models."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from materialised import nothing_left
from torch import Tensor, nn

from regard.attention.hosts.observe import observe
from regard.errors import ObservationError


class SelfAttention(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        heads = vectors.unflatten(-1, (3, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = SelfAttention()
        self.linear = nn.Linear(6, 6)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.linear(self.attn(vectors))


def model(depth: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(depth)))


VECTORS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


# -- choices -----------------------------------------------------------------------------------------------------------


def test_layers_by_pattern_patterns_or_function() -> None:
    for layers, expected in (
        ("1.*", ["1.attn"]),
        (["0.attn", "2.attn"], ["0.attn", "2.attn"]),
        (lambda name: name != "1.attn", ["0.attn", "2.attn"]),
        (None, ["0.attn", "1.attn", "2.attn"]),
    ):
        with observe(net := model(3), layers=layers, entropy=True) as seen:
            net(VECTORS)
        assert list(seen.layers) == expected


def test_heads_of_all_layers_or_by_pattern() -> None:
    with observe(net := model(), heads=(2, 0), entropy=True) as seen:
        net(VECTORS)
    assert [seen[name].head_index.tolist() for name in seen.layers] == [[2, 0], [2, 0]]
    with observe(net, heads={"1.*": [1], "*": [0, -1]}, entropy=True) as seen:
        net(VECTORS)
    assert [seen[name].head_index.tolist() for name in seen.layers] == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"entropi": True}, "statistic `entropi` is not known, did you mean `entropy`?; known: logsumexp, entropy"),
        ({}, "no statistic is asked for; give some of logsumexp, entropy"),
        ({"entropy": False}, "no statistic is asked for"),
        ({"queries": torch.ones(2, 4).bool(), "entropy": True}, "layer `0.attn`: observe.queries"),
        ({"layers": "2.attn", "entropy": True}, "layers: `2.attn` fits no module of the model, did you mean `"),
        ({"layers": (), "entropy": True}, "layers is (), expected a pattern such as '*.self_attn'"),
        ({"layers": 3, "entropy": True}, "layers is 3, expected a pattern"),
        ({"heads": "all", "entropy": True}, "heads is 'all', expected query heads such as (0, 3)"),
        ({"heads": {"7": (0,)}, "entropy": True}, "heads: `7` fits no module of the model"),
        ({"layers": "0", "entropy": True}, "layers: `0` fits no layer that ran"),
        ({"layers": "*.linear", "entropy": True}, "`*.linear` fits no layer that ran; there are `0.attn`, `1.attn`"),
        ({"layers": lambda name: False, "entropy": True}, "layers: the function chose no layer that ran"),
        ({"heads": (3,), "entropy": True}, "layer `0.attn`: observe.heads: [3] asked for, but there are 3 heads"),
        ({"rows": (5,)}, "layer `0.attn`: observe.rows: [5] asked for, but there are 5 queries"),
        ({"received": torch.ones(2, 4)}, "layer `0.attn`: observe.received has weights of shape (2, 4)"),
    ],
)
def test_mistakes_are_told_in_one_line(asked: dict[str, Any], message: str) -> None:
    net = model()
    with nothing_left(), pytest.raises(ObservationError) as raised, observe(net, **asked):
        net(VECTORS)
    assert str(raised.value).startswith("observe: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_no_module_is_refused() -> None:
    with (
        pytest.raises(ObservationError, match=r"the model is int, expected a torch.nn.Module"),
        observe(3, entropy=True),
    ):
        pass


def test_a_model_in_which_nothing_attends() -> None:
    net = nn.Linear(3, 3)
    with (
        pytest.raises(ObservationError, match="Linear ran, but nowhere in it was attention seen"),
        observe(net, entropy=True),
    ):
        net(torch.ones(2, 3))
    with observe(net, entropy=True) as seen:
        pass
    assert not seen.layers, "a model that did not run is no mistake"


# -- what cannot be read -----------------------------------------------------------------------------------------------


class ByHand(nn.Module):
    """Under a name that says nothing: the softmax gives it away."""

    def __init__(self, softmax: nn.Module | None = None) -> None:
        super().__init__()
        self.softmax = softmax

    def forward(self, vectors: Tensor) -> Tensor:
        heads = vectors.unflatten(-1, (3, -1)).transpose(1, 2)
        scores = heads @ heads.transpose(-2, -1)
        weights = scores.softmax(-1) if self.softmax is None else self.softmax(scores)
        return (weights @ heads).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("softmax", [None, nn.Softmax(dim=-1)], ids=["function", "module"])
def test_attention_by_hand_is_refused_unless_left_out(softmax: nn.Module | None) -> None:
    net = nn.Sequential(SelfAttention(), ByHand(softmax))
    with (
        nothing_left(),
        pytest.raises(ObservationError, match=r"layer `1` \(ByHand\) attends in a way of its own"),
        observe(net, entropy=True),
    ):
        net(VECTORS)
    with observe(net, layers="0", entropy=True) as seen:
        net(VECTORS)
    assert list(seen.layers) == ["0"]


def test_a_name_that_says_attention_is_believed() -> None:
    class LinearAttention(nn.Linear):
        pass

    class AttentionOutput(nn.Linear):
        pass

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = LinearAttention(6, 6)
            self.attend = SelfAttention()

        def forward(self, vectors: Tensor) -> Tensor:
            return self.attend(self.pool(vectors))

    net = nn.Sequential(SelfAttention(), LinearAttention(6, 6))
    with pytest.raises(ObservationError, match=r"layer `1` \(LinearAttention\)"), observe(net, entropy=True):
        net(VECTORS)
    for other in (nn.Sequential(SelfAttention(), AttentionOutput(6, 6)), Attention()):
        with observe(other, entropy=True) as seen:
            other(VECTORS)
        assert len(seen.layers) == 1


def test_compiled_models_are_refused_before_they_run() -> None:
    def compiled_whole() -> nn.Module:
        return torch.compile(model(), backend="eager")  # type: ignore[return-value]

    def compiled_part() -> nn.Module:
        net = model()
        net[1].compile(backend="eager")
        return net

    def compiled_forward() -> nn.Module:
        net = model()
        net[1].attn.forward = torch.compile(net[1].attn.forward, backend="eager")
        return net

    for make, name in ((compiled_whole, "OptimizedModule"), (compiled_part, "1"), (compiled_forward, "1.attn")):
        with (
            nothing_left(),
            pytest.raises(ObservationError, match=rf"observe: compiled: `{name}`"),
            observe(make(), entropy=True),
        ):
            pass


def test_a_compiled_function_inside_is_refused_as_silent_and_runs_as_it_does() -> None:
    attention = torch.compile(lambda heads: F.scaled_dot_product_attention(heads, heads, heads), backend="aot_eager")

    class CompiledAttention(nn.Module):
        def forward(self, vectors: Tensor) -> Tensor:
            return attention(vectors[:, None])[:, 0]

    net = nn.Sequential(SelfAttention(), CompiledAttention())
    plain = net(VECTORS)
    with nothing_left(), pytest.raises(ObservationError, match="CompiledAttention"), observe(net, entropy=True):
        net(VECTORS)
    with observe(net, layers="0", entropy=True):
        assert torch.equal(net(VECTORS), plain)


# -- contexts in contexts, threads, errors -----------------------------------------------------------------------------


def test_contexts_in_contexts_each_get_theirs() -> None:
    net, other = model(), model(1)
    with nothing_left(), observe(net, entropy=True) as outer:
        net(VECTORS)
        with observe(net, layers="1.attn", received=True) as inner, observe(other, max_logit=True) as third:
            net(VECTORS)
            other(VECTORS)
        net(VECTORS)
    assert list(outer.layers) == ["0.attn", "1.attn", "0.attn#1", "1.attn#1", "0.attn#2", "1.attn#2"]
    assert list(inner.layers) == ["1.attn"]
    assert list(third.layers) == ["0.attn"]
    assert inner["1.attn"].entropy is None
    assert inner["1.attn"].received is not None


def test_a_thread_observes_its_own_runs() -> None:
    net = model()
    kept: dict[int, Any] = {}
    start = threading.Barrier(3, timeout=60)

    def work(index: int) -> None:
        with observe(net, entropy=True) as seen:
            start.wait()
            for _ in range(index):
                net(VECTORS)
            start.wait()
        kept[index] = seen

    with nothing_left():
        threads = [threading.Thread(target=work, args=(index,)) for index in (1, 2)]
        for thread in threads:
            thread.start()
        start.wait()
        net(VECTORS)
        start.wait()
        for thread in threads:
            thread.join(60)
    assert {index: len(seen.layers) for index, seen in kept.items()} == {1: 2, 2: 4}


def test_a_model_that_runs_in_another_thread_is_told() -> None:
    net = model()

    def run() -> None:
        thread = threading.Thread(target=net, args=(VECTORS,))
        thread.start()
        thread.join(60)

    with pytest.raises(ObservationError, match="ran in another thread"), observe(net, entropy=True):
        run()


def test_nothing_is_left_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, vectors: Tensor) -> Tensor:
            raise KeyError("broken")

    net = nn.Sequential(Block(), Broken())
    with nothing_left(), pytest.raises(KeyError, match="broken"), observe(net, entropy=True):
        net(VECTORS)
    with nothing_left(), observe(net, entropy=True) as seen:
        with pytest.raises(KeyError, match="broken"):
            net(VECTORS)
        net[0](VECTORS)
    assert list(seen.layers) == ["0.attn", "0.attn#1"]
    with nothing_left(), pytest.raises(ValueError, match="of the caller"), observe(net, layers="1*", entropy=True):
        raise ValueError("of the caller")


def test_a_backward_pass_inside_the_context() -> None:
    net = model()
    net(VECTORS).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    with nothing_left(), observe(net, entropy=True) as seen:
        for _ in range(2):
            (net(VECTORS).square().sum() / 2).backward()
    for parameter, gradient in zip(net.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert len(seen.layers) == 4


def test_a_method_that_is_no_forward_is_found() -> None:
    class Decoder(nn.Module):
        attention_name = "steps.cross"

        def read(self, vectors: Tensor) -> Tensor:
            heads = vectors[:, None]
            return F.scaled_dot_product_attention(heads, heads, heads)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = Decoder()

    net = Outer()
    with observe(net, entropy=True) as seen:
        net.decoder.read(VECTORS)
    assert list(seen.layers) == ["decoder.steps.cross"]
