"""What the environment says of the processes of a run, and how they find each other."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from regard.errors import ConfigError, OfOneProcess, TrainingError
from regard.training.launch import Launch, is_first, launched, num_on_this_machine, of_this_machine
from regard.training.processes import World, _meeting, check_parts, is_silence, lost, opened

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29"}


def test_the_environment_says_which_process_it_is() -> None:
    assert launched({}) == Launch(0, 1, 0)
    assert launched({"RANK": "3"}) == Launch(0, 1, 0), "a variable alone may be anybody's"
    assert launched(TORCHRUN) == Launch(3, 5, 1)
    assert launched({"RANK": "0", "WORLD_SIZE": "1"}) == Launch(0, 1, 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"RANK": "5"}, "RANK=5, WORLD_SIZE=5, LOCAL_RANK=1, expected a rank below the size"),
        ({"RANK": "two"}, "RANK=two, WORLD_SIZE=5, LOCAL_RANK=1, expected numbers"),
        ({"MASTER_PORT": None}, "RANK=3, WORLD_SIZE=5, LOCAL_RANK=1, but not MASTER_PORT"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000, expected 0 to 65535"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT=-1, expected 0 to 65535"),
    ],
)
def test_an_environment_that_makes_no_sense(change: dict[str, str | None], expected: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(ConfigError) as raised:
        launched(environment)
    assert str(raised.value) == f"the environment says {expected}; start processes with torchrun"


def test_the_first_one_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_first()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert not is_first()
    monkeypatch.setenv("RANK", "0")
    assert is_first()
    monkeypatch.setenv("RANK", "none")
    assert is_first(), "somebody must tell the mistake"


def test_a_mistake_of_one_machine_is_told_by_one_of_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConfigError("r.yaml: no such recipe")
    assert of_this_machine(error) is error
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert of_this_machine(error) is error, "the second one of its machine"
    monkeypatch.setenv("LOCAL_RANK", "0")
    told = of_this_machine(error)
    assert isinstance(told, OfOneProcess) and str(told) == "process 4 of 5: r.yaml: no such recipe"
    monkeypatch.setenv("RANK", "0")
    assert of_this_machine(error) is error, "it speaks anyway"
    monkeypatch.setenv("RANK", "many")
    assert of_this_machine(error) is error


def test_who_speaks_is_known_without_torch() -> None:
    program = "import sys, regard.training.launch; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, timeout=120
    )
    assert done.stdout == "False\n"


def test_a_process_alone_pays_nothing() -> None:
    with opened() as world:
        assert world == World()
        assert world.exchanged(1.5, True).tolist() == [[1.5, 1.0]]
        assert (world.first(lambda: 2), world.in_turn(lambda: 3), world.gathered(4)) == (2, 3, [4])
        assert world.all_agree(True) and not world.all_agree(False)
        error = TrainingError("x")
        assert world.told_once(error) is error
        assert not dist.is_initialized()
    with pytest.raises(ZeroDivisionError), opened() as world:
        world.first(lambda: 1 // 0)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OfOneProcess) as raised, opened():
        pass
    assert str(raised.value) == (
        "process 4 of 5: this machine has 1 GPUs, and this is process 2 on it; start 1 with --nproc-per-node, or"
        " compute on processors with CUDA_VISIBLE_DEVICES="
    )
    assert World(3, 5, 1).device() == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("accumulate", "size", "example"),
    [(2, 3, "accumulate=3 with data.batch.batch_tokens made 1.5 times"), (6, 4, "=8 ")],
)
def test_parts_must_be_shared_out_evenly(accumulate: int, size: int, example: str) -> None:
    check_parts(size * accumulate, World(0, size))
    check_parts(1, World(0, size))
    with pytest.raises(ConfigError) as raised:
        check_parts(accumulate, World(0, size))
    assert f"training.accumulate is {accumulate}, but {size} processes share" in str(raised.value)
    assert example in str(raised.value)


def test_what_torch_says_when_nobody_answers() -> None:
    told = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:30"
    assert is_silence(RuntimeError(told))
    assert is_silence(dist.DistBackendError("NCCL communicator was aborted on rank 1"))
    assert not is_silence(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_silence(ValueError(told))
    assert str(lost(RuntimeError(told))).startswith(
        "another process of this run has ended or cannot be reached (Connection closed by peer [127.0.0.1]:30); its own"
    )
    assert "\n" not in str(lost(RuntimeError("a\nb" * 99)))
    assert len(str(lost(RuntimeError("a\nb" * 99)))) < 400


def test_how_many_share_this_machine() -> None:
    assert num_on_this_machine({}) == 1
    assert num_on_this_machine({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}) == 2
    assert num_on_this_machine(TORCHRUN) == 5, "all of them, where nobody says"
    assert num_on_this_machine({**TORCHRUN, "LOCAL_WORLD_SIZE": "many"}) == 5


# -- how they meet -----------------------------------------------------------------------------------------------------


def meet(store: dist.Store, ranks: Sequence[int], size: int, seconds: float = 60.0) -> dict[int, str]:
    """What each of the processes, here threads, finds as their meeting's name, or the error that it meets."""
    found: dict[int, str] = {}

    def work(rank: int) -> None:
        try:
            found[rank] = _meeting(store, World(rank, size), time.monotonic() + seconds)
        except TrainingError as error:
            found[rank] = f"error: {error}"

    threads = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * seconds)
    return found


def test_they_agree_on_a_name_that_nobody_had_before() -> None:
    store, names = dist.HashStore(), []
    for size in (3, 3, 2, 3):  # each time among what the former ones have left
        found = meet(store, range(size), size)
        assert len(found) == size
        [name] = set(found.values())
        names.append(name)
    assert len(set(names)) == 4
    assert not any(name.startswith("error") for name in names)


def test_what_the_dead_have_left_misleads_nobody() -> None:
    """The first one is killed while it waits, then the others; each time the rest would have met the dead."""
    store = dist.HashStore()
    for ranks in ((0, 2), (1, 2), (0, 1), (1,), (0,)):
        assert all(told.startswith("error") for told in meet(store, ranks, 3, seconds=0.3).values())
    [name] = set(meet(store, range(3), 3).values())
    assert not name.startswith("error")


def test_one_that_comes_late_is_waited_for() -> None:
    store = dist.HashStore()
    late: dict[int, str] = {}
    timer = threading.Timer(0.5, lambda: late.update(meet(store, [1], 3)))
    timer.start()
    found = meet(store, [0, 2], 3)
    timer.join(60)
    assert found[0] == found[2] == late[1]


def test_who_does_not_come_is_named() -> None:
    found = meet(dist.HashStore(), [0, 2], 4, seconds=0.3)
    rest = "within 8 minutes; its own message, if any, says why; run the same command to go on from the last checkpoint"
    assert found[0] == f"error: processes 2, 4 of 4 did not come {rest}"
    assert found[2] == f"error: the other processes did not all come {rest}"
    found = meet(dist.HashStore(), [0], 9, seconds=0.3)
    assert "processes 2, 3, 4, 5, 6 and 3 more of 9 did not come" in found[0]
