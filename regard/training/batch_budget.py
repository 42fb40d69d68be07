"""How many tokens a batch should have on this machine: as many as make training faster and fit into its memory.

The search trains for real, forward and backward, on the batches of an epoch that take most, at budgets that double. It
leaves model, gradients and random state as they were, and a run keeps what was found, so that it resumes with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from regard.data.batches import Batch, BatchStream, Position
from regard.errors import ConfigError, TrainingError
from regard.training.disk import write_atomically
from regard.training.memory import Meter, keep_few_kernels, lacks_memory, meter
from regard.training.objective import Loss

LARGEST = 65_536  # tokens; past it no device gains, and every update comes to cost too much
FEWEST_BATCHES = 50  # an epoch must have left, lest a small corpus become a handful of updates
GAIN = 1.05  # a doubling that makes training less than this much faster is no gain
PATIENCE = 2  # doublings that together bring no gain end the search: one may be an accident of a busy machine
SHARE = 0.8  # of the free memory; the rest is for other epochs' batches, fragments and what starts later
# A batch is timed so many times, and more until so many seconds are over; the fastest counts, as what others on the
# machine do only slows it down.
REPEATS, SECONDS = 3, 1.0
# Weights' worth of memory that the search does not see: the optimiser's two moments and a moving average.
LATER_COPIES = 3

Objective = Callable[[nn.Module, Batch, torch.dtype], Loss]


@dataclass(frozen=True)
class Trial:
    """What batches of so many tokens took: the most bytes held, and real target tokens trained on a second."""

    batch_tokens: int
    peak_bytes: int
    tokens_per_second: float


@dataclass(frozen=True)
class Found:
    """batch_tokens: the budget. why: why no larger one, in words. trials: all that was tried, smallest first."""

    batch_tokens: int
    why: str
    trials: tuple[Trial, ...]


class DoesNotFitError(Exception):
    """A batch was too large for the memory."""


def kept_batch_tokens(path: Path, find: Callable[[], Found], said: Callable[[str], None] = lambda message: None) -> int:
    """The budget of the run whose `path` it is: what stands there, or what `find` finds, which is written there.

    Raises: TrainingError when the file is damaged: another budget would be another run.
    """
    if path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["batch_tokens"]
        except (OSError, ValueError, KeyError, TypeError):
            kept = None
        if isinstance(kept, int) and kept > 0:
            return kept
        raise TrainingError(f"{path}: damaged, expected the batch_tokens that this run began with; give another --run")
    found = find()
    text = json.dumps(asdict(found), indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    said(f"batch_tokens: {found.batch_tokens:,} found by trying; {found.why}")
    return found.batch_tokens


def find_batch_tokens(
    model: nn.Module,
    stream_of: Callable[[int], BatchStream],
    objective: Objective,
    *,
    smallest: int,
    dtype: torch.dtype,
    device: torch.device,
    processes: int = 1,
) -> Found:
    """The budget for `model`, which is moved to `device`.

    stream_of: the stream of batches under a budget. smallest: tokens that every record fits into; the first budget
    tried is the next power of two. dtype: of the large products. processes: how many on this machine train alike, each
    with its part of the CPU's memory.
    Raises: ConfigError when not even the smallest fits.
    """
    keep_few_kernels()
    model.to(device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    memory = meter(device, SHARE, processes)

    def attempt(batch_tokens: int) -> Trial | None:
        stream = stream_of(batch_tokens)
        if batch_tokens > first_budget(smallest) and stream.num_batches(0) < FEWEST_BATCHES:
            return None
        batches = [stream.at(position).to(device) for position in worst(stream)]
        with undisturbed(model):
            return _trial(batch_tokens, model, batches, objective, dtype, memory)

    with undisturbed(model):
        limit_bytes = memory.limit_bytes - LATER_COPIES * weights
        return search(attempt, smallest=smallest, held_bytes=memory.held_bytes, limit_bytes=limit_bytes)


def search(
    attempt: Callable[[int], Trial | None], *, smallest: int, held_bytes: int, limit_bytes: int, largest: int = LARGEST
) -> Found:
    """Doubles the budget as long as it pays; the smallest budget is taken that is within `GAIN` of the fastest.

    attempt: tries a budget; None: an epoch would have too few batches. It raises DoesNotFitError for lack of memory.
    held_bytes: what was held before the first trial.
    The search ends where the next trial would, growing as the last one did, hold more than `limit_bytes`, after
    `PATIENCE` doublings that together bring no gain, where there are too few batches, or at `largest`.
    Raises: ConfigError when not even the smallest fits.
    """
    trials: list[Trial] = []
    batch_tokens = first_budget(smallest)
    idle, speed_to_beat = 0, 0.0  # doublings since the last gain, and the speed that was gained then
    while True:
        try:
            trial = attempt(batch_tokens)
        except DoesNotFitError:
            if not trials:
                raise ConfigError(
                    f"data.batch.batch_tokens is auto, but not even a batch of {batch_tokens:,} tokens fits into"
                    " memory; lower data.max_tokens, or make the model smaller"
                ) from None
            why = f"{batch_tokens:,} do not fit into memory"
            break
        if trial is None:
            why = f"{batch_tokens:,} would leave fewer than {FEWEST_BATCHES} batches an epoch"
            break
        idle += 1
        if trial.tokens_per_second >= GAIN * speed_to_beat:
            idle, speed_to_beat = 0, trial.tokens_per_second
        trials.append(trial)
        following = 2 * batch_tokens
        if trial.peak_bytes > limit_bytes or _foreseen(trials, held_bytes) > limit_bytes:
            why = f"{following:,} would hold more than {limit_bytes / 1e9:.1f} GB"
            break
        if idle >= PATIENCE:
            why = f"larger ones are less than {GAIN - 1:.0%} faster"
            break
        if following > largest:
            why = f"{largest:,} is the most that is tried"
            break
        batch_tokens = following
    fitting = [trial for trial in trials if trial.peak_bytes <= limit_bytes] or trials[:1]
    fastest = max(trial.tokens_per_second for trial in fitting)
    chosen = next(trial for trial in fitting if GAIN * trial.tokens_per_second > fastest)
    if chosen is not fitting[-1]:
        why = f"larger ones are less than {GAIN - 1:.0%} faster"
    return Found(chosen.batch_tokens, f"{why}; {chosen.tokens_per_second:,.0f} target tokens/s", tuple(trials))


def first_budget(smallest: int) -> int:
    """The power of two that holds so many tokens; it is tried however few batches it leaves."""
    return 1 << max(smallest - 1, 0).bit_length()


def worst(stream: BatchStream, epoch: int = 0) -> list[Position]:
    """Where in `epoch` the batches lie that take most: most ids, longest sentence, most sentences."""
    lengths = [stream.corpus.lengths(role) for role in stream.roles]
    shapes = [
        (len(batch), *(int(of_role[batch].max(initial=0)) for of_role in lengths)) for batch in stream.batches(epoch)
    ]
    rows = np.array([shape[0] for shape in shapes])
    longest = np.array([max(shape[1:]) for shape in shapes])
    ids = np.array([shape[0] * sum(shape[1:]) for shape in shapes])
    return [Position(epoch, index) for index in sorted({int(values.argmax()) for values in (ids, longest, rows)})]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within the context the model trains as it likes; then gradients, modes and random states are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter, _ in gradients if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            for parameter, _ in gradients:
                parameter.grad = None
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training


def _trial(
    batch_tokens: int,
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    dtype: torch.dtype,
    memory: Meter,
) -> Trial:
    """Trains on each batch, first for its memory, then for its time. Raises: DoesNotFitError."""
    peak, num_tokens, seconds = 0, 0, 0.0

    def train(batch: Batch) -> None:
        model.zero_grad(set_to_none=False)  # gradients are there, as while a step accumulates
        (objective(model, batch, dtype).objective / batch.num_target_tokens).backward()

    def timed(batch: Batch) -> float:
        began = time.perf_counter()
        train(batch)
        if batch.target.values.is_cuda:
            torch.cuda.synchronize(batch.target.values.device)
        return time.perf_counter() - began

    def fastest(batch: Batch) -> float:
        times: list[float] = []
        while len(times) < REPEATS or sum(times) < SECONDS:
            times.append(timed(batch))
        return min(times)

    model.train()
    try:
        for batch in batches:
            peak = max(peak, memory.peak(lambda batch=batch: train(batch)))  # type: ignore[misc]
            num_tokens += batch.num_target_tokens
            seconds += fastest(batch)
    except Exception as error:
        if lacks_memory(error):
            raise DoesNotFitError from None
        raise
    return Trial(batch_tokens, peak, num_tokens / seconds)


def _foreseen(trials: list[Trial], held_bytes: int) -> int:
    """What a batch of twice the last budget would hold: a batch's share doubles, all else stays.

    After a single trial nobody knows the batch's share, and all that it took is taken for it.
    """
    last = trials[-1].peak_bytes
    return 2 * last - held_bytes if len(trials) == 1 else last + 2 * (last - trials[-2].peak_bytes)
