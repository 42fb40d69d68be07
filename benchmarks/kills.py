"""Kills a training run at random instants, a hundred times, and compares what comes of it with a run left in peace.

    .venv/bin/python benchmarks/kills.py --kills 100 --out benchmarks/results/kills.md

The run is `python -m regard train` on Multi30k's first sentences (or the demo's phrases, where they are not at hand),
with data workers, accumulation, a moving average, averaged checkpoints, a cosine schedule, early stopping, looks at
attention. SIGKILL comes at an instant drawn uniformly from the time that the run still needs, then the same command
runs again at once, and again, until it ends. Compared is every byte that is a function of the recipe: all tensors and
values of all checkpoints, `metrics.jsonl`, the prepared data, `model/`, scores, TensorBoard's numbers. It ends with
status 1 where anything differs, and begins by flipping single bits to see that it would notice.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from kill_probe.sitecustomize import PLACES
from run_contents import content, differences, flipped_bits_noticed

from regard.tasks.translate.demo_corpus import make_corpus

REPOSITORY = Path(__file__).resolve().parents[1]
PROBE = Path(__file__).resolve().parent / "kill_probe"  # notes where a process is
PAIRS = {"train": 1000, "val": 40, "test_2016_flickr": 20}  # the first so many of each part
MOST_STARTS = 200  # of one run; more would mean that it gets nowhere
TELLING_STEPS = 5  # updates from which on a start that is killed tells how fast this machine is just now
# A run's first start is killed at an instant uniform over the time that the run should need and somewhat beyond: there,
# and where the machine is quick, it ends before. Later starts likewise, over what is left, from the moment on at which
# they have imported everything: else most kills would meet imports.
BEYOND = 1.3
ENDING_SHARE = 0.25  # of the run's time; what choosing and scoring at the end take at least
DESCRIPTION = (
    "2 data workers, 2 batches an update, moving average, a checkpoint every 5 updates of which 3 are averaged at the"
    " end, cosine schedule, patience 3, looks at attention"
)


# -- the run -----------------------------------------------------------------------------------------------------------


def write_data(folder: Path, shared: Path) -> str:
    """Parallel text in `folder`; what it is."""
    folder.mkdir(parents=True)
    if (shared / "train.en").is_file():
        for name, count in PAIRS.items():
            for side in ("en", "de"):
                lines = (shared / f"{name}.{side}").read_text(encoding="utf-8").splitlines(keepends=True)
                (folder / f"{name}.{side}").write_text("".join(lines[:count]), encoding="utf-8")
        return f"the first {PAIRS['train']:,} pairs of Multi30k en-de"
    made = make_corpus(1, num_train=PAIRS["train"], num_validation=PAIRS["val"], num_held_out=40)
    for name, phrases in zip(PAIRS, (made.train, made.validation, made.held_out), strict=True):
        for side, role in (("en", "source"), ("de", "target")):
            text = "".join(getattr(phrase, role) + "\n" for phrase in phrases)
            (folder / f"{name}.{side}").write_text(text, encoding="utf-8")
    return f"{PAIRS['train']:,} generated phrases of `regard demo translate`"


def recipe(data: Path) -> dict[str, Any]:
    """A run of a dozen seconds in which everything happens."""
    side = {
        "type": "transformer",
        "model_dim": 32,
        "num_layers": 1,
        "attention": {"heads": 4},
        "feed_forward": {"width": 64},
        "embedding": {"dropout": 0.1},
    }
    validation, test = ({"path": {"source": f"{n}.en", "target": f"{n}.de"}} for n in ("val", "test_2016_flickr"))
    return {
        "task": "translate",
        "data": {
            "source_language": "en",
            "target_language": "de",
            "root": str(data),
            "train": {"path": {"source": "train.en", "target": "train.de"}},
            "validation": validation,
            "test": test,
            "max_tokens": 100,
            "batch": {"batch_tokens": 768},
            "workers": 2,
        },
        "tokenizers": {"source": {"kind": "bpe", "vocab_size": 1000}},
        "model": {"tie": "all", "encoder": side, "decoder": side},
        "training": {
            "max_steps": 160,
            "schedule": {"kind": "cosine", "peak": 1e-2, "warmup_steps": 20, "floor": 0.0},
            "accumulate": 2,
            "ema_decay": 0.9,
            "validate_every": 10,
            "checkpoint_every": 5,
            "keep_checkpoints": 3,
            "final": ["best", "last", "average"],
            "patience": 3,
            "log_every": 1,
            "attention_every": 10,
        },
        "validation": {"metric": "bleu", "decoding": {"max_length": 25}},
        "decoding": {"beam_size": 2, "max_length": 25},
    }


class Start:
    """One start of the command that trains in `folder`."""

    def __init__(self, recipe: Path, folder: Path, threads: int, token: str) -> None:
        self.note = folder.with_suffix(".note")
        self.note.write_bytes(b"")
        self.said = folder.with_suffix(".said")
        path = os.pathsep.join([str(PROBE), str(REPOSITORY)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "REGARD_KILLS": token}
        environment |= {"REGARD_KILL_PROBE": str(self.note), "PYTHONFAULTHANDLER": "1"}
        with self.said.open("wb") as said:
            command = [sys.executable, "-m", "regard", "train", str(recipe), "--run", str(folder)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment
            )

    def begin(self, seconds: float) -> bool:
        """Waits until all is imported; whether that comes before the process ends and within `seconds`."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            if self.place() != PLACES[0]:
                return True
            time.sleep(0.005)
        return False

    def place(self) -> str:
        """What the process does, or did when it was killed."""
        return PLACES[(self.note.read_bytes() or b"\0")[0]]

    def ended_within(self, seconds: float) -> bool:
        """Whether the process ends by itself in that time, which is then waited for. Fails with what it said."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if status != 0:
            sys.exit(f"a start ended with status {status}:\n{self.said.read_text(encoding='utf-8', errors='replace')}")
        return True

    def kill(self) -> bool:
        """Kills the process and nothing else; whether it had not ended just before."""
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL or not self.ended_within(0.0)


def left_behind(token: str) -> list[int]:
    """Processes of this benchmark that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"REGARD_KILLS={token}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # ended meanwhile, or somebody else's
    return found


