"""The demo's scenes, its pointing game, and a demo far too short to learn anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from picture_commands import Done, Trained

import regard
from regard.errors import DataError
from regard.tasks.caption.demo import Demo, demo
from regard.tasks.caption.demo_pointing import pointing
from regard.tasks.caption.demo_scenes import COLOURS, SHAPES, SIDE, Scene, Thing, draw_scene, make_scenes

SCENES = make_scenes(5, num_train=300, num_validation=20, num_held_out=100)


def pair_of(scene: Scene) -> frozenset[tuple[str, str]]:
    return frozenset((thing.colour, thing.shape) for thing in scene.things)


def test_held_out_pairs_occur_nowhere_else() -> None:
    known = {pair_of(scene) for scene in (*SCENES.train, *SCENES.validation) if len(scene.things) == 2}
    unknown = {pair_of(scene) for scene in SCENES.held_out}
    assert len(unknown) > 10 and not known & unknown
    assert all(len(scene.things) == 2 for scene in SCENES.held_out)
    words = {word for scene in SCENES.train for thing in scene.things for word in (thing.colour, thing.shape)}
    assert words == {*COLOURS, *SHAPES}


def test_captions_are_true() -> None:
    for scene in SCENES.train:
        if len(scene.things) == 1:
            [only] = scene.things
            assert scene.caption == f"a {only.colour} {only.shape}"
            continue
        first, second = scene.things
        assert scene.relation in ("left of", "above")
        assert scene.caption == f"a {first.colour} {first.shape} {scene.relation} a {second.colour} {second.shape}"
        right_of, below = second.x - first.x, second.y - first.y
        along, across = (right_of, below) if scene.relation == "left of" else (below, right_of)
        assert along >= 24 and abs(across) <= along / 2
        assert pair_of(scene) != {(first.colour, first.shape)}, "two things are never of the same kind"


def test_things_are_drawn_where_they_are_said_to_be() -> None:
    for scene in SCENES.held_out[:30]:
        pixels = np.asarray(draw_scene(scene)).astype(int)
        assert pixels.shape == (SIDE, SIDE, 3)
        for thing in scene.things:
            assert np.abs(pixels[int(thing.y), int(thing.x)] - COLOURS[thing.colour]).max() <= 20
            assert thing.covers(thing.x, thing.y) and not thing.covers(thing.x + thing.radius + 1, thing.y)
        covered = (pixels.max(-1) - pixels.min(-1)) > 60
        rows, columns = np.nonzero(covered)
        wider = [replace(one, radius=one.radius + 1) for one in scene.things]  # edges are smooth
        assert all(any(one.covers(x + 0.5, y + 0.5) for one in wider) for x, y in zip(columns, rows, strict=True))


def test_every_word_that_names_something_is_found() -> None:
    scene = Scene((Thing("red", "square", 20, 20, 8), Thing("red", "circle", 50, 20, 8)), "left of", 0)
    named = [(scene.caption[begin:end], thing.shape) for begin, end, thing in scene.named()]
    assert named == [("red", "square"), ("square", "square"), ("red", "circle"), ("circle", "circle")]
    assert [begin for begin, _, _ in scene.named()] == [2, 6, 23, 27]


def test_an_untrained_model_points_by_chance(trained: Trained) -> None:
    captioner = regard.load(trained.model)
    pixels = [np.asarray(draw_scene(scene).resize((16, 16))) for scene in SCENES.held_out]
    found = pointing(captioner, SCENES.held_out, pixels, seed=1)
    assert found.num_words == 400
    assert found.accuracy < 0.5 and found.shuffled < 0.5


def test_a_short_demo_from_end_to_end(tmp_path: Path, command: Callable[..., Done]) -> None:
    result = demo(tmp_path / "demo", num_steps=2, num_train=80, num_held_out=8)
    assert result.num_held_out == 8 and 0.05 < result.pointing.chance < 0.2
    for name in ("gaze.html", "gaze.png", "gaze.svg", "run/model/config.json"):
        assert (tmp_path / "demo" / name).is_file(), name
    assert len(result.lines()) > 8 and json.dumps(result.to_json())
    path = tmp_path / "demo" / "scenes" / "images" / "held_out-00000.png"
    assert command("caption", tmp_path / "demo" / "run" / "model", path).status == 0
    (tmp_path / "demo" / "mine.txt").touch()
    with pytest.raises(DataError, match=r"holds mine\.txt, which is of no demo"):
        demo(tmp_path / "demo", num_steps=2)


@pytest.fixture(scope="module", params=[1, 2, 3])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The whole demo, with a seed."""
    return demo(tmp_path_factory.mktemp("demo") / "demo", seed=request.param)


@pytest.mark.long
def test_the_demo_describes_what_it_has_not_seen(shown: Demo) -> None:
    assert shown.exact_match >= 0.9
    assert shown.pointing.shuffled < 0.4


@pytest.mark.long
@pytest.mark.xfail(reason="41 and 72 % were reached with two seeds: benchmarks/results/demo_caption.md")
def test_its_gaze_is_on_what_it_names(shown: Demo) -> None:
    assert shown.pointing.accuracy >= 0.8
