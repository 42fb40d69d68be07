"""The learning rate at points worked by hand, and the laws of every kind."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.errors import ConfigError
from regard.training.config import AdamWConfig, ScheduleConfig, TrainingConfig
from regard.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("kind", "step", "expected"),
    [
        ("inverse-sqrt", 1, 0.08 / 4),
        ("inverse-sqrt", 3, 0.08 * 3 / 4),
        ("inverse-sqrt", 4, 0.08),
        ("inverse-sqrt", 16, 0.04),  # sqrt(4 / 16) is a half
        ("inverse-sqrt", 100, 0.016),  # sqrt(4 / 100) is a fifth
        ("cosine", 2, 0.04),
        ("cosine", 4, 0.08),
        ("cosine", 8, 0.08 * (0.25 + 0.75 * 0.75)),  # a third of the way: cos(pi / 3) is a half
        ("cosine", 10, 0.08 * (0.25 + 0.75 * 0.5)),  # half way
        ("cosine", 16, 0.02),  # the end: the floor
        ("cosine", 99, 0.02),
        ("constant", 1, 0.02),
        ("constant", 4, 0.08),
        ("constant", 99, 0.08),
    ],
)
def test_closed_forms(kind: str, step: int, expected: float) -> None:
    config = ScheduleConfig(kind, peak=0.08, warmup_steps=4, floor=0.25)
    assert learning_rate(step, 16, config) == pytest.approx(expected, rel=1e-12)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    for warmup in (0, 1):
        for kind in ("inverse-sqrt", "cosine", "constant"):
            assert learning_rate(1, 9, ScheduleConfig(kind, peak=0.5, warmup_steps=warmup)) == 0.5
    assert learning_rate(4, 9, ScheduleConfig(peak=0.5, warmup_steps=0)) == 0.25


@given(
    st.sampled_from(["inverse-sqrt", "cosine", "constant"]),
    st.integers(0, 50),
    st.integers(1, 200),
    st.floats(0.0, 1.0),
)
def test_rises_to_the_peak_and_never_again(kind: str, warmup: int, max_steps: int, floor: float) -> None:
    config = ScheduleConfig(kind, peak=0.3, warmup_steps=warmup, floor=floor)
    rates = [learning_rate(step, max_steps, config) for step in range(1, max_steps + 1)]
    top = max(warmup, 1)
    assert all(before < after for before, after in pairwise(rates[:top]))
    assert all(before >= after - 1e-15 for before, after in pairwise(rates[top - 1 :]))
    assert all(0.0 <= rate <= 0.3 for rate in rates)
    if max_steps > top and kind == "cosine":
        assert rates[-1] == pytest.approx(0.3 * floor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": 0}, "training: max_steps is 0, expected 1 or more"),
        ({"label_smoothing": 1.0}, "training: label_smoothing is 1.0, expected 0 to below 1"),
        ({"ema_decay": 1.0}, "training: ema_decay is 1.0, expected between 0 and 1, or null"),
        ({"clip_norm": 0.0}, "training: clip_norm is 0.0, expected above 0, or null"),
        ({"patience": 0}, "training: patience is 0, expected 1 or more, or null"),
        ({"final": ()}, "training: final is [], expected some of best, last, average, each once"),
        (
            {"final": ("best", "best")},
            "training: final is ['best', 'best'], expected some of best, last, average, each",
        ),
        ({"schedule": ScheduleConfig(peak=float("nan"))}, "training: schedule.peak is nan, expected above 0"),
        ({"schedule": ScheduleConfig(warmup_steps=-1)}, "training: schedule.warmup_steps is -1, expected 0 or more"),
        ({"schedule": ScheduleConfig(floor=1.5)}, "training: schedule.floor is 1.5, expected 0 to 1"),
        ({"optimizer": AdamWConfig(beta1=1.0)}, "training: optimizer.beta1 is 1.0, expected 0 to below 1"),
        ({"optimizer": AdamWConfig(eps=0.0)}, "training: optimizer.eps is 0.0, expected above 0"),
        ({"optimizer": AdamWConfig(weight_decay=-1.0)}, "training: optimizer.weight_decay is -1.0, expected 0 or more"),
    ],
)
def test_a_choice_out_of_range_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TrainingConfig(**{"max_steps": 9, **change})
    assert str(raised.value).startswith(message)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"accumulate is 0.*; log_every is -1.*; patience is 0"):
        TrainingConfig(max_steps=9, accumulate=0, log_every=-1, patience=0)
