"""Labelled texts small enough to be learnt in seconds, and recipes that learn them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

GOOD, BAD = ["fine", "warm", "bright", "clever"], ["dull", "cold", "grey", "stupid"]
THINGS = ["film", "song", "play", "book", "day", "house"]
ENCODER = {
    "type": "transformer",
    "model_dim": 32,
    "num_layers": 1,
    "attention": {"heads": 4},
    "feed_forward": {"width": 48},
    "dropout": 0.0,
}
Row = tuple[str, ...]


def rows(count: int, seed: int) -> list[Row]:
    """(text, label): of the two adjectives the one behind "but" counts."""
    chosen = random.Random(seed)
    found = []
    for _ in range(count):
        word, label = chosen.choice([*((word, "good") for word in GOOD), *((word, "bad") for word in BAD)])
        found.append((f"a {chosen.choice(THINGS)} so {chosen.choice(GOOD + BAD)} but {word}", label))
    return found


def pairs(count: int, seed: int) -> list[Row]:
    """(text, text, label): whether both are about one thing."""
    chosen = random.Random(seed)
    found = []
    for _ in range(count):
        first = chosen.choice(THINGS)
        second = first if chosen.random() < 0.5 else chosen.choice([thing for thing in THINGS if thing != first])
        found.append((f"the {first}", f"that {second}", "same" if first == second else "other"))
    return found


def write(path: Path, content: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in content), encoding="utf-8")


def recipe(folder: Path, made: Any = rows, **changes: Any) -> Path:
    """Writes texts and recipe into `folder`. changes: dotted keys, with "__" for the dots, and their values."""
    for name, count, seed in (("train", 400, 1), ("validation", 40, 2), ("test", 60, 3)):
        write(folder / f"{name}.tsv", made(count, seed))
    columns = {"source": 0, "target": 1} if made is rows else {"source": 0, "second": 1, "target": 2}
    values: dict[str, Any] = {
        "task": "classify",
        "data": {
            "root": str(folder),
            "pairs": made is not rows,
            **{
                name: {"path": f"{name}.tsv", "header": False, "columns": columns}
                for name in ("train", "validation", "test")
            },
            "max_tokens": 64,
            "batch": {"batch_tokens": 512},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model": {"encoder": ENCODER, "pooling": {"kind": "attention", "hops": 2, "width": 16}, "dropout": 0.0},
        "training": {
            "max_steps": 120,
            "label_smoothing": 0.05,
            "schedule": {"kind": "cosine", "peak": 0.01, "warmup_steps": 10},
            "validate_every": 60,
            "checkpoint_every": 60,
            "final": ["best"],
            "precision": "float32",
        },
    }
    return _written(folder / "recipe.yaml", values, changes)


def pretraining(folder: Path, **changes: Any) -> Path:
    """A recipe that learns the texts of `recipe` without their labels."""
    spec = {"header": False, "columns": {"target": 0}}
    values: dict[str, Any] = {
        "task": "pretrain",
        "data": {
            "root": str(folder),
            **{name: {"path": f"{name}.tsv", **spec} for name in ("train", "validation", "test")},
            "max_tokens": 64,
            "batch": {"batch_tokens": 512},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model": {"encoder": ENCODER},
        "training": {
            "max_steps": 100,
            "label_smoothing": 0.0,
            "schedule": {"kind": "cosine", "peak": 0.01, "warmup_steps": 10},
            "validate_every": 50,
            "checkpoint_every": 50,
            "final": ["best"],
            "precision": "float32",
        },
    }
    return _written(folder / "pretraining.yaml", values, changes)


def _written(path: Path, values: dict[str, Any], changes: dict[str, Any]) -> Path:
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
