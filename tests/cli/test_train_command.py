"""`regard train`: every data format alike, resumed after anything, and what it leaves in the run directory."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from command_line import Command, Trained, files_in, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_language import TEST, TRAIN, VALIDATION, Pair, write_recipe

import regard

# -- formats -----------------------------------------------------------------------------------------------------------


def as_tsv(pairs: list[Pair]) -> bytes:
    return "".join(f"{number}\t{target}\t{source}\n" for number, (source, target) in enumerate(pairs)).encode()


def as_csv(pairs: list[Pair]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([("English", "German"), *pairs])
    return file.getvalue().encode()


def as_json_lines(pairs: list[Pair]) -> bytes:
    return "".join(json.dumps({"translation": {"en": s, "de": t}}) + "\n" for s, t in pairs).encode()


def as_parquet(pairs: list[Pair]) -> bytes:
    columns = {"de": [t for _, t in pairs], "id": list(range(len(pairs))), "en": [s for s, _ in pairs]}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=101)
    return file.getvalue()


FORMATS = {
    "tsv": (as_tsv, {"header": False, "columns": {"source": 2, "target": 1}}),
    "csv": (as_csv, {"columns": {"source": "English", "target": "German"}}),
    "jsonl": (as_json_lines, {"columns": {"source": "translation.en", "target": "translation.de"}}),
    "parquet": (as_parquet, {"columns": {"source": "en", "target": "de"}}),
}
SHORT = {"training__max_steps": 15, "training__validate_every": 15}


@pytest.fixture(scope="session")
def from_parallel(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run over parallel text."""
    from regard.cli.main import run

    folder = tmp_path_factory.mktemp("parallel")
    recipe = write_recipe(folder / "r.yaml", trained.data, **SHORT)
    assert run(["train", str(recipe), "--run", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_trains_to_the_same_losses(
    command: Command, from_parallel: Path, tmp_path: Path, kind: str
) -> None:
    write, options = FORMATS[kind]
    for name, pairs in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        (tmp_path / f"{name}.{kind}").write_bytes(write(pairs))
    specs: dict[str, Any] = {
        f"data__{role}": {"path": f"{name}.{kind}", **options}
        for role, name in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    path = write_recipe(tmp_path / "r.yaml", tmp_path, **SHORT, **specs)
    done = command("train", path, "--run", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (from_parallel / "metrics.jsonl").read_bytes()
    weights = "model/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (from_parallel / weights).read_bytes()
    expected = json.loads((from_parallel / "result.json").read_text(encoding="utf-8"))
    found = json.loads(done.out)
    assert (found["data"], found["test"]) == (expected["data"], expected["test"])
    evaluated = command("evaluate", tmp_path / "run" / "model", "--json")
    assert json.loads(evaluated.out)["metrics"] == found["test"][0]["metrics"]


# -- again and again ---------------------------------------------------------------------------------------------------


def test_the_same_command_again_returns_the_result(command: Command, trained: Trained) -> None:
    before = files_in(trained.run)
    done = command("train", trained.recipe, "--run", trained.run, "--json")
    assert (done.status, json.loads(done.out)) == (0, json.loads(trained.out))
    assert "has finished" in done.err
    assert files_in(trained.run) == before


def wait_until_it_trains(run: Path, process: Any, *, before: int = 0) -> None:
    """Until one more process than `before` has begun to train in the run directory, or this one has ended."""
    while process.poll() is None and len(list((run / "tensorboard").glob("events.*"))) <= before:
        time.sleep(0.01)


def test_killed_and_interrupted_anywhere_it_ends_as_if_undisturbed(trained: Trained, tmp_path: Path) -> None:
    """Two kills and a Ctrl-C at random instants; the training itself takes some seconds."""
    folder = tmp_path / "run"
    seed = time.time_ns()
    print(f"random.Random({seed})")
    instants = random.Random(seed)
    for number, how in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGKILL)):
        process = start("train", trained.recipe, "--run", folder)
        wait_until_it_trains(folder, process, before=number)
        time.sleep(instants.uniform(0.0, 0.8))
        process.send_signal(how)
        out, err = process.communicate(timeout=120)
        assert process.returncode in {signal.SIGKILL: (-9, 0), signal.SIGINT: (130, 0)}[how], err.decode()
        assert out == b"" or process.returncode == 0
        assert "Traceback" not in err.decode()
    process = start("train", trained.recipe, "--run", folder)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    for name in ("model/model.safetensors", "model/tokenizer.json", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (trained.run / name).read_bytes(), name
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    expected = json.loads((trained.run / "result.json").read_text(encoding="utf-8"))
    assert {**found, "seconds_of_last_part": 0} == {**expected, "seconds_of_last_part": 0}
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == sorted(steps)


def test_ctrl_c_ends_with_130_and_can_be_resumed(trained: Trained, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "long.yaml", trained.data, training__max_steps=100_000)
    checkpoints = tmp_path / "run" / "checkpoints"
    process = start("train", recipe, "--run", tmp_path / "run")
    while process.poll() is None and not list(checkpoints.glob("step-*[0-9]")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, b"")
    last = err.decode().splitlines()[-1]
    stopped = re.match(r"regard: stopped after step (\d+);", last)
    assert stopped, last
    assert "run the same command to go on from" in last
    assert "Traceback" not in err.decode()
    # A step that ends with a checkpoint anyway needs no second one.
    assert [path for path in checkpoints.glob("*-*") if int(stopped[1]) == int(path.name.partition("-")[2])]


# -- what is left in the run directory ---------------------------------------------------------------------------------


def test_what_the_command_prints(trained: Trained, command: Command) -> None:
    result = json.loads(trained.out)
    assert result == json.loads((trained.run / "result.json").read_text(encoding="utf-8"))
    assert result["steps"] == 260
    assert result["validation"]["chosen"] in result["validation"]["candidates"]
    assert [scores["scoring"] for scores in result["test"]] == ["sacrebleu", "moses-lowercase"]
    assert result["data"]["records"] == len(TRAIN)
    assert "joint" not in trained.out
    for told in ("learning a vocabulary of 320", "701 training records; no bad records", "padding source", "step 65:"):
        assert told in trained.err
    plain = command("train", trained.recipe, "--run", trained.run).out
    assert "BLEU" in plain
    assert "chrF" in plain
    assert str(trained.model) in plain


def test_metrics_hold_each_step_once(trained: Trained) -> None:
    text = (trained.run / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sorted(losses) == list(range(5, 261, 5))
    assert len(losses) == sum("loss" in line for line in lines)
    assert losses[260] < 0.5 * losses[5]
    assert [line["step"] for line in lines if "validation_chrf" in line] == [65, 130, 195, 260]
    assert all(0 <= line["padding_share"] < 0.5 for line in lines if "loss" in line)


def test_tensorboard_holds_the_same_numbers(trained: Trained) -> None:
    events = EventAccumulator(str(trained.run / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    text = (trained.run / "metrics.jsonl").read_text(encoding="utf-8")
    expected = {line["step"]: line["loss"] for line in map(json.loads, text.splitlines()) if "loss" in line}
    assert losses == pytest.approx(expected, rel=1e-6)
    assert events.Scalars("tokens_per_second")


def test_the_model_directory_says_what_it_is(trained: Trained) -> None:
    card = (trained.model / "README.md").read_text(encoding="utf-8")
    result = json.loads(trained.out)
    bleu = result["test"][0]["metrics"]["BLEU"]
    assert f"BLEU {bleu['value']:.2f}" in card
    assert bleu["signature"] in card
    assert "en to de" in card
    assert f"{result['parameters']:,} parameters" in card
    assert f"{len(TRAIN)} sentence pairs" in card
    config = json.loads((trained.model / "config.json").read_text(encoding="utf-8"))
    assert config["training"]["result"] == result
    assert sorted(path.name for path in trained.model.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert not [path for path in trained.run.rglob("*") if "unfinished" in path.name]


def test_a_model_is_complete_in_itself(trained: Trained, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(trained.model, tmp_path / "elsewhere")
    source, target = TEST[0]
    for dtype in ("float32", "float64"):
        [translation] = regard.load(moved, dtype=dtype).translate([source])
        assert translation.text == target
        assert translation.finished
