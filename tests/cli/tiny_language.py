"""A language pair small enough to be learnt in seconds, and the recipe that learns it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

NOUNS = {"dog": "Hund", "cat": "Katze", "bird": "Vogel", "horse": "Pferd", "child": "Kind", "man": "Herr"}
ADJECTIVES = {"red": "rot", "big": "groß", "small": "klein", "old": "alt", "young": "jung"}
VERBS = {"sees": "sieht", "likes": "mag", "hears": "hört", "follows": "folgt"}
Pair = tuple[str, str]


def pairs(count: int, seed: int) -> list[Pair]:
    """(source, target): word for word, but that an adjective stands behind its noun in the target."""
    chosen = random.Random(seed)

    def noun_phrase() -> Pair:
        noun, adjective = chosen.choice(list(NOUNS)), chosen.choice([None, *ADJECTIVES])
        if adjective is None:
            return f"the {noun}", f"dem {NOUNS[noun]}"
        return f"the {adjective} {noun}", f"dem {NOUNS[noun]} {ADJECTIVES[adjective]}"

    found = []
    for _ in range(count):
        (subject, subject_target), (what, what_target) = noun_phrase(), noun_phrase()
        verb = chosen.choice(list(VERBS))
        source, target = f"{subject} {verb} {what}.", f"{subject_target} {VERBS[verb]} {what_target}."
        found.append((source[0].upper() + source[1:], target[0].upper() + target[1:]))
    return found


TRAIN, VALIDATION, TEST = pairs(701, 1), pairs(23, 2), pairs(41, 3)


def write_parallel(folder: Path, name: str, content: list[Pair]) -> None:
    """`name`.en and `name`.de in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, ending in enumerate(("en", "de")):
        (folder / f"{name}.{ending}").write_text("".join(pair[side] + "\n" for pair in content), encoding="utf-8")


def write_data(folder: Path) -> Path:
    """train, val and test as parallel text in `folder`."""
    for name, content in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        write_parallel(folder, name, content)
    return folder


def recipe(data: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as plain values. changes: dotted keys, with "__" for the dots, and their values."""
    side = {
        "type": "transformer",
        "model_dim": 32,
        "num_layers": 1,
        "attention": {"heads": 2},
        "feed_forward": {"width": 64},
    }
    values: dict[str, Any] = {
        "task": "translate",
        "seed": 3,
        "data": {
            "source_language": "en",
            "target_language": "de",
            "root": str(data),
            "train": {"path": {"source": "train.en", "target": "train.de"}},
            "validation": {"path": {"source": "val.en", "target": "val.de"}},
            "test": {"path": {"source": "test.en", "target": "test.de"}},
            "max_tokens": 40,
            "batch": {"batch_tokens": 512},
        },
        "tokenizers": {"joint": True, "source": {"kind": "bpe", "vocab_size": 320}},
        "model": {"tie": "all", "encoder": side, "decoder": side},
        "training": {
            "max_steps": 260,
            "schedule": {"kind": "cosine", "peak": 1e-2, "warmup_steps": 20, "floor": 0.05},
            "label_smoothing": 0.0,
            "precision": "float32",
            "ema_decay": 0.9,
            "validate_every": 65,
            "checkpoint_every": 13,
            "final": ["last", "average"],
            "log_every": 5,
        },
        "validation": {"metric": "chrf", "decoding": {"max_length": 30}},
        "decoding": {"beam_size": 4, "max_length": 40},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = values
        for parent in parents:
            place = place[parent]
        place[last] = value
    return values


def write_recipe(path: Path, data: Path, **changes: Any) -> Path:
    """The recipe as a file; see `recipe`."""
    path.write_text(yaml.safe_dump(recipe(data, **changes), sort_keys=False), encoding="utf-8")
    return path