# -- killing -----------------------------------------------------------------------------------------------------------


@dataclass
class Peace:
    """The run that nobody disturbs: what it leaves, how long it takes, how many updates it has."""

    content: dict[str, Any]
    seconds: float
    steps: int


class Tally:
    """What happened so far.

    pace: seconds that a whole run takes, as far as is known: others may use the machine, too. places: where kills
    landed. survived: kills of runs that ended as the one in peace.
    """

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self.places: Counter[str] = Counter()
        self.runs = self.starts = self.survived = self.left_behind = 0
        self.differing: list[str] = []


def disturbed(start: Any, folder: Path, peace: Peace, wanted: int, chance: random.Random, tally: Tally) -> None:
    """One run, killed and started again until it ends; no more than `wanted` kills."""
    places: Counter[str] = Counter()
    for _ in range(MOST_STARTS):
        tally.starts += 1
        step = newest_step(folder)
        share = max(1.0 - step / peace.steps, ENDING_SHARE) if step else 1.0
        begun = start(folder)
        if places and not begun.begin(20 * tally.pace + 60):
            if begun.ended_within(0.0):  # killed when all was done
                break
            sys.exit(f"{folder}: a start does not get beyond its imports")
        since = time.monotonic()
        if places.total() == wanted:
            if not begun.ended_within(20 * tally.pace + 60):
                sys.exit(f"{folder}: a start that nobody disturbs does not end")
            break
        if begun.ended_within(chance.uniform(0.0, BEYOND * share * tally.pace)) or not begun.kill():
            tally.pace = (time.monotonic() - since) / share
            break
        places[begun.place()] += 1
        done = last_update(folder) - step
        if done >= TELLING_STEPS:
            tally.pace = (tally.pace + (time.monotonic() - since) * peace.steps / done) / 2
    else:
        sys.exit(f"{folder}: not finished after {MOST_STARTS} starts")
    found = differences(peace.content, content(folder))
    tally.runs += 1
    tally.places += places
    tally.survived += 0 if found else places.total()
    tally.differing += [f"run {tally.runs}: {', '.join(found)}"] if found else []
    shutil.rmtree(folder)


