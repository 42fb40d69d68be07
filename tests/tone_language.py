"""A language of three words, each a tone, which a tiny model learns in seconds: for tests of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sound_files import wav_bytes

RATE = 8000
TONES = {"low": 350.0, "mid": 900.0, "high": 2300.0}
WORD_SECONDS, GAP_SECONDS = 0.16, 0.12


def said(words: list[str], chance: np.random.Generator) -> tuple[np.ndarray, list[list[Any]]]:
    """A sound at RATE of these words with pauses around them, and [word, begin, end] of each, seconds."""
    parts, places, now = [np.zeros(int(GAP_SECONDS * RATE))], [], GAP_SECONDS
    for word in words:
        length = int(RATE * WORD_SECONDS * chance.uniform(0.9, 1.3))
        time = np.arange(length) / RATE
        tone = np.sin(2 * np.pi * TONES[word] * chance.uniform(0.97, 1.03) * time) * np.hanning(length) ** 0.3
        parts += [0.5 * tone, np.zeros(int(GAP_SECONDS * RATE))]
        places.append([word, round(now, 4), round(now + length / RATE, 4)])
        now += length / RATE + GAP_SECONDS
    sound = np.concatenate(parts)
    return (sound + chance.normal(0, 1e-3, len(sound))).astype(np.float32), places


def write(folder: Path, name: str, count: int, seed: int, most_words: int = 4) -> Path:
    """`count` sounds and their manifest NAME.jsonl, with the true places of words; its path."""
    chance = np.random.default_rng(seed)
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        words = [list(TONES)[place] for place in chance.integers(0, 3, size=chance.integers(1, most_words + 1))]
        sound, places = said(words, chance)
        path = folder / "wav" / f"{name}-{number:03d}.wav"
        path.write_bytes(wav_bytes(sound, RATE))
        lines.append({"audio": f"wav/{path.name}", "text": " ".join(words), "words": places})
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe over the manifests in `folder`, as plain values. changes: of its top level."""
    feed_forward = {"width": 32}
    attention = {"heads": 2, "rotary_base": 1000.0}
    source = {"type": "speech", "channels": 4, "stride": 4, "normalization": "corpus"}
    return {
        "task": "transcribe",
        "data": {
            "root": str(folder),
            "train": {"path": "train.jsonl"},
            "validation": {"path": "validation.jsonl"},
            "test": {"path": "test.jsonl"},
            "max_tokens": 400,
            "batch": {"batch_tokens": 2000},
        },
        "front_end": {"sample_rate": RATE, "num_mels": 16},
        "tokenizer": {"kind": "whole-words", "vocab_size": 300},
        "model": {
            "encoder": {
                "type": "conformer", "model_dim": 24, "num_layers": 1, "attention": attention,
                "feed_forward": feed_forward, "kernel": 5, "embedding": source, "dropout": 0.0,
            },
            "decoder": {
                "type": "transformer", "model_dim": 24, "num_layers": 1, "attention": {"heads": 2},
                "feed_forward": feed_forward, "dropout": 0.0,
            },
            "ctc": {"weight": 0.5, "dropout": 0.0},
        },
        "training": {
            "max_steps": 200,
            "schedule": {"kind": "cosine", "peak": 0.015, "warmup_steps": 15},
            "validate_every": 200, "checkpoint_every": 200, "log_every": 20, "final": ["last"],
            "label_smoothing": 0.0, "precision": "float32",
        },
        "decoding": {"search": {"beam_size": 3, "length_penalty": 0.0, "max_length": 12}, "ctc_weight": 0.5},
        **changes,
    }  # fmt: skip
