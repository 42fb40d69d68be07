"""Scenes drawn by rule: one or two coloured shapes, what is to be said of them, and where each of them lies.

Of two shapes the caption begins with the left or the upper one: "a red circle left of a blue square". A fifth of all
pairs of shapes never stand together in training: whoever describes those has learnt to bind colours to shapes, not to
recall.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.errors import ConfigError

SIDE = 64  # pixels
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (40, 90, 220),
    "yellow": (240, 200, 30),
    "purple": (140, 60, 190),
}
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left of", "above")
SINGLE_SHARE = 0.3  # of the training scenes that show one shape alone
HELD_OUT_SHARE = 0.2  # of all pairs of shapes
RADIUS = (8.0, 11.0)  # pixels
APART = 24.0  # pixels, at least, between two middles along the relation
ASIDE = 0.5  # of that distance, at most, across it
OVERSAMPLING = 2  # drawn larger and averaged, for smooth edges

Kind = tuple[str, str]  # colour and shape


@dataclass(frozen=True)
class Thing:
    """A shape in a scene; x, y, radius in pixels: it lies within `radius` of its middle to each side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    def covers(self, x: float, y: float) -> bool:
        """Whether a place lies in the square around it."""
        return abs(x - self.x) <= self.radius and abs(y - self.y) <= self.radius


@dataclass(frozen=True)
class Scene:
    """things: in the order in which the caption names them. seed: of how it is drawn."""

    things: tuple[Thing, ...]
    relation: str  # empty for a single thing
    seed: int

    @property
    def caption(self) -> str:
        names = [f"a {thing.colour} {thing.shape}" for thing in self.things]
        return f" {self.relation} ".join(names)

    def named(self) -> list[tuple[int, int, Thing]]:
        """(begin, end) in the caption of each word that says what a thing is, colour or shape; and the thing."""
        found, place = [], 0
        for thing in self.things:
            for word in (thing.colour, thing.shape):
                begin = self.caption.index(word, place)
                place = begin + len(word)
                found.append((begin, place, thing))
        return found


@dataclass(frozen=True)
class Scenes:
    """held_out: of pairs that occur in no other part."""

    train: tuple[Scene, ...]
    validation: tuple[Scene, ...]
    held_out: tuple[Scene, ...]


def make_scenes(seed: int, *, num_train: int, num_validation: int, num_held_out: int) -> Scenes:
    """Equal for equal arguments."""
    chance = random.Random(seed)
    kinds = list(itertools.product(COLOURS, SHAPES))
    pairs = list(itertools.combinations(kinds, 2))
    chance.shuffle(pairs)
    held_out, known = pairs[: int(len(pairs) * HELD_OUT_SHARE)], pairs[int(len(pairs) * HELD_OUT_SHARE) :]

    def one(pool: Sequence[tuple[Kind, Kind]], single_share: float) -> Scene:
        if chance.random() < single_share:
            return _single(chance, chance.choice(kinds))
        first, second = chance.sample(chance.choice(pool), 2)
        return _pair(chance, first, second, chance.choice(RELATIONS))

    return Scenes(
        tuple(one(known, SINGLE_SHARE) for _ in range(num_train)),
        tuple(one(known, 0.0) for _ in range(num_validation)),
        tuple(one(held_out, 0.0) for _ in range(num_held_out)),
    )


def _single(chance: random.Random, kind: Kind) -> Scene:
    margin = RADIUS[1] + 1
    thing = Thing(*kind, chance.uniform(margin, SIDE - margin), chance.uniform(margin, SIDE - margin), _radius(chance))
    return Scene((thing,), "", chance.getrandbits(32))


def _pair(chance: random.Random, first: Kind, second: Kind, relation: str) -> Scene:
    margin = RADIUS[1] + 1
    while True:
        (ax, ay), (bx, by) = [
            (chance.uniform(margin, SIDE - margin), chance.uniform(margin, SIDE - margin)) for _ in range(2)
        ]
        along, across = (bx - ax, by - ay) if relation == "left of" else (by - ay, bx - ax)
        if along >= APART and abs(across) <= ASIDE * along:
            break
    things = (Thing(*first, ax, ay, _radius(chance)), Thing(*second, bx, by, _radius(chance)))
    return Scene(things, relation, chance.getrandbits(32))


def _radius(chance: random.Random) -> float:
    return chance.uniform(*RADIUS)


def draw_scene(scene: Scene) -> Any:
    """The scene as a Pillow image of SIDE x SIDE pixels, every colour a little off its name's. Raises: ConfigError."""
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise ConfigError(
            "the demo draws with the package Pillow, which is missing; pip install 'regard[image]'"
        ) from None
    chance = random.Random(scene.seed)
    grey = chance.randint(190, 235)
    ground = tuple(grey + chance.randint(-12, 12) for _ in range(3))
    picture = Image.new("RGB", (SIDE * OVERSAMPLING,) * 2, ground)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        colour = tuple(min(max(part + chance.randint(-18, 18), 0), 255) for part in COLOURS[thing.colour])
        x, y, radius = (OVERSAMPLING * length for length in (thing.x, thing.y, thing.radius))
        if thing.shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        elif thing.shape == "square":
            half = 0.9 * radius
            pen.rectangle((x - half, y - half, x + half, y + half), fill=colour)
        else:
            base = y + 0.85 * radius
            pen.polygon([(x, y - radius), (x + radius, base), (x - radius, base)], fill=colour)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def write_scenes(folder: Path, scenes: Scenes) -> None:
    """images/PART-NUMBER.png in `folder`, and captions.tsv with columns file, split and caption."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = ["file\tsplit\tcaption"]
    for part in ("train", "validation", "held_out"):
        for number, scene in enumerate(getattr(scenes, part)):
            name = f"{part}-{number:05}.png"
            draw_scene(scene).save(folder / "images" / name, compress_level=1)
            rows.append(f"{name}\t{part}\t{scene.caption}")
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
