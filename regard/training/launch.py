"""What torchrun tells a process that it starts: which one it is, of how many. Needs no torch.

Whoever starts processes otherwise (srun, mpirun) sets the same variables: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from regard.errors import ConfigError, OfOneProcess

MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")


class Launch(NamedTuple):
    """rank: 0 to size - 1, of this process among all. local_rank: among those of this machine, 0 for the first."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """This process among its like; a process that nobody gave a place is alone.

    Raises: ConfigError when the variables contradict each other.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    told = ", ".join(f"{name}={environment.get(name, '')}" for name in names)
    try:
        launch = Launch(*(int(environment.get(name, "0")) for name in names))
    except ValueError:
        raise ConfigError(f"the environment says {told}, expected numbers; start processes with torchrun") from None
    if not (0 <= launch.rank < launch.size and launch.local_rank >= 0):
        raise ConfigError(f"the environment says {told}, expected a rank below the size; start processes with torchrun")
    missing = [name for name in MEETING_PLACE if name not in environment]
    if launch.size > 1 and missing:
        raise ConfigError(f"the environment says {told}, but not {missing[0]}; start processes with torchrun")
    port = environment.get("MASTER_PORT", "")
    if launch.size > 1 and not (port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(
            f"the environment says MASTER_PORT={port}, expected 0 to 65535; start processes with torchrun"
        )
    return launch


def num_on_this_machine(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes of the run share this machine's memory; all of them, where nobody says."""
    told = environment.get("LOCAL_WORLD_SIZE", "")
    return int(told) if told.isdecimal() and int(told) else launched(environment).size


def is_first() -> bool:
    """Whether this process is the one that speaks; the only one is."""
    try:
        return launched().rank == 0
    except ConfigError:
        return True


def of_this_machine(error: ConfigError) -> ConfigError | OfOneProcess:
    """A mistake that may be this machine's alone, as it is to be raised: one process of each machine tells it."""
    try:
        launch = launched()
    except ConfigError:
        return error
    if launch.rank == 0 or launch.local_rank > 0:
        return error
    return OfOneProcess(f"process {launch.rank + 1} of {launch.size}: {error}")
