"""How much memory work takes at its peak, and how much there is: a process's on the CPU, what torch holds on a GPU."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

KILOBYTE = 1024  # what Linux calls kB
# oneDNN, which convolves on the CPU and multiplies bfloat16 there, keeps a kernel for every shape that it meets, up to
# 1,024. Batches are ever differently shaped: few kernels are met again, and all take memory.
KERNELS_KEPT = 64
KERNEL_SETTINGS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")  # a user's own counts


class Meter(Protocol):
    """held_bytes: what was held when it was made. limit_bytes: what may be held at a peak, all of that included."""

    held_bytes: int
    limit_bytes: int

    def peak(self, work: Callable[[], object]) -> int:
        """Does the work; the most bytes held meanwhile. Raises: what the work raises, lack of memory included."""


def meter(device: torch.device, share: float, processes: int = 1) -> Meter:
    """The meter of a device. share: how much of the memory that is free now may be taken, 0 to 1.

    processes: how many on this machine share the CPU's memory, this one included; a GPU belongs to one alone.
    """
    return CudaMemory(device, share) if device.type == "cuda" else ProcessMemory(share, processes)


class ProcessMemory:
    """Resident memory of this process; what it maps of files counts, as the kernel counts it."""

    def __init__(self, share: float, processes: int = 1) -> None:
        self.held_bytes = resident_bytes()
        self.limit_bytes = self.held_bytes + int(share * available_bytes() / processes)

    def peak(self, work: Callable[[], object]) -> int:
        with suppress(
            OSError
        ):  # where it is not allowed, the peak of all that was before stands: too careful, not less
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        work()
        return peak_resident_bytes()


class CudaMemory:
    """What torch holds on one GPU."""

    def __init__(self, device: torch.device, share: float) -> None:
        self.device = device
        free, _ = torch.cuda.mem_get_info(device)
        self.held_bytes = torch.cuda.memory_allocated(device)
        unused = torch.cuda.memory_reserved(device) - self.held_bytes
        self.limit_bytes = self.held_bytes + int(share * (free + unused))

    def peak(self, work: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


def keep_few_kernels() -> None:
    """Has oneDNN keep `KERNELS_KEPT` kernels in this process; without effect once it has begun to compute."""
    if not any(name in os.environ for name in KERNEL_SETTINGS):
        os.environ[KERNEL_SETTINGS[0]] = str(KERNELS_KEPT)


def resident_bytes() -> int:
    """What this process holds in memory now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_resident_bytes()  # no Linux: the nearest there is


def peak_resident_bytes() -> int:
    """The most this process has held since it began, or since its peak was made to begin anew."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KILOBYTE
    unit = 1 if sys.platform == "darwin" else KILOBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or on the CPU."""
    words = (
        *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc"),
        *("could not create a memory", "alloc_failed"),  # oneDNN's, cuBLAS's
    )
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that new allocations can have without swapping, within every control group that this process is in.

    root: where `proc` and `sys` are mounted. Where the system tells nothing of it: half of all memory.
    """
    free = None
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * KILOBYTE
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(min([free, *_left_in_groups(root)]), 0)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group with a limit has left; cached files, which the kernel drops first, count as left."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:  # number:controllers:path; version 2 has number 0 and no controllers
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounted, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounted = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = Path(path.lstrip("/"))
        for place in (group, *group.parents):  # a limit of any group above holds, too
            left = _left_in_group(mounted / place, *names)
            if left is not None:
                yield left


def _left_in_group(folder: Path, limit: str, used: str, cached: str) -> int | None:
    """None where the group has no limit, or is not shown here."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        left = int(most) - int((folder / used).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == cached:
                left += int(value)
    except (OSError, ValueError):
        return None
    return left
