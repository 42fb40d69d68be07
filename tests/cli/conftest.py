"""One tiny run, trained through the real command line, and a way to call commands."""

from __future__ import annotations

import io
import sys

import pytest
from command_line import Command, Done, Trained, run_process
from tiny_language import write_data, write_recipe

from regard.cli.main import run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The tiny language, learnt."""
    folder = tmp_path_factory.mktemp("tiny")
    data = write_data(folder / "data")
    recipe = write_recipe(folder / "tiny.yaml", data)
    done = run_process("train", recipe, "--run", folder / "run", "--json")
    assert done.status == 0, done.err
    assert "average: chrf 100" in done.err, f"tests count on a model that has learnt its language: {done.err}"
    return Trained(recipe, data, folder / "run", done.out, done.err)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls the command line within this process: command("translate", model, "text", stdin=b"...")."""

    def call(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Done(status, printed.out, printed.err)

    return call
