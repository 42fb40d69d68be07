"""Looks at attention heads: their numbers, and when and in which words they warn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted_looks import looked, observation
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from regard.attention.pair_scores import PairScores
from regard.errors import ConfigError, ObservationError
from regard.training import attention_monitor
from regard.training.attention_monitor import COLLAPSE, EXPLOSION, AttentionMonitor, Rule, allowed_keys
from regard.training.config import TrainingConfig
from regard.training.monitor import Metrics

INFINITY = float("inf")
# -- the numbers -------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_definition() -> None:
    """Means over the real queries of all parts, with one query that is padding and one that may attend to nothing."""
    torch.manual_seed(3)
    first, second = torch.rand(2, 3, 5), torch.rand(2, 3, 5)
    largest = torch.randn(2, 3, 5)
    largest[0, 1, 2] = -INFINITY
    first[0, 1, 2] = 0.0
    real = torch.ones(2, 5, dtype=torch.bool)
    real[1, 3:] = False
    layer = "encoder.layers.0.self"
    parts = {layer: observation(first, largest=largest, keys=11)}, {layer: observation(second, keys=4)}
    health = looked(*parts, real={"encoder": real}).health()[layer]
    counted = real[:, None].expand(2, 3, 5) & (largest > -INFINITY)
    for head in range(3):
        kept = [first[:, head][counted[:, head]], second[:, head][real]]
        queries = sum(len(part) for part in kept)
        total = sum(float(part.double().sum()) for part in kept)
        most = len(kept[0]) * math.log(11) + len(kept[1]) * math.log(4)
        assert health.entropy[head] == pytest.approx(total / queries)
        assert health.entropy_share[head] == pytest.approx(total / most)
        assert health.max_logit[head] == max(1.0, float(largest[:, head][counted[:, head]].max()))
        assert health.sink_mass[head] == pytest.approx(0.25)


def test_calls_of_one_layer_are_its_queries_in_turn() -> None:
    """As a recurrent decoder makes them, one query each; the real ones are told for all together."""
    real = torch.tensor([[True, True, True], [True, False, False]])
    steps = torch.tensor([1.0, 2.0, 4.0]).expand(2, 1, 3)
    names = ["decoder.layers.0.cross", "decoder.layers.0.cross#1", "decoder.layers.0.cross#2"]
    seen = {name: observation(steps[:, :, index : index + 1]) for index, name in enumerate(names)}
    [(layer, health)] = looked(seen, real={"decoder": real}).health().items()
    assert layer == "decoder.layers.0.cross"
    assert health.entropy == [pytest.approx((1 + 2 + 4 + 1) / 4)]


def test_a_name_that_only_begins_alike_is_another_layer() -> None:
    entropy = torch.tensor([[[1.0, 3.0]]])
    real = {"decoder": torch.tensor([[True, False]])}
    found = looked({"decoder.layers.0": observation(entropy), "decoders": observation(entropy)}, real=real).health()
    assert found["decoder.layers.0"].entropy == [1.0]
    assert found["decoders"].entropy == [2.0]


def test_where_there_is_no_choice_there_is_no_share() -> None:
    zeros = torch.zeros(1, 2, 3)
    one_key = looked({"layer": observation(zeros, keys=1)}).health()["layer"]
    assert all(math.isnan(share) for share in one_key.entropy_share)
    unknown = looked({"layer": observation(zeros + 1, keys=None)}).health()["layer"]
    assert all(math.isnan(share) for share in unknown.entropy_share)
    assert unknown.entropy == [1.0, 1.0]
    nobody = looked({"layer": observation(zeros, largest=zeros - INFINITY)}).health()["layer"]
    assert all(math.isnan(mean) for mean in nobody.entropy)


def masked_pairs(**masks: Any) -> PairScores:
    return PairScores(torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 11, 7), 1.0, **masks)


def dense(pairs: PairScores) -> Tensor:
    """Which pairs are allowed, [batch, heads, query_len, key_len], from the scores themselves."""
    return pairs.of_queries(torch.arange(pairs.query_len)) > -INFINITY


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


RANGES = torch.tensor([[[0, 2], [4, 7]], [[1, 11], [0, 0]], [[0, 0], [0, 0]], [[0, 11], [0, 0]], [[3, 4], [9, 11]]])
LOWEST = torch.finfo(torch.float32).min
MASKS = {
    "none": {},
    "ranges": {"ranges": RANGES.int()[None]},
    "allowed": {"allowed": random(2, 1, 5, 11) > 0.4},
    "allowed keys": {"allowed": random(2, 1, 1, 11) > 0.4, "ranges": RANGES.int()[None]},
    "bias of each head": {"bias": torch.where(random(1, 3, 5, 11) > 0.4, random(1, 3, 5, 11), LOWEST)},
    "bias of keys": {"bias": torch.where(random(2, 1, 1, 11) > 0.4, 0.0, -INFINITY), "ranges": RANGES.int()[None]},
    "all three": {
        "bias": torch.where(random(2, 1, 5, 1) > 0.4, 0.0, LOWEST),
        "ranges": RANGES.int()[None],
        "allowed": random(1, 3, 5, 11) > 0.3,
    },
}


@pytest.mark.parametrize("mask", MASKS)
def test_allowed_keys_are_counted(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_monitor, "BLOCK_PAIRS", 2 * 3 * 11 * 2)  # blocks of two queries
    pairs = masked_pairs(**MASKS[mask])
    expected = dense(pairs).sum(-1)
    found = allowed_keys(pairs)
    assert found.shape[-1] == 5
    assert torch.equal(found.expand(2, 3, 5), expected)


# -- the rules ---------------------------------------------------------------------------------------------------------


def told(rule: Rule, values: list[float]) -> list[int]:
    """The looks, counted from 1, at which a head with these values is reported."""
    monitor, found = AttentionMonitor(1, said=lambda line: None), []
    for step, value in enumerate(values, start=1):
        health = attention_monitor.LayerHealth([1.0], [0.5], [1.0], [0.0])
        health = health._replace(**{rule.name: [value]})
        monitor.load_state(json.loads(json.dumps(monitor.state())))  # a kill at any look changes nothing
        if monitor._warnings(step, {"layer": health}):
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("values", "looks"),
    [
        ([0.9, 0.04, 0.04, 0.04, 0.04, 0.04], [4]),  # told once
        ([0.04] * 9, []),  # never was well: nothing collapsed
        ([0.9, 0.04, 0.04, 0.06, 0.04, 0.04, 0.04], [7]),  # not in a row
        ([0.9, 0.0, 0.0, 0.0, 0.09, 0.0, 0.0, 0.0], [4]),  # not well in between
        ([0.9, 0.0, 0.0, 0.0, 0.10, 0.0, 0.0, 0.0], [4, 8]),  # well again, and again no longer
        ([0.09, 0.0, 0.0, 0.0], []),
        ([0.9, 0.05, 0.05, 0.05], []),  # at the limit is not below it
        ([0.9, 0.0, math.nan, 0.0, 0.0], [5]),  # a look that says nothing changes nothing
    ],
)
def test_entropy_collapse(values: list[float], looks: list[int]) -> None:
    assert told(COLLAPSE, values) == looks


@pytest.mark.parametrize(
    ("values", "looks"),
    [
        ([3.0, 100.0, 101.0, 500.0], [3]),
        ([900.0], [1]),  # before anybody looked it was well
        ([101.0, 51.0, 101.0], [1]),
        ([101.0, 50.0, 101.0], [1, 3]),
        ([3.0, INFINITY], [2]),
        ([3.0, math.nan, -INFINITY], []),
    ],
)
def test_exploding_scores(values: list[float], looks: list[int]) -> None:
    assert told(EXPLOSION, values) == looks


@given(st.lists(st.floats(0, 1), max_size=40))
def test_a_collapse_is_told_once_and_only_after_health(values: list[float]) -> None:
    steps = told(COLLAPSE, values)
    for before, step in zip([0, *steps], steps, strict=False):
        assert max(values[before : step - 3]) >= COLLAPSE.well
        assert max(values[step - 3 : step]) < COLLAPSE.limit


def test_what_is_told(tmp_path: Path) -> None:
    """The texts, the line of metrics and the events of a run whose second head falls ill."""
    lines: list[str] = []
    monitor = AttentionMonitor(100, said=lines.append)
    metrics = Metrics(tmp_path)
    metrics.open(0, 0)
    well, ill = torch.tensor([1.5, 1.5]), torch.tensor([1.5, 0.01234567])
    for step, heads, largest in ((1, well, 4.5), (100, ill, 104.5), (200, ill, INFINITY), (300, ill, 104.5)):
        entropy = heads[None, :, None].expand(2, 2, 5)
        most = torch.tensor([2.5, largest])[None, :, None].expand(2, 2, 5)
        monitor.tell(step, looked({"decoder.layers.0.cross": observation(entropy, largest=most)}), metrics)
    metrics.close()
    explosion = (
        "step 100: decoder.layers.0.cross, head 1: attention scores explode: the largest is 104.5, above 100; if"
        " learning stalls or jumps, start another run with a lower training.schedule.peak or a higher"
        " training.optimizer.weight_decay"
    )
    collapse = (
        "step 300: decoder.layers.0.cross, head 1: attention has collapsed: entropy 0.012 nats, 0.6% of what its keys"
        " allow, below 5% for 3 looks; if learning stalls or jumps, start another run with a lower"
        " training.schedule.peak or a longer training.schedule.warmup_steps"
    )
    assert lines == [explosion, collapse]
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in written] == [1, 100, 200, 300]
    assert [line.get("attention_warnings") for line in written] == [None, [explosion], None, [collapse]]
    assert written[3]["attention"] == {
        "decoder.layers.0.cross": {
            "entropy": [1.5, 0.0123457],
            "entropy_share": [pytest.approx(1.5 / math.log(8), rel=1e-5), pytest.approx(0.00593699, rel=1e-5)],
            "max_logit": [2.5, 104.5],
            "sink_mass": [0.25, 0.25],
        }
    }
    assert written[2]["attention"]["decoder.layers.0.cross"]["max_logit"] == [2.5, None]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert len(events.Tags()["scalars"]) == 8
    shown = events.Scalars("attention_entropy/decoder.layers.0.cross/1")
    assert [(event.step, event.value) for event in shown] == [
        (step, pytest.approx(value)) for step, value in ((1, 1.5), (100, ill[1]), (200, ill[1]), (300, ill[1]))
    ]


def test_real_queries_that_do_not_fit_are_told() -> None:
    real = {"encoder": torch.ones(2, 4, dtype=torch.bool)}
    with pytest.raises(ObservationError) as raised:
        looked({"encoder.layers.0.self": observation(torch.ones(2, 3, 5))}, real=real)
    assert str(raised.value) == (
        "layer `encoder.layers.0.self` has queries of shape (2, 5), but the real ones are told as (2, 4); let"
        " `real_queries` name only layers that it describes"
    )


def test_never_and_every_nonsense() -> None:
    assert AttentionMonitor(None, said=print).look(100) is None
    assert TrainingConfig(max_steps=1, attention_every=None).attention_every is None
    with pytest.raises(ConfigError, match=r"^training: attention_every is 0, expected 1 or more, or null$"):
        TrainingConfig(max_steps=1, attention_every=0)
