from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from regard.attention.observation import Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig
from regard.inputs.text import Tokenizer
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.classifier import POOLED, Classifier, ClassifierConfig, PoolingConfig, hop_penalty
from regard.models.masked_language_model import MASK, MaskedLanguageModel, MaskedLanguageModelConfig, hide
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig

VOCAB, LABELS, DIM = 17, 3, 12
LENGTHS = torch.tensor([7, 3, 5])
SOURCE = torch.randint(4, VOCAB, (3, 7), generator=torch.Generator().manual_seed(1))
SOURCE = SOURCE.masked_fill(torch.arange(7) >= LENGTHS[:, None], Tokenizer.PAD)
TRANSFORMER = TransformerEncoderConfig(DIM, 2, AttentionConfig(3), FeedForwardConfig(23), dropout=0.0)
RECURRENT = RecurrentEncoderConfig("recurrent", 5, cell="lstm", dropout=0.0)
KINDS: list[Any] = ["mean", "max", "first", "attention"]


def build(config: ClassifierConfig) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(VOCAB, LABELS, config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", [TRANSFORMER, RECURRENT], ids=["transformer", "recurrent"])
def test_a_padded_batch_is_its_items_alone(kind: Any, encoder: Any) -> None:
    model = build(ClassifierConfig(encoder, PoolingConfig(kind, hops=2 if kind == "attention" else 1), hidden=9))
    found = model(SOURCE, LENGTHS).logits
    assert found.shape == (3, LABELS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(SOURCE[row : row + 1, :length], LENGTHS[row : row + 1]).logits
        torch.testing.assert_close(alone[0], found[row], rtol=0, atol=1e-10)


def test_attention_pooling_is_lins_by_hand() -> None:
    model = build(ClassifierConfig(TRANSFORMER, PoolingConfig(hops=4, width=7), dropout=0.0))
    memory, _ = model.encoder(SOURCE, LENGTHS)
    assert model.pooling is not None
    hidden = memory.vectors
    scores = torch.tanh(hidden @ model.pooling.keys.weight.T) @ model.pooling.queries.T  # [batch, length, hops]
    closed = (torch.arange(7) >= LENGTHS[:, None])[..., None]
    weights = scores.masked_fill(closed, float("-inf")).softmax(1).transpose(1, 2)
    wanted = model.labels((weights @ hidden).flatten(1))
    found = model(SOURCE, LENGTHS, Observe(rows="all"))
    torch.testing.assert_close(found.logits, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.attention[POOLED].rows[:, 0], weights, rtol=0, atol=1e-10)
    assert list(found.attention) == ["encoder.layers.0.self", "encoder.layers.1.self", POOLED]
    assert model(SOURCE, LENGTHS).attention == {}


def test_hops_are_fined_in_training_alone() -> None:
    model = build(ClassifierConfig(TRANSFORMER, PoolingConfig(hops=2, width=5, penalty=0.5)))
    assert float(model(SOURCE, LENGTHS).penalty) == 0.0
    model.train()
    found = model(SOURCE, LENGTHS)
    assert found.attention == {}
    found.penalty.backward()
    assert model.pooling is not None
    assert float(model.pooling.queries.grad.abs().sum()) > 0.0


def test_the_penalty_is_0_for_hops_that_look_at_one_place_each() -> None:
    apart = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    assert float(hop_penalty(apart)) == 0.0
    alike = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]])
    assert float(hop_penalty(alike)) == pytest.approx(4 * 0.25)  # every entry of A A^T is 1/2
    assert float(hop_penalty(torch.cat([apart, alike]))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda: PoolingConfig(hops=0, width=0), "hops is 0, expected 1 or more; width is 0, expected 1 or more"),
        (lambda: PoolingConfig(penalty=-1.0), "penalty is -1.0, expected 0 or more"),
        (lambda: PoolingConfig("mean", penalty=0.1), "pooling by mean has no hops; set it to 0"),
        (lambda: Classifier(VOCAB, 1, ClassifierConfig(TRANSFORMER)), "1 labels, expected at least 2 to tell apart"),
        (lambda: MaskedLanguageModelConfig(TRANSFORMER, 1.0), "hidden_share is 1.0, expected between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(made: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made()


# -- masked language modelling -----------------------------------------------------------------------------------------


def test_some_tokens_are_hidden_and_never_the_end() -> None:
    ids = torch.randint(4, 50, (200, 40), generator=torch.Generator().manual_seed(3))
    lengths = torch.randint(1, 41, (200,), generator=torch.Generator().manual_seed(4))
    place = torch.arange(40)
    ids = ids.masked_fill(place >= lengths[:, None], Tokenizer.PAD)
    ids[torch.arange(200), lengths - 1] = Tokenizer.EOS
    found = hide(ids, lengths, 50, 0.15, torch.Generator().manual_seed(5))
    text = place < (lengths - 1)[:, None]
    assert not (found.wanted & ~text).any()
    assert torch.equal(found.inputs[~found.wanted], ids[~found.wanted])
    assert found.wanted.any(1)[lengths > 1].all()
    count = int(found.wanted.sum())
    assert count / int(text.sum()) == pytest.approx(0.15, abs=0.03)
    assert int((found.inputs[found.wanted] == MASK).sum()) / count == pytest.approx(0.8, abs=0.05)
    same = int((found.inputs[found.wanted] == ids[found.wanted]).sum())
    assert same / count == pytest.approx(0.1, abs=0.04)
    again = hide(ids, lengths, 50, 0.15, torch.Generator().manual_seed(5))
    assert torch.equal(again.inputs, found.inputs)


def test_a_masked_model_predicts_with_its_embedding() -> None:
    model = MaskedLanguageModel(
        VOCAB, MaskedLanguageModelConfig(replace(TRANSFORMER, embedding=EmbeddingConfig(scale_by_root=False)))
    ).eval()
    hidden, seen = model(SOURCE, LENGTHS)
    assert seen == {}
    assert model.head(hidden).shape == (3, 7, VOCAB)
    assert model.head.weight is model.encoder.embedding.tokens.weight
