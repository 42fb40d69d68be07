"""The loop's arithmetic, what it tells, and how it ends."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import read_checkpoint, unequal, weights_in, write_checkpoint
from tiny_run import CONFIG, TinyModel, tiny_model, tiny_objective, tiny_stream, tiny_trainer
from torch import Tensor, nn

from regard.data.batches import Batch, load
from regard.data.corpus import Corpus
from regard.errors import ConfigError, Interrupted, TrainingError
from regard.tasks import model_directory
from regard.training import loop
from regard.training.averaging import weights_of
from regard.training.checkpoint import Checkpoints
from regard.training.config import AdamWConfig, ScheduleConfig, TrainingConfig
from regard.training.loop import Summary
from regard.training.objective import Loss
from regard.training.precision import changes, numerics, resolved_precision
from regard.training.schedule import learning_rate
from regard.training.update import seed_dropout

PLAIN = TrainingConfig(
    max_steps=3,
    schedule=ScheduleConfig("constant", peak=0.01, warmup_steps=0),
    clip_norm=None,
    precision="float32",
    final=("last",),
    log_every=1,
)


class Noting:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.steps: list[tuple[int, float | None, int]] = []
        self.lines: list[str] = []

    def started(self, step: int, max_steps: int) -> None:
        self.begun.append((step, max_steps))

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None:
        assert seconds > 0
        self.steps.append((step, loss, num_tokens))

    def said(self, message: str) -> None:
        self.lines.append(message)


class Given:
    """A stream of given batches, over and over."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def at(self, position: Any) -> Batch:
        return self.batches[position.index % len(self.batches)]

    def after(self, position: Any) -> Any:
        return replace(position, index=position.index + 1)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scores_in_turn(values: list[float]) -> Any:
    """A validation that gives these scores one after the other."""
    remaining = iter(values)
    return lambda model: {"log_likelihood": next(remaining)}


# -- the update --------------------------------------------------------------------------------------------------------


def test_accumulated_parts_are_one_big_batch(corpus: Corpus, tmp_path: Path) -> None:
    """Uneven parts of 3, 11 and 1 sentences: gradient, norm and updated weights are those of all 15 at once."""
    places = torch.randperm(len(corpus), generator=torch.Generator().manual_seed(1)).numpy()
    parts = [load(corpus, places[begin:end]) for begin, end in ((0, 3), (3, 14), (14, 15))]
    whole = load(corpus, places[:15])
    tokens = [part.num_target_tokens for part in parts]
    assert len(set(tokens)) == 3
    found: dict[str, tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Any]]]] = {}
    for name, batches in (("parts", parts), ("whole", [whole])):
        gradients: dict[str, Tensor] = {}
        model = tiny_model(dropout=0.0).double()
        config = replace(PLAIN, max_steps=2, accumulate=len(batches), clip_norm=0.1)
        trainer = tiny_trainer(corpus, tmp_path / name, config, model=model, stream=Given(batches))
        step = trainer.updates.optimizer.step

        def noted(model: nn.Module = model, gradients: dict[str, Tensor] = gradients, step: Any = step) -> None:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            step()

        trainer.updates.optimizer.step = noted  # type: ignore[assignment, method-assign]
        trainer.run()
        found[name] = gradients, weights_of(model), lines(tmp_path / name)
    for one, other in zip(found["parts"][:2], found["whole"][:2], strict=True):
        assert one.keys() == other.keys() == dict(tiny_model().named_parameters()).keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(found["parts"][2], found["whole"][2], strict=True):
        for name in mine.keys() & {"loss", "gradient_norm", "tokens", "validation_log_likelihood"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-9)
    assert found["parts"][2][0]["tokens"] == sum(tokens)


def test_one_update_by_hand(corpus: Corpus, tmp_path: Path) -> None:
    """AdamW's first step moves each weight by lr * g / (|g| + eps'), after shrinking matrices by lr * decay."""
    config = replace(PLAIN, max_steps=1, optimizer=AdamWConfig(eps=1e-12, weight_decay=0.5))
    model = tiny_model(dropout=0.0).double()
    before = weights_of(model)
    batch = tiny_stream(corpus).at(loop.Position())
    loss = tiny_objective(model, batch, torch.float32)
    (loss.objective / batch.num_target_tokens).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    tiny_trainer(corpus, tmp_path, config, model=model).run()
    for name, weight in weights_of(model).items():
        shrunk = before[name] * (1 - 0.01 * 0.5) if weight.ndim == 2 else before[name]
        moved = gradients[name].abs() > 1e-9
        torch.testing.assert_close(weight[moved], (shrunk - 0.01 * gradients[name].sign())[moved], rtol=1e-3, atol=1e-6)
    assert lines(tmp_path)[0]["loss"] == pytest.approx(float(loss.nll) / batch.num_target_tokens)


