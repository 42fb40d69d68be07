"""Classifying pictures: trained, asked, scored, with gaze; and what can be wrong."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from PIL import Image

import regard
from regard.cli.main import run
from regard.errors import DataError
from regard.tasks.classify.picture_labeller import PictureLabeller

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}


class Done(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


def recipe(folder: Path, source: dict[str, Any], encoder: dict[str, Any]) -> dict[str, Any]:
    data = {"path": "pictures.tsv", "columns": {"source": "file", "target": "colour"}}
    return {
        "task": "classify-pictures",
        "data": {
            "root": str(folder),
            "train": data,
            "validation": data,
            "test": data,
            "picture": {"height": 16, "width": 16},
        },
        "model": {"encoder": {**encoder, "embedding": source}, "pooling": {"hops": 2, "width": 8}, "dropout": 0.0},
        "training": {
            "max_steps": 40,
            "schedule": {"kind": "cosine", "peak": 1e-2, "warmup_steps": 5},
            "precision": "float32",
            "validate_every": 40,
            "checkpoint_every": 40,
            "final": ["last"],
        },
    }


CONVOLUTION = (
    {"type": "convolution", "channels": [8], "stem_kernel": 4, "stem_stride": 4},
    {"type": "none", "model_dim": 8},
)
PATCHES = (
    {"type": "patches", "patch": 8, "augmentation": {"flip": True, "shift": 0.1}},
    {"type": "transformer", "model_dim": 16, "num_layers": 1, "attention": {"heads": 2}, "feed_forward": {"width": 16}},
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A field of one colour in a corner of each grey picture, and pictures.tsv."""
    folder = tmp_path_factory.mktemp("colours")
    rows = ["file\tcolour"]
    for name, colour in COLOURS.items():
        for number in range(4):
            picture = Image.new("RGB", (16, 16), (128, 128, 128))
            picture.paste(colour, (8 * (number % 2), 8 * (number // 2), 8 * (number % 2) + 8, 8 * (number // 2) + 8))
            picture.save(folder / f"{name}-{number}.png")
            rows.append(f"{name}-{number}.png\t{name}")
    (folder / "pictures.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module", params=[CONVOLUTION, PATCHES], ids=["convolution", "patches"])
def trained(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(pictures, *request.param)))
    assert run(["train", str(folder / "recipe.yaml"), "--run", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    def call(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Done(status, printed.out, printed.err)

    return call


def test_pictures_in_labels_out(trained: Path, pictures: Path, command: Command, tmp_path: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert result["test"][0]["metrics"]["accuracy"]["value"] == 1.0, "tests count on a model that knows its colours"
    (tmp_path / "text.png").write_text("no picture")
    done = command(
        "classify", trained / "model", pictures / "red-1.png", tmp_path / "text.png", pictures / "blue-2.png"
    )
    assert done.status == 2
    first, second, third = done.out.splitlines()
    assert first.startswith("red\tred ") and second == "" and third.startswith("blue\tblue ")
    assert done.err.count("\n") == 1 and "text.png: text, expected a picture" in done.err
    from_input = command("classify", trained / "model", "-", "--json", stdin=(pictures / "green-0.png").read_bytes())
    assert json.loads(from_input.out)["label"] == "green"


def test_what_stands_behind_a_label(trained: Path, pictures: Path, tmp_path: Path, command: Command) -> None:
    labeller = regard.load(trained / "model")
    assert isinstance(labeller, PictureLabeller)
    [found] = labeller.classify([pictures / "red-0.png"], attention=True)
    record = found.attention
    assert record is not None and record.key is not None and record.key.picture is not None
    assert record.query is not None and record.query.text == "red"
    assert float(record.rows("pooling").sum()) == pytest.approx(1.0)
    for ending in ("html", "png"):
        path = tmp_path / f"gaze.{ending}"
        assert command("classify", trained / "model", pictures / "red-0.png", "--attention", path).status == 0
        assert path.stat().st_size > 1000
    with pytest.raises(DataError, match="no such file"):
        labeller.classify([pictures / "none.png"])
    with pytest.raises(DataError, match=r"^classify: expected a list of pictures, as in classify\("):
        labeller.classify("red-0.png")
    with pytest.raises(DataError, match=r"^classify: picture 2 is int, expected a path"):
        labeller.classify([pictures / "red-0.png", 7])  # type: ignore[list-item]


def test_scores_again(trained: Path, command: Command) -> None:
    done = command("evaluate", trained / "model", "--json")
    assert done.status == 0 and json.loads(done.out)["metrics"]["accuracy"]["value"] == 1.0
    assert command("evaluate", trained / "model", "--beam-size", 3).status == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.encoder.embedding={}", "reads no pictures"),
        ("data.train.columns={source: file, target: shape}", "no column for target (shape)"),
        ("data.picture.width=2", "or more a side"),
        ("model.pooling.hops=0", "hops is 0"),
        ("model.ngrams.longest=2", "a picture has none"),
    ],
)
def test_mistakes_are_one_line(pictures: Path, command: Command, tmp_path: Path, change: str, words: str) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(pictures, *CONVOLUTION)))
    done = command("train", tmp_path / "recipe.yaml", change, "--run", tmp_path / "run")
    assert done.status == 2 and words in done.err
    assert done.err.count("regard: error: ") == 1


def test_a_folder_a_class(pictures: Path, command: Command, tmp_path: Path) -> None:
    for name in COLOURS:
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            shutil.copy(pictures / f"{name}-{number}.png", tmp_path / "data" / name / f"{number}.png")
    values = recipe(tmp_path, *CONVOLUTION)
    for part in ("train", "validation", "test"):
        values["data"][part] = {"path": "data"}
    values["training"]["max_steps"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    done = command("train", tmp_path / "recipe.yaml", "--run", tmp_path / "run")
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"]["labels"] == sorted(COLOURS)
