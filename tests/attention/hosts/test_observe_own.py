"""`regard.observe` on regard's own models: every call of `regard.attend`, named as the models name their layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from materialised import nothing_left
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.distributions import Distribution, Softmax
from regard.attention.hosts.observe import observe
from regard.attention.hosts.own import join, part_of
from regard.attention.masks import Causal, Global, Padding
from regard.attention.observation import Observation, Observe
from regard.attention.scores import Additive, ScaledDot, Score
from regard.errors import ObservationError
from regard.layers.attention import AttentionConfig, MultiHeadAttention
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig

VOCAB, DIM, HEADS, SOURCE, TARGET = 17, 12, 3, 7, 5
LENGTHS = torch.tensor([7, 3, 5])


def transformer() -> EncoderDecoder:
    attention, feed_forward = AttentionConfig(HEADS), FeedForwardConfig(13)
    return built(
        TransformerEncoderConfig(DIM, 2, attention, feed_forward, dropout=0.0),
        TransformerDecoderConfig(DIM, 2, attention, feed_forward, dropout=0.0),
    )


def recurrent() -> EncoderDecoder:
    return built(
        RecurrentEncoderConfig("recurrent", 10, num_layers=1, dropout=0.0),
        AttentionRNNConfig("attention-rnn", DIM, attention_dim=11, dropout=0.0),
    )


def built(encoder: Any, decoder: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    model = EncoderDecoder(VOCAB, VOCAB, EncoderDecoderConfig(encoder, decoder)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def ids(length: int, seed: int) -> Tensor:
    return torch.randint(1, VOCAB, (3, length), generator=torch.Generator().manual_seed(seed))


def run(model: EncoderDecoder) -> Tensor:
    output: Tensor = model(ids(SOURCE, 1), LENGTHS, ids(TARGET, 2))
    return output


def test_the_layers_of_a_transformer_under_their_own_names() -> None:
    model = transformer()
    plain = run(model)
    with nothing_left(), observe(model, received=True, entropy=True, rows="all") as seen:
        assert torch.equal(run(model), plain)
    encoder = ["encoder.layers.0.self", "encoder.layers.1.self"]
    decoder = [f"decoder.layers.{layer}.{kind}" for layer in range(2) for kind in ("self", "cross")]
    assert list(seen.layers) == [*encoder, *decoder]
    assert set(seen.backend.values()) <= {"regard fused", "regard blocked", "regard reference"}
    memories, observations = model.encode(ids(SOURCE, 1), LENGTHS, Observe(received=True, entropy=True, rows="all"))
    _, _, cross = model.decoder.read(
        model.decoder.start(memories), ids(TARGET, 2), Observe(received=True, entropy=True, rows="all")
    )
    for name, expected in (observations | cross).items():
        real = torch.arange(SOURCE) < LENGTHS[:, None]
        found = seen[name]
        for statistic, tensor in expected.tensors().items():
            mine = found.tensors()[statistic]
            if name.startswith("encoder") and statistic in ("entropy", "rows"):
                wide = real[:, None, :, *(None,) * (mine.ndim - 3)]
                mine, tensor = mine * wide, tensor * wide
            torch.testing.assert_close(mine, tensor)


def test_padded_queries_of_the_encoder_count_nowhere() -> None:
    with observe(model := transformer(), received=True, entropy=True) as seen:
        run(model)
    own = seen["encoder.layers.0.self"]
    torch.testing.assert_close(own.received.sum(-1), LENGTHS.double()[:, None].expand(3, HEADS))
    assert not own.entropy[1, :, 3:].any()
    cross = seen["decoder.layers.1.cross"]
    torch.testing.assert_close(cross.received.sum(-1), torch.full((3, HEADS), float(TARGET), dtype=torch.float64))


def test_a_recurrent_decoder_has_an_entry_a_step() -> None:
    model = recurrent()
    plain = run(model)
    with nothing_left(), observe(model, received=True) as seen:
        assert torch.equal(run(model), plain)
    assert len(seen.layers) == TARGET
    [name] = {entry.partition("#")[0] for entry in seen.layers}
    assert name.startswith("decoder")
    _, _, expected = model.decoder.read(
        model.decoder.start(model.encode(ids(SOURCE, 1), LENGTHS)[0]), ids(TARGET, 2), Observe(received=True)
    )
    total = sum(found.received for found in seen.calls(name))
    torch.testing.assert_close(total, next(iter(expected.values())).received)


def test_a_mask_that_spares_its_own_place_makes_no_padding() -> None:
    class SelfAttention(nn.Module):
        is_self = True

        def forward(self, vectors: Tensor) -> Tensor:
            return attend(vectors, vectors, vectors, mask=Global(2)).output

    with observe(layer := SelfAttention(), received=True) as seen:
        layer(QUERY)
    torch.testing.assert_close(seen["attention"].received.sum(), torch.tensor(3.0 * HEADS * TARGET).double())


class Layer(nn.Module):
    """One call of `attend`, which may observe for itself."""

    def __init__(
        self, own: Observe | None = None, score: Score | None = None, distribution: Distribution | None = None
    ):
        super().__init__()
        self.own, self.score, self.distribution = own, score, distribution
        self.found = Observation()

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        output, self.found = attend(
            query, key, key, score=self.score, distribution=self.distribution, mask=Padding(LENGTHS), observe=self.own
        )
        return output


QUERY = torch.randn(3, HEADS, TARGET, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
KEY = torch.randn(3, HEADS, SOURCE, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (Observe(entropy=True), {"received": True}),
        (Observe(entropy=True, received=True, top_k=3), {"received": True, "entropy": True}),
        (Observe(received=torch.arange(3 * TARGET).view(3, TARGET).double()), {"received": True, "max_logit": True}),
        (Observe(rows=(0, 2), heads=(1,)), {"rows": "all", "logsumexp": True}),
        (Observe(sink_mass=1), {"sink_mass": 2}),
        (Observe(logsumexp=True), {"trace": True}),
    ],
)
def test_a_caller_that_observes_for_itself_gets_its_own(theirs: Observe, mine: dict[str, Any]) -> None:
    layer = Layer(theirs)
    plain = layer(QUERY, KEY)
    expected = layer.found
    with observe(layer, **mine) as seen:
        assert torch.equal(layer(QUERY, KEY), plain)
    same(layer.found, expected)
    same(seen["attention"], attend(QUERY, KEY, KEY, mask=Padding(LENGTHS), observe=Observe(**mine)).observation)


def same(found: Observation, expected: Observation) -> None:
    assert found.tensors().keys() == expected.tensors().keys()
    assert (found.trace is None) == (expected.trace is None)
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor)


def test_joining_requests() -> None:
    weights = torch.ones(1, 3)
    mine = Observe(entropy=True)
    assert join(mine, Observe()) is mine
    joined = join(Observe(entropy=True, top_k=3), Observe(received=weights, top_k=3))
    assert joined is not None
    assert (joined.entropy, joined.top_k, joined.received is weights) == (True, 3, True)
    assert join(Observe(received=True), Observe(received=weights)) is None
    assert join(Observe(entropy=True), Observe(entropy=True, heads=(1,))) is None
    assert part_of(Observation(entropy=weights, logsumexp=weights), Observe(trace=True)).tensors().keys() == {
        "logsumexp"
    }


def test_every_score_is_observed_and_what_it_lacks_is_told() -> None:
    layer = Layer(score=Additive(torch.ones(1, 4, dtype=torch.float64)))
    with observe(layer, entropy=True, rows="all") as seen:
        layer(QUERY, KEY)
    torch.testing.assert_close(seen["attention"].rows.sum(-1), torch.ones(3, HEADS, TARGET, dtype=torch.float64))
    with pytest.raises(ObservationError, match=r"layer `attention`: .*trace.*Additive"), observe(layer, trace=True):
        layer(QUERY, KEY)


def test_dropout_draws_the_same_numbers() -> None:
    class Dropping(nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            first = attend(query, key, key, dropout=0.5, observe=Observe(received=torch.ones(3, TARGET).double()))
            return first.output + attend(query, key, key, dropout=0.5, score=ScaledDot(), distribution=Softmax()).output

    layer = Dropping()
    torch.manual_seed(0)
    plain = layer(QUERY, KEY)
    torch.manual_seed(0)
    with observe(layer, received=True, entropy=True) as seen:
        assert torch.equal(layer(QUERY, KEY), plain)
    torch.testing.assert_close(seen.layers["attention"].received, seen.layers["attention#1"].received)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_is_recorded_once(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MultiHeadAttention(DIM, AttentionConfig(HEADS), is_self=True).double()

        def attend(self, vectors: Tensor) -> Tensor:
            query, memory = self.inner.project_self(vectors, begin=0)
            output: Tensor = self.inner(query, memory, Causal())[0]
            return output

        def forward(self, vectors: Tensor) -> Tensor:
            output: Tensor = checkpoint(self.attend, vectors, use_reentrant=reentrant)
            return output

    model = Checkpointed()
    vectors = torch.randn(2, TARGET, DIM, dtype=torch.float64, requires_grad=True)

    def step() -> list[Tensor]:
        model.zero_grad()
        model(vectors).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = step()
    with nothing_left(), observe(model, entropy=True, rows=(0,)) as seen:
        watched = step()
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert list(seen.layers) == ["inner"]