def newest_step(folder: Path) -> int:
    """Where the run would go on."""
    return max((int(path.name.partition("-")[2]) for path in folder.glob("checkpoints/step-?????????")), default=0)


def last_update(folder: Path) -> int:
    """The last one that the metrics hold."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        return max((int(json.loads(line)["step"]) for line in lines if line.endswith(b"\n")), default=0)
    except OSError:
        return 0


def report(tally: Tally, about: str, peace: Peace, flips: int, seconds: float, arguments: Any) -> str:
    kills = tally.places.total()
    result = peace.content["result.json"]
    early = "early, by patience, " if result["stopped_early"] else ""
    lines = [
        "# Kills",
        "",
        f"`python benchmarks/kills.py --kills {arguments.kills} --seed {arguments.seed}`",
        "",
        f"{processor()}, {arguments.threads} thread(s) a process, Python {platform.python_version()}, torch"
        f" {torch.__version__}. The run: {about}; {DESCRIPTION}. In peace it takes {peace.seconds:.1f} s from the"
        f" command to its scores and ends {early}after update {peace.steps}. The first start of a run is killed at an"
        f" instant uniform over {BEYOND:g} times that, later ones, which follow at once, over {BEYOND:g} times what is"
        " left, counted from the end of their imports.",
        "",
        "| | |",
        "|---|---|",
        f"| kills (SIGKILL) | {kills} |",
        f"| runs they fell upon, each continued to its end | {tally.runs} |",
        f"| starts of the command | {tally.starts} |",
        f"| **kills survived bit-identically** | **{tally.survived} of {kills}** |",
        f"| runs that differ from the one in peace | {len(tally.differing)} |",
        f"| processes left behind | {tally.left_behind} |",
        f"| single bits flipped beforehand, all noticed | {flips} |",
        f"| time | {seconds / 60:.0f} min |",
        "",
        "| where the kills landed | kills |",
        "|---|---|",
        *(f"| {place} | {tally.places[place]} |" for place in PLACES if tally.places[place]),
        "",
        "Compared are all tensors and values of all checkpoints (weights, optimiser, average, position in the data),"
        " `metrics.jsonl` with loss, gradient norm and tokens of every update, the prepared data, `model/`, the scores,"
        " and the numbers in TensorBoard's files.",
    ]
    return "\n".join([*lines, *(f"\n**{line}**" for line in tally.differing)]) + "\n"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="of the instants; by chance unless given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "multi30k")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    arguments.seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    chance = random.Random(arguments.seed)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="regard-kills-") as scratch:
        folder = Path(scratch)
        token = folder.name
        about = write_data(folder / "text", arguments.data)
        path = folder / "kills.yaml"
        path.write_text(yaml.safe_dump(recipe(folder / "text"), sort_keys=False), encoding="utf-8")

        def start(run: Path) -> Start:
            return Start(path, run, arguments.threads, token)

        seconds = []
        for name in ("peace", "again"):  # the first start may have to read everything from the disk
            started = time.monotonic()
            if not start(folder / name).ended_within(600):
                sys.exit("a run in peace takes more than ten minutes")
            seconds.append(time.monotonic() - started)
        expected = content(folder / "peace")
        peace = Peace(expected, min(seconds), expected["result.json"]["steps"])
        tally = Tally(peace.seconds)
        if unequal := differences(expected, content(folder / "again")):
            sys.exit(f"two runs in peace differ in {', '.join(unequal)}")
        flips = flipped_bits_noticed(folder / "peace", folder / "flipped", chance)
        print(f"in peace {peace.seconds:.1f} s; {flips} flipped bits noticed; seed {arguments.seed}", flush=True)
        while tally.places.total() < arguments.kills:
            wanted = arguments.kills - tally.places.total()
            disturbed(start, folder / "disturbed", peace, wanted, chance, tally)
            time.sleep(1.0)  # workers of killed processes have long ended by now
            tally.left_behind += len(left_behind(token))
            print(f"{tally.places.total()} kills, {tally.survived} survived bit-identically", flush=True)
    text = report(tally, about, peace, flips, time.monotonic() - began, arguments)
    print(f"\n{text}")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    sys.exit(1 if tally.survived < tally.places.total() or tally.left_behind else 0)


if __name__ == "__main__":
    main()
