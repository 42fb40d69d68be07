"""Runs whose attention is looked at: bit for bit those that nobody looked at, killed, resumed or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import read_checkpoint, unequal
from scripted_looks import observation
from tiny_run import CONFIG, tiny_stream, tiny_trainer
from torch import Tensor, nn

from regard.attention.hosts.observe import observe
from regard.attention.observation import Observe
from regard.attention.records.record import AttentionRecord
from regard.data.batches import Batch, Position
from regard.data.corpus import Corpus
from regard.errors import ObservationError
from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.tasks.translate.job import objective, real_queries
from regard.training import attention_monitor
from regard.training.attention_monitor import RealQueries
from regard.training.averaging import weights_of
from regard.training.config import ScheduleConfig, TrainingConfig
from regard.training.loop import Trainer

TRANSFORMER = EncoderDecoderConfig(
    TransformerEncoderConfig(
        12, 2, AttentionConfig(heads=3), FeedForwardConfig(width=14), embedding=EmbeddingConfig(dropout=0.25)
    ),
    TransformerDecoderConfig(12, 1, AttentionConfig(heads=2, kv_heads=1, dropout=0.25), FeedForwardConfig(width=14)),
    tie="all",
)
RECURRENT = EncoderDecoderConfig(RecurrentEncoderConfig("recurrent", 6), AttentionRNNConfig("attention-rnn", 10, 7))
LOOKED = TrainingConfig(
    max_steps=7,
    schedule=ScheduleConfig("constant", peak=0.01, warmup_steps=0),
    accumulate=2,
    precision="float32",
    validate_every=5,
    checkpoint_every=4,
    final=("last",),
    log_every=3,
    attention_every=2,
)


class Noting:
    """A watcher that keeps the lines it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, step: int, max_steps: int) -> None: ...

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None: ...

    def said(self, message: str) -> None:
        self.lines.append(message)


def model_of(config: EncoderDecoderConfig) -> EncoderDecoder:
    torch.manual_seed(7)
    return EncoderDecoder(260, 260, config)


