"""Reports small enough to be learnt in seconds, whose winners can only be copied, and the recipe that learns them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

Pair = tuple[str, str]


def name(chosen: random.Random) -> str:
    """A name that hardly any other report has."""
    return "".join(chosen.choice("BDFGKLMNPRST") + chosen.choice("aeiou") for _ in range(4)).capitalize()


def pairs(count: int, seed: int) -> list[Pair]:
    chosen, found = random.Random(seed), []
    for _ in range(count):
        winner, loser, town = (name(chosen) for _ in range(3))
        parts = [f"The winner was {winner}.", f"The loser was {loser}.", f"All met in {town}."]
        chosen.shuffle(parts)
        found.append((" ".join(parts), f"{winner} beat {loser}"))
    return found


TRAIN, VALIDATION, TEST = pairs(600, 1), pairs(20, 2), pairs(30, 3)


def write_reports(folder: Path) -> Path:
    """train.tsv, validation.tsv and test.tsv in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        lines = ["document\tsummary", *("\t".join(pair) for pair in content)]
        (folder / f"{part}.tsv").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def recipe(data: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as plain values. changes: dotted keys, with "__" for the dots, and their values."""
    columns = {"source": "document", "target": "summary"}
    values: dict[str, Any] = {
        "task": "summarize",
        "data": {
            "root": str(data),
            **{part: {"path": f"{part}.tsv", "columns": columns} for part in ("train", "validation", "test")},
            "max_tokens": 40,
            "max_summary_tokens": 12,
            "batch": {"batch_tokens": 600},
        },
        "tokenizer": {"kind": "words", "vocab_size": 30, "min_frequency": 50},
        "model": {
            "tie": "all",
            "copy": {"attention": "decoder"},
            "encoder": {"type": "recurrent", "model_dim": 32, "dropout": 0.0},
            "decoder": {
                "type": "attention-rnn",
                "model_dim": 32,
                "attention_dim": 32,
                "score": "bilinear",
                "cell": "conditional-gru",
                "dropout": 0.0,
            },
        },
        "training": {
            "max_steps": 80,
            "schedule": {"kind": "cosine", "peak": 1.0e-2, "warmup_steps": 10, "floor": 0.02},
            "label_smoothing": 0.0,
            "precision": "float32",
            "validate_every": 40,
            "checkpoint_every": 40,
            "final": ["last"],
            "attention_every": 30,
        },
        "validation": {"metric": "exact", "decoding": {"max_length": 12}},
        "decoding": {"beam_size": 3, "max_length": 12},
    }
    for key, value in changes.items():
        place = values
        *parents, last = key.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    return values


def write_recipe(path: Path, data: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe(data, **changes), sort_keys=False), encoding="utf-8")
    return path
