"""The bar on a terminal, the lines without one, and nothing on standard output."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from regard.cli import progress
from regard.cli.progress import TrainingProgress


def shown(watcher: TrainingProgress, *, terminal: bool) -> io.StringIO:
    """Where the watcher writes from now on."""
    file = io.StringIO()
    watcher.console = Console(file=file, force_terminal=terminal, width=100, highlight=False, color_system=None)
    return file


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress() as watcher:
        file = shown(watcher, terminal=True)
        watcher.started(3, 7)
        watcher.stepped(4, 2.71828, 1000, 0.5)
        watcher.said("step 4: bleu [1.5] :smile:")
        watcher.stepped(5, None, 1000, 0.5)
        watcher.stepped(7, 1.5, 1000, 0.5)
        watcher.said("done")
    text = file.getvalue()
    for part in ("training", "3/7", "loss 1.500", "2,000 tokens/s", "7/7", "step 4: bleu [1.5] :smile:", "done"):
        assert part in text
    assert text.rstrip().endswith("done")
    assert capsys.readouterr().out == ""


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with TrainingProgress() as watcher:
        file = shown(watcher, terminal=False)
        watcher.started(0, 1000)
        for step in range(1, 8):
            now[0] += 13.0
            watcher.stepped(step, 3.25 if step == 1 else None, 500, 0.25)
        watcher.said("x" * 300)
    assert file.getvalue().splitlines() == [
        "step 3 of 1,000, loss 3.250, 2,000 tokens/s",
        "step 6 of 1,000, loss 3.250, 2,000 tokens/s",
        "x" * 300,
    ]


def test_the_bar_goes_away_when_training_fails() -> None:
    watcher = TrainingProgress()
    file = shown(watcher, terminal=True)
    with pytest.raises(ZeroDivisionError), watcher:  # noqa: PT012
        watcher.started(0, 7)
        raise ZeroDivisionError
    assert watcher._bar is None
    assert "\x1b[?25h" in file.getvalue()  # the cursor is back


def test_it_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress() as watcher:
        watcher.started(0, 7)
        watcher.stepped(1, 1.0, 10, 0.1)
        watcher.said("hello")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")