def trainer(
    corpus: Corpus,
    folder: Path,
    model: EncoderDecoderConfig = TRANSFORMER,
    *,
    dies_in: int | None = None,
    real: RealQueries = real_queries,
    **changes: Any,
) -> tuple[Trainer, Noting]:
    """A run of an attention model. dies_in: the process as good as dies in this call of the objective."""
    watcher, loss, calls = Noting(), objective(0.1), 0

    def counted(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Any:
        nonlocal calls
        calls += 1
        if calls == dies_in:
            raise Died
        return loss(model, batch, dtype)

    made = tiny_trainer(
        corpus,
        folder,
        replace(LOOKED, **changes),
        model=model_of(model),
        objective=counted,
        validate=lambda model: {"log_likelihood": 1.0},
        real_queries=real,
        keep_best=lambda model: None,
        watcher=watcher,
    )
    return made, watcher


def nothing(batch: Batch) -> dict[str, Tensor]:
    """Says of no layer which queries are real: scripted ones have other shapes than the batch."""
    return {}


class Died(BaseException):
    """Nothing of the process is left but its files."""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


LAYERS = {
    "transformer": {"encoder.layers.0.self": 3, "encoder.layers.1.self": 3}
    | {"decoder.layers.0.self": 2, "decoder.layers.0.cross": 2},
    "recurrent": {"decoder.layers.0.cross": 1},
}


@pytest.mark.parametrize(
    ("name", "config", "precision"),
    [
        ("transformer", TRANSFORMER, "float32"),
        ("transformer", TRANSFORMER, "bfloat16"),
        ("recurrent", RECURRENT, "float32"),
    ],
    ids=["transformer", "transformer in bfloat16", "recurrent"],
)
def test_looking_changes_nothing(
    corpus: Corpus, tmp_path: Path, name: str, config: EncoderDecoderConfig, precision: str
) -> None:
    """Weights, losses and checkpoints are those of a run that nobody looked at, bit for bit."""
    found = []
    for every in (None, 2):
        folder = tmp_path / str(every)
        made, watcher = trainer(corpus, folder, config, precision=precision, attention_every=every)
        made.run()
        states = [read_checkpoint(path) for path in sorted((folder / "checkpoints").glob("step-*"))]
        for state in states:
            assert any(state["state"].pop("attention").values()) == (every is not None)
            state["state"].pop("metrics_size")
        plain = [line for line in lines(folder) if "attention" not in line]
        found.append((weights_of(made.model), states, plain))
        assert not [line for line in watcher.lines if "attention" in line]
    assert unequal(*found) == []
    looks = [line for line in lines(tmp_path / "2") if "attention" in line]
    assert [line["step"] for line in looks] == [1, 2, 4, 6]
    for look in looks:
        heads = {layer: len(numbers["entropy"]) for layer, numbers in look["attention"].items()}
        assert heads == LAYERS[name]
        for numbers in look["attention"].values():
            if name == "recurrent":  # additive scores leave no trace that tells how many keys are allowed
                assert numbers["entropy_share"] == [None]
                continue
            assert all(0.0 < share <= 1.0 + 1e-6 for share in numbers["entropy_share"])
            assert all(0.0 < mass < 1.0 for mass in numbers["sink_mass"])
    if name == "transformer":
        for numbers in looks[0]["attention"].values():  # attention begins next to uniform
            assert min(numbers["entropy_share"]) > 0.5


def test_the_comparison_finds_a_single_draw(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An observer that draws one random number changes the run, and the test above would see it."""
    weights = []
    observed = attention_monitor.observe

    @contextmanager
    def drawing(model: nn.Module, **request: Any) -> Iterator[AttentionRecord]:
        assert isinstance(model, EncoderDecoder)
        hook = model.encoder.register_forward_hook(lambda *values: torch.rand(1) and None)
        with observed(model, **request) as seen:
            yield seen
        hook.remove()

    for name, observer in (("observed", observed), ("drawing", drawing)):
        monkeypatch.setattr(attention_monitor, "observe", observer)
        made, _ = trainer(corpus, tmp_path / name, max_steps=2)
        made.run()
        weights.append(weights_of(made.model))
    assert unequal(*weights) != []


def test_numbers_of_a_run_by_hand(corpus: Corpus, tmp_path: Path) -> None:
    """Without dropout, the first step's encoder and decoder from their own materialised weights."""
    still = replace(
        TRANSFORMER,
        encoder=replace(TRANSFORMER.encoder, num_layers=1, dropout=0.0, embedding=EmbeddingConfig()),
        decoder=replace(TRANSFORMER.decoder, dropout=0.0, attention=AttentionConfig(heads=2)),
    )
    made, _ = trainer(corpus, tmp_path, still, max_steps=1, accumulate=1)
    made.run()
    [found] = [line["attention"] for line in lines(tmp_path) if "attention" in line]
    batch = tiny_stream(corpus).at(Position())
    assert batch.source.padding_share > 0 < batch.target.padding_share
    model = model_of(still)
    real = real_queries(batch)
    memories, seen = model.encode(batch.source.values, batch.source.lengths, Observe(rows="all"))
    _, _, cross = model.decoder.read(model.decoder.start(memories), batch.target_inputs, Observe(rows="all"))
    for layer, rows in {**seen, **cross}.items():
        kept = real[layer.partition(".")[0]]
        assert rows.rows is not None
        weights = rows.rows.detach().double()
        keys = batch.source.lengths.double()[:, None].expand_as(kept)[kept]  # a key is a word of the source in both
        for head in range(weights.shape[1]):
            of_head = weights[:, head][kept]
            entropy = torch.special.entr(of_head).sum(-1)
            assert found[layer]["entropy"][head] == pytest.approx(float(entropy.mean()), rel=1e-4)
            assert found[layer]["entropy_share"][head] == pytest.approx(
                float(entropy.sum() / keys.log().sum()), rel=1e-4
            )
            assert found[layer]["sink_mass"][head] == pytest.approx(float(of_head[:, 0].mean()), rel=1e-4)


def test_real_queries_are_those_that_are_no_padding(corpus: Corpus) -> None:
    batch = tiny_stream(corpus).at(Position())
    real = real_queries(batch)
    assert torch.equal(real["encoder"].sum(1), batch.source.lengths)
    assert torch.equal(real["decoder"].sum(1), batch.target.lengths)
    assert torch.equal(real["decoder"], real["decoder"].sort(1, descending=True).values)


@pytest.mark.parametrize("dies_in", [1, 4, 8, 11, 12])
def test_a_killed_run_has_every_look_once(corpus: Corpus, tmp_path: Path, dies_in: int) -> None:
    undisturbed, _ = trainer(corpus, tmp_path / "undisturbed")
    undisturbed.run()
    with pytest.raises(Died):
        trainer(corpus, tmp_path / "killed", dies_in=dies_in)[0].run()
    again, _ = trainer(corpus, tmp_path / "killed")
    again.run()
    assert unequal(weights_of(undisturbed.model), weights_of(again.model)) == []
    contents = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("undisturbed", "killed")]
    assert contents[0] == contents[1]
    last = [tmp_path / name / "checkpoints" / "step-000000007" for name in ("undisturbed", "killed")]
    assert unequal(*[read_checkpoint(path) for path in last]) == []


@pytest.mark.parametrize("dies_in", [None, 9, 13, 17, 19])
def test_a_resumed_run_warns_alike(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: int | None
) -> None:
    """A collapse between steps 2 and 4 is told at step 8, wherever the run was killed on the way."""
    warnings: list[str] = []
    for dies in [dies_in, None] if dies_in else [None]:
        made, watcher = trainer(corpus, tmp_path, dies_in=dies, real=nothing, checkpoint_every=3, max_steps=10)

        @contextmanager
        def falling(model: nn.Module, run: Trainer = made, **request: Any) -> Iterator[AttentionRecord]:
            share = 0.9 if run.step < 3 else 0.01
            yield AttentionRecord({"decoder.layers.0.self": observation(torch.full((2, 1, 3), math.log(8) * share))})

        monkeypatch.setattr(attention_monitor, "observe", falling)
        try:
            made.run()
        except Died:
            assert dies is not None
        warnings = [line for line in watcher.lines if "attention has collapsed" in line]
    in_file = [line for line in lines(tmp_path) if "attention_warnings" in line]
    assert [line["step"] for line in in_file] == [8]
    assert [line["step"] for line in lines(tmp_path) if "attention" in line] == [1, 2, 4, 6, 8, 10]
    last_checkpoint = 0 if dies_in is None else (dies_in - 1) // 2 // 3 * 3
    assert len(warnings) == (last_checkpoint < 8), "told again only where the step is done again"


@pytest.mark.parametrize("where", ["entering", "second part", "leaving"])
def test_what_cannot_be_observed_is_trained_all_the_same(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """One line says why, no number of half a step is written, and the weights are those of a run without looks."""
    plain, _ = trainer(corpus, tmp_path / "plain", attention_every=None)
    plain.run()
    calls = 0
    found = {"layer": observation(torch.ones(1, 1, 2))}

    @contextmanager
    def refusing(model: nn.Module, **request: Any) -> Iterator[AttentionRecord]:
        nonlocal calls
        calls += 1
        if where == "entering" or (where == "second part" and calls >= 2):
            raise ObservationError("observe: this model is compiled; observe it before torch.compile")
        yield AttentionRecord(found)
        if where == "leaving":
            raise ObservationError("observe: this model is compiled; observe it before torch.compile")

    monkeypatch.setattr(attention_monitor, "observe", refusing)
    made, watcher = trainer(corpus, tmp_path / "refused", real=nothing)
    made.run()
    reason = "observe: this model is compiled; observe it before torch.compile"
    assert [line for line in watcher.lines if "attention" in line] == [
        f"attention is not monitored: {reason}; training.attention_every null leaves this out"
    ]
    assert calls == {"entering": 2, "second part": 3, "leaving": 2}[where], "with and without a trace, and never again"
    assert (tmp_path / "refused" / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()
    assert unequal(weights_of(plain.model), weights_of(made.model)) == []


def test_of_a_model_without_attention_nothing_is_told(corpus: Corpus, tmp_path: Path) -> None:
    watcher = Noting()
    made = tiny_trainer(corpus, tmp_path, replace(CONFIG, max_steps=3, attention_every=1), watcher=watcher)
    with (
        pytest.raises(ObservationError, match="nowhere in it was attention seen"),
        observe(made.model, entropy=True),
    ):
        made.model(torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64))
    made.run()
    assert not [line for line in lines(tmp_path) if "attention" in line]
    assert not [line for line in watcher.lines if "attention" in line]