def test_only_matrices_decay(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer=AdamWConfig(beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.25))
    trainer = tiny_trainer(corpus, tmp_path, config)
    groups = {group["weight_decay"]: group for group in trainer.updates.optimizer.param_groups}
    assert {p.ndim for p in groups[0.25]["params"]} == {2}
    assert {p.ndim for p in groups[0.0]["params"]} == {1}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(trainer.model.parameters()))
    assert [(group["betas"], group["eps"]) for group in groups.values()] == [((0.8, 0.9), 1e-7)] * 2


def test_the_gradient_is_clipped_to_its_norm(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(PLAIN, max_steps=1, clip_norm=0.01)
    trainer = tiny_trainer(corpus, tmp_path, config)
    norms = []
    step = trainer.updates.optimizer.step

    def noted() -> None:
        norms.append(
            math.sqrt(sum(float(p.grad.pow(2).sum()) for p in trainer.model.parameters() if p.grad is not None))
        )
        step()

    trainer.updates.optimizer.step = noted  # type: ignore[assignment, method-assign]
    trainer.run()
    assert norms == [pytest.approx(0.01, rel=1e-3)]
    assert lines(tmp_path)[0]["gradient_norm"] > 0.1  # as it was before


def test_the_rate_the_tokens_and_the_epoch_are_told(corpus: Corpus, tmp_path: Path) -> None:
    watcher = Noting()
    config = replace(CONFIG, log_every=4)
    tiny_trainer(corpus, tmp_path, config, watcher=watcher).run()
    logged = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in logged] == [4, 8, 12, 16, 20, 24, 28, 30]  # the last step always
    for line in logged:
        assert line["learning_rate"] == learning_rate(line["step"], 30, config.schedule)
    stream, position, tokens = tiny_stream(corpus), loop.Position(), []
    for _ in range(30):
        tokens.append(0)
        for _ in range(2):
            tokens[-1] += stream.at(position).num_target_tokens
            position = stream.after(position)
    assert [line["tokens"] for line in logged] == [sum(tokens[: line["step"]]) for line in logged]
    assert logged[-1]["epoch"] == position.epoch == 6
    assert watcher.begun == [(0, 30)]
    assert [(step, num) for step, _, num in watcher.steps] == list(enumerate(tokens, start=1))
    assert [step for step, loss, _ in watcher.steps if loss is not None] == [line["step"] for line in logged]
    assert [line["step"] for line in lines(tmp_path) if "validation_log_likelihood" in line] == [7, 14, 21, 28, 30]
    assert watcher.lines[0].startswith("step 7: log_likelihood -")


