"""The search for a token budget: it stops where it says, takes what it should, and leaves no trace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import TinyModel, tiny_corpus, tiny_model, tiny_objective
from torch import nn

from regard.data.batches import Batch, BatchStream, Position, TokenBudget
from regard.data.corpus import Corpus
from regard.errors import ConfigError, TrainingError
from regard.training import batch_budget
from regard.training.batch_budget import (
    DoesNotFitError,
    Found,
    Trial,
    find_batch_tokens,
    kept_batch_tokens,
    search,
    undisturbed,
    worst,
)
from regard.training.objective import Loss

GB = 10**9
PLENTY = 1000 * GB


class Machine:
    """A batch of n tokens holds fixed + each * n bytes; speed rises to `top` with half of it at `half` tokens."""

    def __init__(self, fixed: int, each: int, half: int = 1, top: float = 1000.0) -> None:
        self.fixed, self.each, self.half, self.top = fixed, each, half, top
        self.tried: list[int] = []

    def peak(self, batch_tokens: int) -> int:
        return self.fixed + self.each * batch_tokens

    def speed(self, batch_tokens: int) -> float:
        return self.top * batch_tokens / (batch_tokens + self.half)

    def attempt(self, batch_tokens: int) -> Trial | None:
        self.tried.append(batch_tokens)
        return Trial(batch_tokens, self.peak(batch_tokens), self.speed(batch_tokens))

    def search(self, smallest: int = 100, limit_bytes: int = PLENTY, **options: int) -> Found:
        return search(self.attempt, smallest=smallest, held_bytes=0, limit_bytes=limit_bytes, **options)


def scripted(*speeds: float) -> Callable[[int], Trial | None]:
    """Trials that take no memory, of these speeds one after the other."""
    remaining = iter(speeds)
    return lambda batch_tokens: Trial(batch_tokens, 0, next(remaining))


# -- where the search stops, and what it takes -------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    fixed=st.integers(0, 2 * GB),
    each=st.integers(1, 10**6),
    half=st.integers(1, 100_000),
    smallest=st.integers(1, 5000),
    limit=st.integers(1, 8 * GB),
)
def test_no_trial_is_over_the_limit_and_the_smallest_that_is_nearly_fastest_is_taken(
    fixed: int, each: int, half: int, smallest: int, limit: int
) -> None:
    machine = Machine(fixed, each, half)
    found = machine.search(smallest, limit)
    first = machine.tried[0]
    assert smallest <= first < 2 * smallest or first == smallest == 1
    assert machine.tried == [first << place for place in range(len(machine.tried))]
    assert [trial.batch_tokens for trial in found.trials] == machine.tried
    assert all(machine.peak(tried) <= limit for tried in machine.tried[1:])
    assert all(tried <= batch_budget.LARGEST for tried in machine.tried[1:])
    assert found.batch_tokens in machine.tried
    fitting = [tried for tried in machine.tried if machine.peak(tried) <= limit] or [first]
    fastest = max(map(machine.speed, fitting))
    for tried in fitting:
        assert (machine.speed(tried) * 1.05 > fastest) == (tried >= found.batch_tokens)


def test_memory_ends_the_search_before_it_is_full() -> None:
    machine = Machine(1 * GB, 10**6, half=10**6)
    found = machine.search(1000, limit_bytes=6 * GB)
    assert machine.tried == [1024, 2048, 4096]  # 8192 would hold 9.2 GB
    assert found.batch_tokens == 4096
    assert found.why == "8,192 would hold more than 6.0 GB; 4 target tokens/s"


def test_the_first_trial_alone_is_taken_to_double_altogether() -> None:
    machine = Machine(2 * GB, 10**6, half=10**6)
    assert machine.search(1024, limit_bytes=6 * GB).batch_tokens == 1024
    found = search(machine.attempt, smallest=1024, held_bytes=1 * GB, limit_bytes=6 * GB)
    assert found.batch_tokens == 2048  # 2 * 3.02 - 1 is below 6, and 4096 would take 6.1


def test_a_smallest_batch_over_the_share_is_taken_all_the_same() -> None:
    machine = Machine(7 * GB, 1)
    found = machine.search(100, limit_bytes=6 * GB)
    assert (machine.tried, found.batch_tokens) == ([128], 128)


def test_speed_ends_the_search_after_two_doublings_without_a_gain() -> None:
    found = search(scripted(100, 190, 300, 310, 305), smallest=256, held_bytes=0, limit_bytes=PLENTY)
    assert found.batch_tokens == 1024
    assert found.why == "larger ones are less than 5% faster; 300 target tokens/s"


def test_one_slow_trial_is_forgiven() -> None:
    found = search(scripted(100, 60, 190, 300, 290, 280), smallest=256, held_bytes=0, limit_bytes=PLENTY)
    assert found.batch_tokens == 2048


def test_growth_that_is_slow_but_adds_up_goes_on() -> None:
    speeds = [100.0, 104.0, 108.0, 112.0, 112.0]  # 108 is more than 5 % over 100, and 112 is not over 108
    found = search(scripted(*speeds), smallest=256, held_bytes=0, limit_bytes=PLENTY)
    assert len(found.trials) == 5
    assert found.batch_tokens == 1024  # the smallest that is less than 5 % behind 112


def test_the_largest_that_is_tried() -> None:
    machine = Machine(0, 1, half=10**7)
    found = machine.search(100, largest=1000)
    assert machine.tried == [128, 256, 512]
    assert found.why.startswith("1,000 is the most that is tried; ")


def test_too_few_batches_an_epoch() -> None:
    machine = Machine(0, 1, half=10**7)
    found = search(
        lambda tokens: machine.attempt(tokens) if tokens < 500 else None,
        smallest=100,
        held_bytes=0,
        limit_bytes=PLENTY,
    )
    assert found.batch_tokens == 256
    assert found.why.startswith("512 would leave fewer than 50 batches an epoch; ")


def test_a_batch_that_does_not_fit_ends_the_search() -> None:
    machine = Machine(0, 1, half=10**7)

    def attempt(batch_tokens: int) -> Trial | None:
        if batch_tokens >= 512:
            raise DoesNotFitError
        return machine.attempt(batch_tokens)

    found = search(attempt, smallest=100, held_bytes=0, limit_bytes=PLENTY)
    assert (found.batch_tokens, found.why.partition(";")[0]) == (256, "512 do not fit into memory")
    with pytest.raises(ConfigError) as error:
        search(attempt, smallest=501, held_bytes=0, limit_bytes=PLENTY)
    assert str(error.value) == (
        "data.batch.batch_tokens is auto, but not even a batch of 512 tokens fits into memory; lower data.max_tokens,"
        " or make the model smaller"
    )


# -- what is tried -----------------------------------------------------------------------------------------------------


class _Lengths:
    """Stands for a corpus where only lengths matter."""

    folder = Path("made")
    roles = ("source", "target")

    def __init__(self, source: list[int], target: list[int]) -> None:
        self._lengths = {"source": np.array(source, dtype=np.int32), "target": np.array(target, dtype=np.int32)}

    def __len__(self) -> int:
        return len(self._lengths["source"])

    def lengths(self, role: str) -> np.ndarray:
        return self._lengths[role]


def test_the_batches_that_take_most_are_tried() -> None:
    source, target = [3] * 40 + [9] * 30 + [2, 2], [2] * 40 + [9] * 30 + [31, 30]
    corpus = _Lengths(source, target)
    stream = BatchStream(corpus, TokenBudget(62), seed=3)  # type: ignore[arg-type]
    shapes = []
    for position in worst(stream):
        batch = stream.batches(position.epoch)[position.index]
        shapes.append(
            (len(batch), int(corpus.lengths("source")[batch].max()), int(corpus.lengths("target")[batch].max()))
        )
    assert sorted(shapes) == [(2, 2, 31), (6, 9, 9), (20, 3, 2)]


def test_one_batch_that_is_worst_in_every_way_is_tried_once() -> None:
    stream = BatchStream(_Lengths([5] * 7, [5] * 7), TokenBudget(100), seed=3)  # type: ignore[arg-type]
    assert worst(stream) == [Position(0, 0)]


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_budget, "SECONDS", 0.01)


@pytest.fixture(scope="module")
def plain_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("budget") / "corpus", num_records=701)


def find(model: nn.Module, corpus: Corpus, objective: batch_budget.Objective = tiny_objective) -> Found:
    return find_batch_tokens(
        model,
        lambda tokens: BatchStream(corpus, TokenBudget(tokens), seed=1),
        objective,
        smallest=17,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_a_search_with_a_real_model_leaves_no_trace(plain_corpus: Corpus) -> None:
    model = tiny_model().eval()
    model.mix.train()
    for parameter in model.mix.parameters():
        parameter.grad = torch.ones_like(parameter)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradient = model.mix.weight.grad
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches: list[Batch] = []

    def objective(trained: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        assert trained.training
        assert all(module.training for module in trained.modules())
        batches.append(batch)
        return tiny_objective(trained, batch, dtype)

    found = find(model, plain_corpus, objective)
    assert len(batches) >= (1 + batch_budget.REPEATS) * len(found.trials)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert model.mix.training
    assert model.mix.weight.grad is gradient
    assert gradient is not None
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert model.tokens.weight.grad is None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert found.batch_tokens in [trial.batch_tokens for trial in found.trials]
    assert found.trials[0].batch_tokens == 32
    assert all(trial.tokens_per_second > 0 for trial in found.trials)
    for trial in found.trials:
        stream = BatchStream(plain_corpus, TokenBudget(trial.batch_tokens), seed=1)
        assert trial is found.trials[0] or stream.num_batches(0) >= batch_budget.FEWEST_BATCHES


def test_a_batch_too_large_for_the_device_ends_the_search(
    plain_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_budget, "PATIENCE", 99)
    monkeypatch.setattr(batch_budget, "FEWEST_BATCHES", 3)
    told = []

    def objective(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        told.append(batch.target.values.numel())
        if told[-1] > 150:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return tiny_objective(model, batch, dtype)

    model = tiny_model()
    found = find(model, plain_corpus, objective)
    assert [trial.batch_tokens for trial in found.trials] == [32, 64, 128]
    assert max(told) > 150
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_that_a_real_model_takes_is_seen(plain_corpus: Corpus) -> None:
    """The real meter, in a process of its own: what a long one has freed and kept would blur it."""
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("limited_search.py"))]
    ended = subprocess.run([*command, str(plain_corpus.folder)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    trials = json.loads(ended.stdout)
    assert [tokens for tokens, _ in trials] == [32, 64, 128, 256]
    assert trials[-1][1] - trials[0][1] == pytest.approx(224 << 20, rel=0.2)


def test_an_error_of_another_kind_is_no_lack_of_memory(plain_corpus: Corpus) -> None:
    model = tiny_model()

    def objective(trained: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        raise RuntimeError("a defect")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"^a defect$"):
        find(model, plain_corpus, objective)
    assert torch.equal(torch.get_rng_state(), before)


def test_undisturbed_brings_back_what_was_also_after_an_error() -> None:
    model = TinyModel().eval()
    model.mix.bias.grad = given_gradient = torch.full((8,), 3.0)
    before = torch.get_rng_state()

    def train() -> None:
        with undisturbed(model):
            assert model.mix.bias.grad is None
            model.train()
            model.mix.bias.grad = torch.zeros(8)
            model.mix.weight.grad = torch.zeros(8, 8)
            torch.rand(7)
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        train()
    assert model.mix.bias.grad is given_gradient
    assert model.mix.weight.grad is None
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


# -- what a run keeps --------------------------------------------------------------------------------------------------


def test_a_run_keeps_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "data" / "batch_tokens.json"
    said: list[str] = []
    found = Found(2048, "larger ones are less than 5% faster; 300 target tokens/s", (Trial(2048, 77, 300.0),))
    assert kept_batch_tokens(path, lambda: found, said.append) == 2048
    assert said == [
        "batch_tokens: 2,048 found by trying; larger ones are less than 5% faster; 300 target tokens/s",
    ]
    written = json.loads(path.read_text())
    assert written["trials"] == [{"batch_tokens": 2048, "peak_bytes": 77, "tokens_per_second": 300.0}]

    def never() -> Found:
        raise AssertionError("searched again")

    assert kept_batch_tokens(path, never, said.append) == 2048
    assert len(said) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"batch_tokens": "auto"}', '{"batch_tokens": 0}', "\xff"])
def test_a_damaged_budget_is_no_reason_for_another(tmp_path: Path, content: str) -> None:
    path = tmp_path / "batch_tokens.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TrainingError, match=r"batch_tokens\.json: damaged, expected the batch_tokens that this run"):
        kept_batch_tokens(path, lambda: Found(1, "", ()))
