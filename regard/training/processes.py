"""The processes of one run and what they tell each other beside gradients: a few numbers a step, results, mistakes.

torchrun starts the processes (`launch`); `opened` brings them together. A process alone has no group and pays nothing.
Numbers and results travel over gloo, gradients on GPUs over NCCL. The first process is the one that writes and speaks.

    with opened() as world:
        scores = world.first(validate)      # the others wait for what it finds

A process that ends takes the run with it: the others notice at their next exchange and end with a TrainingError, and
the same command, or torchrun's `--max-restarts`, goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from regard.errors import ConfigError, Interrupted, OfOneProcess, RegardError, ToldByFirst, TrainingError
from regard.training.launch import launched

# How long a process waits for another one: more than any validation takes. One that is gone is noticed at once where
# its machine says so; where a machine falls silent, torchrun's agents notice after some seconds.
PATIENCE = timedelta(hours=1)

# What torch's exchanges say when nobody answers; they raise plain RuntimeErrors, too.
SILENCE = re.compile(
    r"connection (closed|reset|refused)|connectFullMesh|socket|timed out|\btimeout\b|gloo|nccl|TCPStore|broken pipe"
    r"|Rank \d+ successfully reached monitoredBarrier",
    re.IGNORECASE,
)
SOURCE = re.compile(r"\[[^][]*\.cc:\d+\]")  # where in its own code, at the head of its words
SHOWN_CHARACTERS = 120  # of torch's own words

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them.

    rank: 0 to size - 1, of this one. local_rank: its place on its machine. Every method but `device` is called by all
    processes at the same point, and is a plain call where there is but one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self) -> torch.device:
        """Where this process computes: the GPU of its place on the machine, if there is one."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def exchanged(self, *numbers: float) -> Tensor:
        """Everybody's numbers, float64 [size, len(numbers)], the same on all processes to the last bit."""
        if self.size == 1:
            return torch.tensor([numbers], dtype=torch.float64)
        table = torch.zeros(self.size, len(numbers), dtype=torch.float64)
        table[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(table)
        return table

    def first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in the first process; the others wait for it. It must be made of plain values.

        Raises: in the first process what `work` raises; in the others ToldByFirst.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None]
        if self.is_first:
            try:
                outcome = [(True, work())]
            except Exception as error:
                dist.broadcast_object_list([(False, str(error))])
                raise
        dist.broadcast_object_list(outcome)
        worked, result = outcome[0]
        if not worked:
            raise ToldByFirst(result)
        return result  # type: ignore[no-any-return]  # what came over the wire is what was sent

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in each process; the first does it before the others, who find on the disk what it left.

        Raises: what `work` raises; ToldByFirst in the others when it failed in the first.
        """
        done: list[Result] = []
        self.first(lambda: done.append(work()))
        return done[0] if done else work()

    def gathered(self, value: Result) -> list[Result]:
        """Everybody's value, by rank; plain values."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def all_agree(self, fine: bool) -> bool:
        """Whether it is fine in every process."""
        return bool(self.exchanged(float(fine)).all())

    def told_once(self, error: RegardError) -> RegardError:
        """What each process is to raise for an error that all of them have found: only the first one's is shown."""
        return error if self.is_first else ToldByFirst(str(error))


@contextmanager
def opened() -> Iterator[World]:
    """Within the context the processes that were started together know each other.

    A group that is there already is used and left as it is. Raises: ConfigError when there are more processes than GPUs
    on this machine; TrainingError when another process ends before its time, OfOneProcess for what only this one knows.
    """
    if dist.is_initialized():
        launch = launched()
        yield World(dist.get_rank(), dist.get_world_size(), launch.local_rank)
        return
    launch = launched()
    if launch.size == 1:
        yield World()
        return
    world = World(*launch)
    try:
        _join(world)
        yield world
    except (Interrupted, ToldByFirst):
        raise
    except RegardError as error:
        raise _located(error, world) from None
    except RuntimeError as error:
        if not is_silence(error):
            raise
        raise _located(lost(error), world) from None
    dist.destroy_process_group()


def lost(error: BaseException) -> TrainingError:
    """What the user is told of a failed exchange."""
    reason = " ".join(SOURCE.sub("", str(error)).split())
    reason = reason if len(reason) <= SHOWN_CHARACTERS else reason[: SHOWN_CHARACTERS - 3] + "..."
    return TrainingError(
        f"another process of this run has ended or cannot be reached ({reason}); its own message, if any, says why; run"
        " the same command to go on from the last checkpoint"
    )


def is_silence(error: BaseException) -> bool:
    """Whether an exchange failed because another process did not take part."""
    told = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(SILENCE.search(told)))


def _join(world: World) -> None:
    """Waits until every process of the run is there."""
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if world.local_rank >= gpus:
            raise ConfigError(
                f"this machine has {gpus} GPUs, and this is process {world.local_rank + 1} on it; start {gpus} with"
                " --nproc-per-node, or compute on processors with CUDA_VISIBLE_DEVICES="
            )
        torch.cuda.set_device(world.local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, _, _ = next(iter(dist.rendezvous("env://", world.rank, world.size, timeout=PATIENCE)))
    # Started again by torchrun, processes may find in its store where their dead predecessors were to be reached.
    store = dist.PrefixStore(f"regard-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=PATIENCE)


def _located(error: RegardError, world: World) -> RegardError:
    """The error with the process that it is of; the first one's needs no place."""
    if world.is_first:
        return error
    return OfOneProcess(f"process {world.rank + 1} of {world.size}: {error}")


def check_parts(accumulate: int, world: World) -> None:
    """Raises: ConfigError unless the batches of an update can be shared out evenly."""
    if accumulate % world.size:
        most = -(-accumulate // world.size) * world.size
        what = (
            f"training.accumulate is {accumulate}, but {world.size} processes share the batches of an update; expected"
            f" a multiple of {world.size}, e.g. training.accumulate={most} with data.batch.batch_tokens made"
            f" {most / accumulate:.3g} times smaller, which leaves an update as large as it is"
        )
        raise world.told_once(ConfigError(what))
