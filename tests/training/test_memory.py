"""Peaks are those of the work alone, and what is free is what every control group leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regard.training.memory import (
    KERNEL_SETTINGS,
    ProcessMemory,
    available_bytes,
    lacks_memory,
    peak_resident_bytes,
    resident_bytes,
)

MEGABYTE = 1 << 20


def touched(megabytes: int) -> torch.Tensor:
    return torch.ones(megabytes * MEGABYTE // 8, dtype=torch.float64)


def test_a_peak_is_what_was_held_during_the_work() -> None:
    memory = ProcessMemory(0.5)
    touched(251)  # over before the work begins
    held = resident_bytes()
    assert memory.peak(lambda: None) - held < 60 * MEGABYTE
    peak = memory.peak(lambda: touched(199))
    assert 190 * MEGABYTE < peak - held < 280 * MEGABYTE
    assert peak_resident_bytes() >= peak
    assert resident_bytes() - held < 60 * MEGABYTE


def test_the_limit_is_a_share_of_what_is_free() -> None:
    whole, tenth, third = ProcessMemory(1.0), ProcessMemory(0.1), ProcessMemory(1.0, processes=3)
    free = whole.limit_bytes - whole.held_bytes
    assert free == pytest.approx(available_bytes(), rel=0.3)  # others take and give meanwhile
    assert tenth.limit_bytes - tenth.held_bytes == pytest.approx(free / 10, rel=0.3)
    assert third.limit_bytes - third.held_bytes == pytest.approx(free / 3, rel=0.3)


def system(root: Path, groups: str = "", **files: str) -> Path:
    """A made `proc` and `sys`; files: content by path, "__" for "/"."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemFree:  1000 kB\nMemAvailable:  7000 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_free_memory_without_groups(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path)) == 7000 * 1024


def test_free_memory_in_a_group_counts_cached_files_as_free(tmp_path: Path) -> None:
    files = {"a__memory_max": "5000000\n", "a__memory_current": "3000000\n"}
    stat = {"a__memory_stat": "anon 1\ninactive_file 700001\nactive_file 9\n"}
    assert available_bytes(system(tmp_path, "0::/a\n", **files, **stat)) == 2_700_001


def test_a_group_above_may_be_the_tighter_one(tmp_path: Path) -> None:
    stat = "inactive_file 0\n"
    files = {"a__b__memory_max": "5000000", "a__b__memory_current": "0", "a__b__memory_stat": stat}
    files |= {"a__memory_max": "4000000", "a__memory_current": "1000000", "a__memory_stat": stat}
    files |= {"memory_max": "max", "memory_current": "9", "memory_stat": stat}
    assert available_bytes(system(tmp_path, "0::/a/b\n", **files)) == 3_000_000


def test_groups_of_version_1(tmp_path: Path) -> None:
    files = {"memory__a__memory_limit_in_bytes": "6000000", "memory__a__memory_usage_in_bytes": "1000000"}
    files |= {"memory__a__memory_stat": "total_inactive_file 11\n"}
    groups = "5:cpu,cpuacct:/z\n4:memory:/a\n0::/\n"
    assert available_bytes(system(tmp_path, groups, **files)) == 5_000_011


@pytest.mark.parametrize("most", ["max", "9223372036854771712", "nonsense"])
def test_a_group_without_a_limit_takes_nothing(tmp_path: Path, most: str) -> None:
    files = {"a__memory_max": most, "a__memory_current": "1", "a__memory_stat": ""}
    assert available_bytes(system(tmp_path, "0::/a\n", **files)) == 7000 * 1024


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"a__memory_max": "1000", "a__memory_current": "2000", "a__memory_stat": ""}
    assert available_bytes(system(tmp_path, "0::/a\n", **files)) == 0


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) > 0


def test_what_lack_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert lacks_memory(found.value)
    assert lacks_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert lacks_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert lacks_memory(MemoryError())
    assert not lacks_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lacks_memory(ValueError("out of memory"))


PROGRAM = """
import os
import torch
from regard.training.memory import keep_few_kernels

keep_few_kernels()
layer = torch.nn.Conv1d(8, 8, 3)
for length in [*range(64, 64 + 80), 64]:
    layer(torch.ones(4, 8, length))
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(("own", "forgotten"), [({}, True), ({"DNNL_PRIMITIVE_CACHE_CAPACITY": "1024"}, False)])
def test_few_kernels_are_kept_unless_somebody_has_said_how_many(own: dict[str, str], forgotten: bool) -> None:
    """After 80 lengths the kernel of the first one is made anew."""
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_SETTINGS}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env={**environment, "ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1", **own},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    made = [line for line in done.stdout.splitlines() if ",create:cache_" in line and ",convolution," in line]
    assert len(made) == 81, done.stdout
    assert ["cache_miss" in line for line in made] == [True] * 80 + [forgotten]
