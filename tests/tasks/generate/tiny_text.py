"""A text small enough to be learnt in seconds, and recipes that learn it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

WORDS = ["ada", "bob", "cyd", "dot"]  # each is always followed by the next


def sentences(count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    found = []
    for _ in range(count):
        begin = chosen.randrange(len(WORDS))
        found.append(" ".join(WORDS[(begin + place) % len(WORDS)] for place in range(chosen.randrange(3, 9))) + ".")
    return found


def recipe(folder: Path, **changes: Any) -> Path:
    """Writes text and recipe into `folder`. changes: dotted keys, with "__" for the dots, and their values."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", 200, 1), ("validation", 12, 2), ("test", 15, 3)):
        (folder / f"{name}.txt").write_text("".join(f"{one}\n" for one in sentences(count, seed)), encoding="utf-8")
    values: dict[str, Any] = {
        "task": "generate",
        "data": {
            "root": str(folder),
            "train": {"path": "train.txt"},
            "validation": {"path": "validation.txt"},
            "test": {"path": "test.txt"},
            "batch": {"window_tokens": 64, "num_windows": 8},
        },
        "tokenizer": {"kind": "characters", "vocab_size": 300},
        "model": {
            "model_dim": 32,
            "num_layers": 2,
            "attention": {"heads": 4, "kv_heads": 2, "rotary_base": 1000.0, "bias": False},
            "feed_forward": {"width": 64, "activation": "silu", "gated": True, "bias": False},
            "embedding": {"positions": "none"},
            "norm": {"kind": "rms"},
            "dropout": 0.0,
        },
        "training": {
            "max_steps": 120,
            "label_smoothing": 0.0,
            "schedule": {"kind": "cosine", "peak": 0.01, "warmup_steps": 10},
            "validate_every": 60,
            "checkpoint_every": 60,
            "final": ["last"],
            "precision": "float32",
            "log_every": 20,
        },
        "decoding": {"max_length": 40},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
