"""A whole training run in miniature: a corpus, models, their objectives, and the trainer of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regard.data.batches import Batch, BatchStream, Position, TokenBudget
from regard.data.columns import TextColumn
from regard.data.corpus import Corpus, prepare
from regard.data.records import Origin, Record
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.layers.attention import AttentionConfig
from regard.layers.dropout import Dropout
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.head import HeadConfig, OutputHead
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.conformer_encoder import ConformerEncoderConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.luong_rnn import LuongRNNConfig
from regard.models.pyramid_encoder import PyramidEncoderConfig
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.tasks import model_directory
from regard.tasks.translate.job import objective as translation_objective
from regard.tasks.translate.job import real_queries
from regard.training.averaging import weights_of
from regard.training.config import AdamWConfig, ScheduleConfig, TrainingConfig
from regard.training.loop import Trainer
from regard.training.objective import Loss, cross_entropy

CONFIG = TrainingConfig(
    max_steps=30,
    schedule=ScheduleConfig(peak=0.01, warmup_steps=5),
    optimizer=AdamWConfig(weight_decay=0.01),
    accumulate=2,
    precision="float32",
    ema_decay=0.9,
    validate_every=7,
    checkpoint_every=4,
    keep_checkpoints=3,
    final=("best", "last", "average"),
    patience=4,
    log_every=3,
)


class TinyModel(nn.Module):
    """Predicts a target id from the target id before it and the mean of the source, with dropout."""

    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__()
        self.tokens = nn.Embedding(260, 8)
        self.mix = nn.Linear(8, 8)
        self.dropout = Dropout(dropout)
        self.head = OutputHead(self.tokens.weight, HeadConfig(bias=True))

    def forward(self, source: Tensor, target_inputs: Tensor) -> Tensor:
        hidden = self.tokens(target_inputs) + self.tokens(source).mean(1, keepdim=True)
        return self.dropout(torch.tanh(self.mix(self.dropout(hidden))))


def tiny_model(dropout: float = 0.25) -> TinyModel:
    torch.manual_seed(7)
    return TinyModel(dropout)


def tiny_corpus(folder: Path, num_records: int = 61) -> Corpus:
    """Sentences of 4 to 16 ids; every byte is an id."""
    if folder.is_dir():
        return Corpus.open(folder)
    tokenizer = Tokenizer.train(["a"], TokenizerConfig("bpe", 260))
    texts = [("abcdefghijkl"[: 2 + n * 7 % 11], "mnopqrstuvwxyz"[: 2 + n * 5 % 13]) for n in range(num_records)]
    records = (Record({"source": s, "target": t}, Origin("made", n)) for n, (s, t) in enumerate(texts, start=1))
    return prepare(records, dict.fromkeys(("source", "target"), TextColumn(tokenizer)), folder)


def tiny_objective(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
    assert isinstance(model, TinyModel)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model(batch.source.values, batch.target_inputs)
    real = batch.target_outputs != Tokenizer.PAD
    hidden = hidden.to(model.tokens.weight.dtype)[real]
    return cross_entropy(hidden, model.head, batch.target_outputs[real], smoothing=0.1)


def tiny_validate(corpus: Corpus, objective: Any = None) -> Callable[[nn.Module], dict[str, float]]:
    """Mean log-likelihood; also draws random numbers, which must not reach the training."""

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        stream = BatchStream(corpus, TokenBudget(90), seed=1)
        batches = [stream.at(Position(0, index)) for index in range(stream.num_batches(0))]
        loss = objective or tiny_objective
        nll = sum(float(loss(model, batch, torch.float32).nll) for batch in batches)
        mean = nll / sum(batch.num_target_tokens for batch in batches)
        return {"log_likelihood": -mean, "perplexity": float(torch.tensor(mean).exp())}

    return validate


def tiny_stream(corpus: Corpus) -> BatchStream:
    return BatchStream(corpus, TokenBudget(80), seed=11, roles=("source", "target"))


def tiny_trainer(corpus: Corpus, folder: Path, config: TrainingConfig = CONFIG, **choices: Any) -> Trainer:
    """The run in `folder`; choices replace arguments of `Trainer`, and `model` its model."""
    given = {
        "objective": tiny_objective,
        "validate": tiny_validate(corpus),
        "metric": "log_likelihood",
        "seed": 3,
        "keep_best": lambda model: save_model(model, folder),
        **choices,
    }
    model, stream = given.pop("model", None) or tiny_model(), given.pop("stream", None) or tiny_stream(corpus)
    return Trainer(model, stream, config, folder, **given)


def save_model(model: nn.Module, folder: Path) -> None:
    weights, texts = weights_of(model), {"note.json": "{}"}
    model_directory.write(folder / "model", task="tiny", config={"width": 8}, weights=weights, texts=texts)


class Made(NamedTuple):
    """A model to train, and how."""

    model: nn.Module
    objective: Any
    real_queries: Any = lambda batch: {}


def models() -> dict[str, Callable[[], Made]]:
    """Models that a run can train, by name."""

    def translating(config: EncoderDecoderConfig) -> Made:
        torch.manual_seed(7)
        return Made(EncoderDecoder(260, 260, config), translation_objective(0.1), real_queries)

    attention, wide = AttentionConfig(heads=2, dropout=0.25), FeedForwardConfig(width=14)
    transformer = EncoderDecoderConfig(
        TransformerEncoderConfig(8, 2, attention, wide), TransformerDecoderConfig(8, 2, attention, wide), tie="all"
    )
    still = EncoderDecoderConfig(
        TransformerEncoderConfig(8, 1, AttentionConfig(heads=2), wide, dropout=0.0),
        TransformerDecoderConfig(8, 1, AttentionConfig(heads=2), wide, dropout=0.0),
    )
    recurrent = EncoderDecoderConfig(RecurrentEncoderConfig("recurrent", 6), AttentionRNNConfig("attention-rnn", 10, 7))
    pyramid = EncoderDecoderConfig(PyramidEncoderConfig("pyramid", 6, 2), LuongRNNConfig("luong-rnn", 8, 12, 2))
    biased = replace(attention, distance_bias="t5", sink="learned")
    conformer = EncoderDecoderConfig(
        ConformerEncoderConfig("conformer", 8, 2, biased, wide, kernel=3), TransformerDecoderConfig(8, 1, biased, wide)
    )
    return {
        "tiny": lambda: Made(tiny_model(), tiny_objective),
        "transformer": lambda: translating(transformer),
        "without dropout": lambda: translating(still),
        "recurrent": lambda: translating(recurrent),
        "pyramid": lambda: translating(pyramid),
        "conformer": lambda: translating(conformer),
    }
