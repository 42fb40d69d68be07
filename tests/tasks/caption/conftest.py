"""One tiny captioner, trained through the real command line, and a way to call commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from picture_commands import Done, Trained
from tiny_pictures import write_pictures, write_recipe

from regard.cli.main import run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Nine pictures, learnt."""
    folder = tmp_path_factory.mktemp("pictures")
    data = write_pictures(folder / "data")
    assert run(["train", str(write_recipe(folder / "tiny.yaml", data)), "--run", str(folder / "run")]) == 0
    found = Trained(data, folder / "run")
    assert found.result["validation"]["candidates"] == {"last": 1.0}, "tests count on a model that knows its pictures"
    return found


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Calls the command line within this process: command("caption", model, "a.jpg", stdin=b"...")."""

    def call(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Done(status, printed.out, printed.err)

    return call