def test_dropout_depends_on_the_place_alone(corpus: Corpus, tmp_path: Path) -> None:
    draws = []
    places = ((3, 5, 0, 0), (3, 5, 0, 1), (3, 5, 1, 0), (3, 6, 0, 0), (4, 5, 0, 0), (3, 5, 0, 0))
    for seed, step, part, piece in places:
        seed_dropout(seed, step, part, piece)
        draws.append(torch.rand(7))
    assert torch.equal(draws[0], draws[5])
    assert all(not torch.equal(draws[0], other) for other in draws[1:5])
    same = [tiny_trainer(corpus, tmp_path / str(n), replace(PLAIN, max_steps=2), seed=n // 2) for n in range(4)]
    weights = []
    for trainer in same:
        torch.rand(5)  # what was drawn before has no say
        trainer.run()
        weights.append(weights_of(trainer.model))
    assert unequal(weights[0], weights[1]) == []
    assert unequal(weights[0], weights[2]) != []


# -- validation and the end --------------------------------------------------------------------------------------------


def test_patience(corpus: Corpus, tmp_path: Path) -> None:
    """Scores 1 3 2 3 0.5: after the second, three in a row are no better (equal is not), so the fifth is last."""
    config = replace(CONFIG, validate_every=2, patience=3, checkpoint_every=100, final=("last", "best"))
    trainer = tiny_trainer(corpus, tmp_path, config, validate=scores_in_turn([1.0, 3.0, 2.0, 3.0, 0.5, 0.25, 4.0]))
    summary = trainer.run()
    assert summary == Summary(10, 4, 3.0, {"last": 0.25, "best": 4.0}, "best", True)
    assert trainer.checkpoints.steps() == [10]  # the stop itself is kept
    again = tiny_trainer(corpus, tmp_path, config, validate=scores_in_turn([0.25, 4.0])).run()
    assert again == summary


def test_without_patience_it_goes_to_the_end(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(CONFIG, validate_every=2, max_steps=6, final=("last",), patience=None)
    summary = tiny_trainer(corpus, tmp_path, config, validate=scores_in_turn([3.0, 2.0, 1.0, 1.0])).run()
    assert summary == Summary(6, 2, 3.0, {"last": 1.0}, "last", False)


@pytest.mark.parametrize(
    ("scores", "chosen"), [([5.0, 6.0, 7.0], "average"), ([9.0, 6.0, 7.0], "best"), ([5.0, math.nan, 4.0], "best")]
)
def test_the_best_way_of_finishing_is_kept(corpus: Corpus, tmp_path: Path, scores: list[float], chosen: str) -> None:
    config = replace(CONFIG, max_steps=9, validate_every=4, checkpoint_every=3, keep_checkpoints=2)
    trainer = tiny_trainer(corpus, tmp_path, config, validate=scores_in_turn([2.0, 1.0, 1.5, *scores]))
    summary = trainer.run()
    assert summary.chosen == chosen
    assert list(summary.candidates) == ["best", "last", "average"]
    averages = [weights_in(read_checkpoint(trainer.checkpoints.path(step)), "average") for step in (6, 9)]
    best = read_checkpoint(tmp_path / "checkpoints" / "best")
    assert best["state"]["step"] == 4
    mean = {name: (averages[0][name] + averages[1][name]) / 2 for name in averages[1]}
    expected = {"average": mean, "best": weights_in(best, "weights")}[chosen]
    for name, weight in weights_of(trainer.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-8)
    assert not trainer.model.training
    model_weights = model_directory.read(tmp_path / "model").weights  # what keep_best wrote: the best validation's
    assert unequal(dict(sorted(model_weights.items())), dict(sorted(weights_in(best, "weights").items()))) == []


def test_what_is_validated_is_the_moving_average(corpus: Corpus, tmp_path: Path) -> None:
    seen = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(weights_of(model))
        return {"log_likelihood": float(len(seen))}

    trainer = tiny_trainer(corpus, tmp_path, replace(CONFIG, max_steps=7, final=("last",)), validate=validate)
    trainer.run()
    assert trainer.average is not None
    checkpoint = read_checkpoint(trainer.checkpoints.path(7))
    average, weights = (dict(sorted(weights_in(checkpoint, kind).items())) for kind in ("average", "weights"))
    assert unequal(dict(sorted(seen[0].items())), average) == []
    assert unequal(dict(sorted(seen[0].items())), weights) != []
    assert unequal(dict(sorted(weights_of(trainer.model).items())), average) == []


def test_without_a_best_file_the_last_weights_are_taken(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=7, final=("best",))
    watcher = Noting()
    trainer = tiny_trainer(corpus, tmp_path, config, validate=scores_in_turn([math.nan, 2.0]), watcher=watcher)
    summary = trainer.run()
    assert (summary.candidates, summary.chosen, summary.best_step) == ({"last": 2.0}, "last", 0)
    assert f"best: nothing to read in {tmp_path / 'checkpoints'}; left out" in watcher.lines


def test_an_unknown_metric_is_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        tiny_trainer(corpus, tmp_path, metric="bleu").run()
    known = "validation gives log_likelihood, perplexity, not `bleu`"
    assert str(raised.value) == f"{known}; set validation.metric to one of these"


# -- going on ----------------------------------------------------------------------------------------------------------


def test_a_finished_run_ends_the_same_again(corpus: Corpus, tmp_path: Path) -> None:
    watcher = Noting()
    first = tiny_trainer(corpus, tmp_path)
    summary = first.run()
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    again = tiny_trainer(corpus, tmp_path, watcher=watcher)
    assert again.run() == summary
    assert watcher.begun == [(30, 30)]
    assert watcher.steps == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    assert unequal(weights_of(again.model), weights_of(first.model)) == []


def test_without_a_moving_average(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(CONFIG, ema_decay=None, max_steps=13)
    whole = tiny_trainer(corpus, tmp_path / "whole", config).run()

    def stop(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        if trainer.step == 9:
            raise KeyboardInterrupt
        return tiny_objective(model, batch, dtype)

    trainer = tiny_trainer(corpus, tmp_path / "parts", config, objective=stop)
    with pytest.raises(Interrupted, match=r"stopped at once at step 9; .* go on from .*step-000000008"):
        trainer.run()
    assert tiny_trainer(corpus, tmp_path / "parts", config).run() == whole
    with pytest.raises(TrainingError, match=r"training\.ema_decay was switched on or off since this run began"):
        tiny_trainer(corpus, tmp_path / "parts", replace(config, ema_decay=0.5)).run()


def test_a_run_stays_in_the_precision_that_it_began_in(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `auto`, on a machine that multiplies bfloat16 and then on one that does not."""
    config = replace(CONFIG, precision="auto", max_steps=6, checkpoint_every=3)
    for folder, interrupted in (("whole", False), ("parts", True)):
        monkeypatch.setattr("regard.training.precision._cpu_multiplies_bfloat16", lambda: True)
        trainer = tiny_trainer(corpus, tmp_path / folder, config)
        assert trainer.dtype == torch.bfloat16
        if interrupted:
            trainer.stop.asked = True
            with pytest.raises(Interrupted):
                trainer.run()
            monkeypatch.setattr("regard.training.precision._cpu_multiplies_bfloat16", lambda: False)
            watcher = Noting()
            trainer = tiny_trainer(corpus, tmp_path / folder, config, watcher=watcher)
            assert trainer.dtype == torch.float32
        trainer.run()
        assert trainer.dtype == torch.bfloat16
    assert watcher.lines[0] == "this run began in bfloat16 and stays in it, whatever suits this machine"
    states = [read_checkpoint(tmp_path / name / "checkpoints" / "step-000000006") for name in ("whole", "parts")]
    assert unequal(*states) == []


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert resolved_precision("float32", cpu) == torch.float32
    assert resolved_precision("bfloat16", cpu) == torch.bfloat16
    assert resolved_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    now = numerics(torch.float32, cpu)
    assert changes(now, now) == ""
    assert changes({**now, "threads": "many"}, now) == f"threads many, now {now['threads']}"


def test_another_number_of_threads_is_told(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=4)
    tiny_trainer(corpus, tmp_path, config).run()
    path = tmp_path / "checkpoints" / "step-000000004"
    content = read_checkpoint(path)
    content["state"]["numerics"]["threads"] = "96"
    write_checkpoint(path, content)
    watcher = Noting()
    tiny_trainer(corpus, tmp_path, config, watcher=watcher).run()
    told = f"threads 96, now {torch.get_num_threads()}"
    assert watcher.lines[0] == f"this run began with {told}: it goes on, but not bit for bit as it would have"


def test_checkpoints_of_another_format_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    Checkpoints(folder, 9).save(4, {}, {"version": 99})
    with pytest.raises(TrainingError) as raised:
        tiny_trainer(corpus, tmp_path).run()
    what = f"checkpoints of format 99, this regard goes on from {loop.STATE_VERSION}"
    assert str(raised.value) == f"{folder}: {what}; take the regard that wrote them, or another run"


def test_a_model_with_trained_buffers_is_not_for_this_loop(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_model()
    model.register_buffer("mean", torch.zeros(3))
    with pytest.raises(AssertionError, match="mean"):
        tiny_trainer(corpus, tmp_path, model=model)


def test_outside_the_main_thread_signals_are_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    found: list[Summary] = []
    config = replace(CONFIG, max_steps=4)
    thread = threading.Thread(target=lambda: found.append(tiny_trainer(corpus, tmp_path, config).run()))
    thread.start()
    thread.join(120)
    assert found[0].step == 4


def test_a_run_learns(corpus: Corpus, tmp_path: Path) -> None:
    """The tiny model must fall well below the uniform guess, or all the tests above compare noise with noise."""
    trainer = tiny_trainer(corpus, tmp_path, replace(CONFIG, max_steps=60))
    summary = trainer.run()
    assert isinstance(trainer.model, TinyModel)
    assert summary.best_score > -math.log(260) / 1.7
