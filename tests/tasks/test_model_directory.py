"""Model directories: whole or refused, whatever happened to them."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.errors import ModelFileError, TrainingError
from regard.tasks import model_directory

CONFIG = {"width": 8, "rates": (0.1, 1e-9), "names": {"b": "ß", "a": None}, 5: True}
TEXTS = {"tokenizer.json": '{"größe": 1}', "README.md": "# A model"}


def weights(value: float = 1.0) -> dict[str, Tensor]:
    return {"b.weight": torch.arange(77.0).view(7, 11).T * value, "a": torch.tensor([value], dtype=torch.bfloat16)}


def write(folder: Path, value: float = 1.0) -> Path:
    model_directory.write(folder, task="tiny", config=CONFIG, weights=weights(value), texts=TEXTS)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Changes keys of config.json as somebody who knows what they do: without the hash."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["config_sha256"]
    path.write_text(json.dumps({**config, **changes}))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = model_directory.read(write(tmp_path / "model"))
    assert found.path == tmp_path / "model"
    assert found.texts == {"tokenizer.json": TEXTS["tokenizer.json"]}
    assert found.config["task"] == "tiny"
    assert found.config["format_version"] == model_directory.FORMAT_VERSION
    assert found.config["rates"] == [0.1, 1e-9]
    assert found.config["names"] == {"b": "ß", "a": None}
    assert found.weights.keys() == weights().keys()
    for name, tensor in weights().items():
        assert found.weights[name].dtype == tensor.dtype
        assert torch.equal(found.weights[name], tensor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_it_can_be_moved_and_read_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert model_directory.read(".").config["width"] == 8
    monkeypatch.chdir(tmp_path)
    assert model_directory.read("elsewhere").config["width"] == 8


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(["README.md", "config.json", "model.safetensors", "tokenizer.json"], 0o640)


def test_the_card_may_be_edited(tmp_path: Path) -> None:
    (write(tmp_path / "model") / "README.md").write_text("better words")
    model_directory.read(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model") / name
    content = path.read_bytes()
    whole = model_directory.read(tmp_path / "model")
    places = range(len(content)) if name != "model.safetensors" else random.Random(1).sample(range(len(content)), 60)
    accepted = 0
    told: set[str] = set()
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 2
        path.write_bytes(changed)
        try:
            found = model_directory.read(tmp_path / "model")
        except ModelFileError as error:
            told.add(str(error))
            continue
        accepted += 1  # a blank of config.json, or the name under which it keeps its hash
        assert name == "config.json"
        assert {key: found.config.get(key) for key in whole.config} == whole.config, place
    assert accepted < len(places) / 4
    assert all(one.startswith(str(tmp_path / "model")) and "\n" not in one for one in told)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_cut_file_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = write(tmp_path / "model") / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ModelFileError, match=f"{name}: damaged .*; copy .*again"):
        model_directory.read(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write(tmp_path / "model") / name).unlink()
    with pytest.raises(ModelFileError) as raised:
        model_directory.read(tmp_path / "model")
    assert str(raised.value).startswith(f"{tmp_path / 'model' / name}: missing from the model directory; ")


def test_places_without_a_model(tmp_path: Path) -> None:
    write(tmp_path / "run" / "model")
    for place, message in {
        "nothing": ": no such model directory; give the `model` folder inside a run directory",
        "run": f"/config.json: missing from the model directory; did you mean {tmp_path / 'run' / 'model'}?",
        "run/model/config.json": ": no such model directory; give the `model` folder inside a run directory",
    }.items():
        with pytest.raises(ModelFileError) as raised:
            model_directory.read(tmp_path / place)
        assert str(raised.value) == f"{tmp_path / place}{message}"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"7", b'"text"', b"null", b"{}", b"\xff\xfe", b"[" * 99_999, b'{"a": NaN'),
        *(b'{"format_version": "1"}', b'{"format_version": 1}', b'{"format_version": 1, "task": "tiny", "files": []}'),
    ],
)
def test_a_configuration_that_is_none(tmp_path: Path, content: bytes) -> None:
    (write(tmp_path / "model") / "config.json").write_bytes(content)
    with pytest.raises(ModelFileError) as raised:
        model_directory.read(tmp_path / "model")
    assert str(raised.value).startswith(f"{tmp_path / 'model' / 'config.json'}: damaged (")
    assert str(raised.value).endswith("; copy the model directory again")
    assert "\n" not in str(raised.value)


def test_an_edited_configuration_says_how_it_can_be_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "model") / "config.json"
    path.write_text(path.read_text().replace('"width": 8', '"width": 9'))
    with pytest.raises(ModelFileError) as raised:
        model_directory.read(tmp_path / "model")
    remedy = "copy it again, or remove `config_sha256` from it if you changed it on purpose"
    assert str(raised.value) == f"{path}: damaged (its content is not what its hash says); {remedy}"
    edit(tmp_path / "model")
    assert model_directory.read(tmp_path / "model").config["width"] == 9


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", ".", "", "config.json", "a\\b", "c:x"])
def test_a_file_outside_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model")
    (tmp_path / "secret").write_text("x")
    files = json.loads((folder / "config.json").read_text())["files"]
    edit(folder, files={**files, name: {"bytes": 1, "sha256": ""}})
    with pytest.raises(ModelFileError) as raised:
        model_directory.read(folder)
    what = f"damaged ({name!r} is not the name of a file in the directory)"
    assert str(raised.value) == f"{folder / 'config.json'}: {what}; copy the model directory again"


@pytest.mark.parametrize("entry", [None, 7, {}, {"bytes": 1}])
def test_a_file_without_its_hash_is_refused(tmp_path: Path, entry: object) -> None:
    folder = write(tmp_path / "model")
    edit(folder, files={"model.safetensors": entry})
    with pytest.raises(ModelFileError, match=r"damaged \(no size and hash of model.safetensors\)"):
        model_directory.read(folder)


def test_texts_that_are_no_texts(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe")
    files = json.loads((folder / "config.json").read_text())["files"]
    hashed = {"bytes": 2, "sha256": model_directory._sha256(folder / "tokenizer.json")}
    edit(folder, files={**files, "tokenizer.json": hashed})
    with pytest.raises(ModelFileError, match=r"model: cannot be read .*; copy the directory again"):
        model_directory.read(folder)


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model")
    edit(folder, format_version=99, files="of another kind")
    with pytest.raises(ModelFileError) as raised:
        model_directory.read(folder)
    now = model_directory.FORMAT_VERSION
    assert str(raised.value) == f"{folder}: format 99, this regard reads up to {now}; upgrade regard"
    edit_again = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**edit_again, "format_version": 0}))
    with pytest.raises(ModelFileError, match="format 0 was never written by regard; copy the directory again"):
        model_directory.read(folder)


def test_an_older_version_is_migrated_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model")
    now = model_directory.FORMAT_VERSION
    files = json.loads((folder / "config.json").read_text())["files"]

    def rename(config: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in config.items() if key != "job"}, "task": config["job"]}

    def widen(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "width": config["width"] * 2}

    monkeypatch.setattr(model_directory, "FORMAT_VERSION", now + 2)
    monkeypatch.setattr(model_directory, "MIGRATIONS", {now: rename, now + 1: widen})
    old = {"format_version": now, "job": "tiny", "width": 8, "files": files}
    (folder / "config.json").write_text(json.dumps(old))
    found = model_directory.read(folder)
    assert (found.config["task"], found.config["width"]) == ("tiny", 16)
    assert found.weights.keys() == weights().keys()
    monkeypatch.setattr(model_directory, "MIGRATIONS", {now: lambda config: config, now + 1: widen})
    with pytest.raises(ModelFileError, match=r"damaged \(no task\)"):
        model_directory.read(folder)


def test_after_a_kill_between_the_renames_the_old_one_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    folder.rename(tmp_path / ".model.replaced")
    assert model_directory.read(folder).config["width"] == 8
    model_directory.recover(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    write(tmp_path / ".model.replaced", 3.0)  # and after one behind both renames, the new one
    (tmp_path / ".model.unfinished").mkdir()
    assert torch.equal(model_directory.read(folder).weights["a"], weights()["a"])
    write(folder, 2.0)
    assert torch.equal(model_directory.read(folder).weights["a"], weights(2.0)["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError) as raised:
        write(folder, 2.0)
    end = "make room and run the same command again"
    assert str(raised.value) == f"{folder}: not written, the disk is full; {end}"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert torch.equal(model_directory.read(folder).weights["a"], weights()["a"])


def test_weights_that_the_disk_does_not_take(tmp_path: Path) -> None:
    """safetensors reports a failed write as a text of its own."""
    folder = write(tmp_path / "model")
    program = (
        "import resource, sys, torch; from pathlib import Path; from regard.tasks import model_directory\n"
        "from regard.errors import TrainingError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (5000, {resource.RLIM_INFINITY}))\n"
        "weights = {'a': torch.ones(9999)}\n"
        "try: model_directory.write(Path(sys.argv[1]), task='tiny', config={}, weights=weights, texts={})\n"
        "except TrainingError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    end = "make it writable and run the same command again"
    assert done.stdout == f"{folder}: not written, file too large; {end}\n"
    assert torch.equal(model_directory.read(folder).weights["a"], weights()["a"])
