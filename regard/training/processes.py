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
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from regard.errors import ConfigError, Interrupted, OfOneProcess, RegardError, ToldByFirst, TrainingError
from regard.training.launch import MEETING_PLACE, launched

# How long a process waits for another one that it has met: more than any validation takes. One that is gone is noticed
# at once where its machine says so; where a machine falls silent, torchrun's agents notice after some seconds.
PATIENCE = timedelta(hours=1)
# Of one that is gone before they have met nobody says anything. All begin together, so that they meet within the time
# in which they import; and those that have met connect at once.
MEETING_PATIENCE = timedelta(minutes=8)
CONNECTING_PATIENCE = timedelta(minutes=2)
ATTEMPT = timedelta(seconds=10)  # to reach the place where they meet; a signal is heard between two attempts
LOOK_SECONDS = 0.05  # how often a process looks whether the others are there

# What torch's exchanges say when nobody answers; they raise plain RuntimeErrors, too.
SILENCE = re.compile(
    r"connection (closed|reset|refused)|connectFullMesh|socket|timed out|\btimeout\b|gloo|nccl|TCPStore|broken pipe"
    r"|Rank \d+ successfully reached monitoredBarrier",
    re.IGNORECASE,
)
SOURCE = re.compile(r"\[[^][]*\.cc:\d+\]")  # where in its own code, at the head of its words
SHOWN_CHARACTERS = 120  # of torch's own words
SHOWN_PROCESSES = 5  # that did not come

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
    """Waits until every process of the run is there. Raises: ConfigError, TrainingError when one does not come."""
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if world.local_rank >= gpus:
            raise ConfigError(
                f"this machine has {gpus} GPUs, and this is process {world.local_rank + 1} on it; start {gpus} with"
                " --nproc-per-node, or compute on processors with CUDA_VISIBLE_DEVICES="
            )
        torch.cuda.set_device(world.local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    deadline = time.monotonic() + MEETING_PATIENCE.total_seconds()
    store = _reached(world, deadline)
    store = dist.PrefixStore(f"regard/{_meeting(store, world, deadline)}", store)
    store.set_timeout(CONNECTING_PATIENCE)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=CONNECTING_PATIENCE)
    dist.distributed_c10d._set_pg_timeout(PATIENCE)


def _reached(world: World, deadline: float) -> dist.Store:
    """The store that all processes of the run see, of torchrun's first agent or else of the first process.

    Raises: torch's error when it cannot be reached before `deadline` (time.monotonic).
    """
    host, port = (os.environ[name] for name in MEETING_PLACE)
    is_server = world.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while True:
        left = timedelta(seconds=max(deadline - time.monotonic(), 1.0))
        try:
            return dist.TCPStore(
                host, int(port), None, is_server, min(left, ATTEMPT), wait_for_workers=False, multi_tenant=True
            )
        except dist.DistNetworkError:
            if is_server or time.monotonic() > deadline:
                raise


def _meeting(store: dist.Store, world: World, deadline: float) -> str:
    """A name that the processes that are alive now have in common, and none of their predecessors had.

    When torchrun starts processes again they find its store as their predecessors have left it, with entries of dead
    ones, and its agents do not count restarts alike. So each process asks under a new name of its own; the first one
    answers whoever asks, dead or alive, with the meeting's name; and when every place has read it, all go on.

    Raises: TrainingError when one does not come before `deadline` (time.monotonic).
    """
    mine, among = secrets.token_hex(8), f"meeting of {world.size}"
    if not world.is_first:
        store.set(f"{among}/asks/{world.rank}", mine)
        _await(store, f"{among}/answers/{mine}", deadline, world)
        name = store.get(f"{among}/answers/{mine}").decode()
        store.set(f"{among}/{name}/{world.rank}", "here")
        _await(store, f"{among}/{name}/all", deadline, world)
        return name
    missing = set(range(1, world.size))
    while missing:
        asking = [rank for rank in missing if store.check([f"{among}/asks/{rank}"])]
        for rank in asking:
            store.set(f"{among}/answers/{store.get(f'{among}/asks/{rank}').decode()}", mine)
        missing -= {rank for rank in asking if store.check([f"{among}/{mine}/{rank}"])}
        if missing:
            _wait_a_little(deadline, missing, world)
    store.set(f"{among}/{mine}/all", "here")
    return mine


def _await(store: dist.Store, key: str, deadline: float, world: World) -> None:
    """Returns when `key` is in the store. Raises: TrainingError when it is not before `deadline`."""
    while not store.check([key]):
        _wait_a_little(deadline, set(), world)


def _wait_a_little(deadline: float, missing: Collection[int], world: World) -> None:
    """Raises: TrainingError after `deadline`. missing: who is known not to have come."""
    time.sleep(LOOK_SECONDS)
    if time.monotonic() <= deadline:
        return
    who = ", ".join(f"{rank + 1}" for rank in sorted(missing)[:SHOWN_PROCESSES])
    more = f" and {len(missing) - SHOWN_PROCESSES} more" if len(missing) > SHOWN_PROCESSES else ""
    told = f"process{'es' if len(missing) > 1 else ''} {who}{more} of {world.size} did not come"
    told = told if missing else "the other processes did not all come"
    minutes = MEETING_PATIENCE.total_seconds() / 60
    raise TrainingError(
        f"{told} within {minutes:.3g} minutes; its own message, if any, says why; run the same command to go on from"
        " the last checkpoint"
    )


def _located(error: RegardError, world: World) -> RegardError:
    """The error with the process that it is of; the first one's needs no place."""
    if world.is_first:
        return error
    return OfOneProcess(f"process {world.rank + 1} of {world.size}: {error}")


def check_parts(accumulate: int, world: World) -> None:
    """Raises: ConfigError unless the batches of an update can be shared out evenly."""
    if accumulate % world.size and world.size % accumulate:
        most = -(-accumulate // world.size) * world.size
        what = (
            f"training.accumulate is {accumulate}, but {world.size} processes share the batches of an update; expected"
            f" a multiple of {world.size} or a divisor of it, e.g. training.accumulate={most} with"
            f" data.batch.batch_tokens made {most / accumulate:.3g} times smaller, which leaves an update as large as"
            " it is"
        )
        raise world.told_once(ConfigError(what))
