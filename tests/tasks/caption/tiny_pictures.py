"""Pictures of two colours, and the recipe that learns to name them in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}


def two_colours(left: str, right: str, side: int = 16) -> Image.Image:
    """The left half in one colour, the right half in another."""
    picture = Image.new("RGB", (side, side), COLOURS[left])
    picture.paste(COLOURS[right], (side // 2, 0, side, side))
    return picture


def write_pictures(folder: Path) -> Path:
    """images/LEFT-RIGHT.png for every pair, and captions.tsv with two captions each, all in one split."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = ["file\tsplit\tclass\tcaption"]
    for left in COLOURS:
        for right in COLOURS:
            two_colours(left, right).save(folder / "images" / f"{left}-{right}.png")
            for text in (f"{left} beside {right}", f"there is {left} beside {right}"):
                rows.append(f"{left}-{right}.png\tall\t{left}\t{text}")
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n")
    return folder


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as plain values. changes: dotted keys, with "__" for the dots."""
    values: dict[str, Any] = {
        "task": "caption",
        "seed": 2,
        "data": {
            "root": str(folder),
            "train": {"path": "captions.tsv", "where": {"split": "all"}},
            "validation": {"path": "captions.tsv"},
            "test": {"path": "captions.tsv"},
            "picture": {"height": 16, "width": 16},
            "batch": {"batch_tokens": 4096, "max_sentences": 9},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 280, "min_frequency": 1},
        "model": {
            "encoder": {
                "type": "none",
                "model_dim": 24,
                "embedding": {
                    "type": "convolution", "channels": [16], "block": "plain", "stem_kernel": 4, "stem_stride": 4,
                },
            },
            "decoder": {
                "type": "show-attend-tell", "model_dim": 24, "state_dim": 32, "attention_dim": 24, "dropout": 0.0,
            },
        },
        "attention_penalty": 0.01,
        "training": {
            "max_steps": 90,
            "schedule": {"kind": "cosine", "peak": 2e-2, "warmup_steps": 5, "floor": 0.05},
            "precision": "float32",
            "validate_every": 90,
            "checkpoint_every": 90,
            "final": ["last"],
        },
        "validation": {"metric": "exact_match", "decoding": {"max_length": 20}},
        "decoding": {"beam_size": 2, "max_length": 20},
    }  # fmt: skip
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return values


def write_recipe(path: Path, folder: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe(folder, **changes), sort_keys=False))
    return path
