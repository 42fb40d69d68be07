from __future__ import annotations

import math

import pytest
import torch

from regard.errors import ConfigError, ShapeError
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding, sinusoidal_positions

VOCAB, DIM, BATCH, LENGTH = 13, 10, 3, 7


def test_sinusoids_are_the_papers() -> None:
    """Vaswani et al. 2017, sec. 3.5: PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) = cos of the same."""
    found = sinusoidal_positions(0, 3001, DIM, dtype=torch.float64)
    for place in (0, 1, 2, 77, 3000):
        for i in range(DIM // 2):
            angle = place / 10_000 ** (2 * i / DIM)
            assert abs(found[place, 2 * i].item() - math.sin(angle)) < 1e-11
            assert abs(found[place, 2 * i + 1].item() - math.cos(angle)) < 1e-11
    assert sinusoidal_positions(0, 3, DIM).dtype == torch.float32
    assert torch.equal(sinusoidal_positions(5, 90, DIM), sinusoidal_positions(0, 90, DIM)[5:])


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
@pytest.mark.parametrize("scale", [True, False])
def test_the_sum(positions: str, scale: bool) -> None:
    embedding = TextEmbedding(VOCAB, DIM, EmbeddingConfig(positions, 50, scale)).double()  # type: ignore[arg-type]
    ids = torch.randint(1, VOCAB, (BATCH, LENGTH))
    wanted = embedding.tokens.weight[ids] * (math.sqrt(DIM) if scale else 1.0)
    if positions == "learned":
        wanted = wanted + embedding.learned.weight[:LENGTH]
    elif positions == "sinusoidal":
        wanted = wanted + sinusoidal_positions(0, LENGTH, DIM, dtype=torch.float64)
    torch.testing.assert_close(embedding(ids), wanted, rtol=0, atol=1e-14)
    # Piece by piece is the same as at once, far beyond the table's first size too.
    pieces = [embedding(ids[:, place : place + 2], begin=place) for place in range(0, LENGTH, 2)]
    assert torch.equal(torch.cat(pieces, 1), embedding(ids))


def test_the_table_grows() -> None:
    embedding = TextEmbedding(VOCAB, DIM, EmbeddingConfig())
    ids = torch.ones(1, 1, dtype=torch.int64)
    with torch.inference_mode():
        before = embedding(ids)
    for begin in (3, 127, 128, 129, 1000):
        wanted = embedding.tokens.weight[ids] * math.sqrt(DIM) + sinusoidal_positions(begin, begin + 1, DIM)
        torch.testing.assert_close(embedding(ids, begin=begin), wanted)
    assert torch.equal(embedding(ids), before)
    assert embedding.bfloat16()(ids).dtype == torch.bfloat16
    assert set(embedding.state_dict()) == {"tokens.weight"}
    embedding(ids).sum().backward()


def test_padding_learns_nothing_from_its_lookup() -> None:
    embedding = TextEmbedding(VOCAB, DIM, EmbeddingConfig(), padding=2)
    assert not embedding.weight[2].any()
    embedding(torch.tensor([[2, 3, 2, 5]])).square().sum().backward()
    grad = embedding.weight.grad
    assert grad is not None
    assert grad.any(1).nonzero().flatten().tolist() == [3, 5]


def test_norm_and_dropout_come_last() -> None:
    torch.manual_seed(0)
    config = EmbeddingConfig(norm=True, dropout=0.5)
    embedding = TextEmbedding(VOCAB, DIM, config)
    ids = torch.randint(1, VOCAB, (BATCH, LENGTH))
    dropped = embedding(ids)
    assert 0.2 < (dropped == 0).double().mean() < 0.8
    normed = embedding.eval()(ids)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(BATCH, LENGTH), rtol=0, atol=1e-6)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * normed[kept])


def test_vectors_start_at_the_size_of_their_positions() -> None:
    torch.manual_seed(0)
    for scale in (True, False):
        embedding = TextEmbedding(401, 64, EmbeddingConfig("learned", 307, scale))
        assert embedding.learned is not None
        tokens = embedding.weight[1:].std() * embedding.scale
        assert 0.97 < (embedding.learned.weight.std() / tokens).item() < 1.03


def test_learned_positions_end() -> None:
    embedding = TextEmbedding(VOCAB, DIM, EmbeddingConfig("learned", max_positions=LENGTH))
    ids = torch.ones(1, LENGTH, dtype=torch.int64)
    assert embedding(ids).shape == (1, LENGTH, DIM)
    message = f"embedding: 8 tokens, but learned positions end at {LENGTH}; shorten the input or train with a larger"
    with pytest.raises(ShapeError, match=message):
        embedding(ids, begin=1)


def test_sinusoids_want_an_even_width() -> None:
    message = "sinusoidal positions want an even model_dim, not 7; change it or embedding.positions"
    with pytest.raises(ConfigError, match=message):
        TextEmbedding(VOCAB, 7, EmbeddingConfig())
    with pytest.raises(ConfigError, match=message):
        sinusoidal_positions(0, 3, 7)
    assert TextEmbedding(VOCAB, 7, EmbeddingConfig("none"))(torch.ones(1, 2, dtype=torch.int64)).shape == (1, 2, 7)
