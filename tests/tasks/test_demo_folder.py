"""The folder of a demo: what the next one may remove, what it must not, and when."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from regard.errors import DataError, Interrupted, RegardError
from regard.tasks import demo_folder
from regard.tasks.demo_folder import Layout, last_lines, need, short_training, train_in_turn
from regard.tasks.demos import DEMOS, demo_of
from regard.training.monitor import Silent

# What each demo's writers leave beside the proof, relative to the folder it learns from.
WRITTEN = {
    "translate": ["train.en.unfinished", "train.de", "validation.en"],
    "summarize": ["validation.tsv", "train.tsv.unfinished"],
    "caption": ["images/train-00012.png", "images/held_out-00000.png", "images/validation-123456.png"],
    "transcribe": ["wav/train-0012.wav", "wav/test-0000.wav", "test.jsonl"],
}
# What each demo needs that regard itself does not.
NEEDED = {"caption": "PIL", "transcribe": "soundfile"}


def layout_of(task: str) -> Layout:
    layout = importlib.import_module(f"regard.tasks.{task}.demo").LAYOUT
    assert isinstance(layout, Layout)
    return layout


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("", encoding="utf-8")


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def whole(task: str) -> tuple[Layout, list[str]]:
    """A demo's layout, and files that stand for all that it leaves, in the order in which they are written."""
    layout = layout_of(task)
    learnt = [f"{layout.data}/{name}" for name in (*WRITTEN[task], layout.proof)]
    runs = [f"{run}/{name}" for run in layout.runs for name in (".lock", "recipe.yaml", "model/config.json")]
    return layout, [*learnt, *runs, *layout.drawings]


@pytest.mark.parametrize("task", DEMOS)
def test_a_demo_killed_at_any_time_makes_room_for_the_next(tmp_path: Path, task: str) -> None:
    layout, files = whole(task)
    for done in range(len(files) + 1):
        put(tmp_path / "demo", *files[:done])
        layout.make_room(tmp_path / "demo")
        assert names_in(tmp_path / "demo") == sorted({*layout.drawings} & {*files[:done]})
    assert sorted(layout.content) == sorted({name.split("/")[0] for name in files})


@pytest.mark.parametrize("task", DEMOS)
def test_what_is_left_by_a_kill_while_room_is_made_is_known_again(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever order the file system deletes in: here, one file more is gone each time."""
    layout, files = whole(task)
    put(tmp_path, *files)
    remove = demo_folder.shutil.rmtree

    def killed(path: Path) -> None:
        first = next((one for one in sorted(path.rglob("*")) if one.is_file()), None)
        if first is None:
            remove(path)
        else:
            first.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_folder.shutil, "rmtree", killed)
    for _ in range(100):
        if names_in(tmp_path) == sorted(layout.drawings):
            return
        with pytest.raises(KeyboardInterrupt):
            layout.make_room(tmp_path)
    pytest.fail(f"still there: {names_in(tmp_path)}")


@pytest.mark.parametrize("task", DEMOS)
def test_what_is_of_no_demo_is_named_and_nothing_is_touched(tmp_path: Path, task: str) -> None:
    layout, files = whole(task)
    inside = Path(f"{layout.data}/{WRITTEN[task][0]}").parent
    for number, mine in enumerate(("mine.txt", f"{layout.data}/thesis/one.tex", f"{inside}/mine.png")):
        folder = tmp_path / str(number)
        put(folder, *files, mine)
        before = names_in(folder)
        with pytest.raises(DataError, match=r"holds \S*(mine|thesis)\S*, which is of no demo; give a new or empty"):
            layout.make_room(folder)
        assert names_in(folder) == before
    for run in layout.runs:  # somebody else's: no demo began it, as it has nothing to learn from
        put(tmp_path / run, f"{run}/recipe.yaml")
        with pytest.raises(DataError, match=f"holds {run}, which"):
            layout.make_room(tmp_path / run)
        assert names_in(tmp_path / run) == [run, f"{run}/recipe.yaml"]
    put(tmp_path, "file")
    with pytest.raises(DataError, match=r"cannot be used \(not a directory"):
        layout.make_room(tmp_path / "file")


@pytest.mark.parametrize("task", NEEDED)
def test_an_earlier_demo_goes_only_where_the_next_one_can_be(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = whole(task)
    put(tmp_path, *files)
    before = names_in(tmp_path)
    demo = demo_of(task)
    monkeypatch.setitem(sys.modules, NEEDED[task], None)
    with pytest.raises(RegardError, match=f"needs the package {NEEDED[task]}.*pip install 'regard"):
        demo(tmp_path, num_steps=1)
    assert names_in(tmp_path) == before


def test_what_is_there_is_not_missed() -> None:
    need("torch", extra="nothing")


def test_runs_are_trained_in_turn_until_one_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(recipe: object, folder: Path, *, origin: str, watcher: object) -> None:
        trained.append((recipe, folder.name, origin))
        if recipe == "stopped":
            raise Interrupted("the run was stopped")

    monkeypatch.setattr(demo_folder, "train", train)
    one, two = ("one", tmp_path / "first"), ("two", tmp_path / "run")
    spent = train_in_turn([one, two], Silent())  # type: ignore[list-item]
    assert trained == [("one", "first", "the demo's recipe"), ("two", "run", "the demo's recipe")]
    assert 0 <= spent.seconds < 1 and 0 <= spent.processor_seconds < 1
    with pytest.raises(Interrupted, match="the demo was stopped; the same command starts it anew"):
        train_in_turn([("stopped", tmp_path), two], Silent())  # type: ignore[list-item]
    assert len(trained) == 3


@pytest.mark.parametrize(("num_steps", "warmup", "half"), [(1, 1, 1), (7, 1, 3), (700, 100, 350), (60, 12, 30)])
def test_a_short_training_warms_up_and_validates_in_time(num_steps: int, warmup: int, half: int) -> None:
    found = short_training(num_steps, peak=2e-3, ema_decay=0.9)
    assert (found.max_steps, found.schedule.peak, found.ema_decay) == (num_steps, 2e-3, 0.9)
    assert (found.schedule.warmup_steps, found.validate_every, found.checkpoint_every) == (warmup, half, half)


def test_page_and_picture_stand_under_each_other() -> None:
    spent = demo_folder.Spent(61.4, 100.0)
    lines = last_lines("to look at", spent, Path("a.html"), Path("a.png"), "look a")
    assert lines == ["trained in 61 s", "", "to look at: a.html", "            a.png", "try: regard look a"]
    told = demo_folder.drawn_json("look", {"right": 1.0}, spent, Path("a.html"), Path("a.png"))
    assert list(told) == ["task", "right", "train_seconds", "processor_seconds", "page", "picture"]
