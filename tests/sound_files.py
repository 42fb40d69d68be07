"""Sounds for tests: made here, written as files of every kind, whole and broken."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    """float32 [samples], half of full scale."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav_bytes(samples: np.ndarray, rate: int, *, channels: int = 1, promised_bytes: int | None = None) -> bytes:
    """A 16-bit WAV file. samples: [samples * channels], full scale 1. promised_bytes: what its header says of them."""
    data = (samples * 32767).astype("<i2").tobytes()
    said = len(data) if promised_bytes is None else promised_bytes
    layout = struct.pack("<HHIIHH", 1, channels, rate, min(rate * channels * 2, 0xFFFFFFFF), channels * 2, 16)
    head = b"RIFF" + struct.pack("<I", min(36 + said, 0xFFFFFFFF)) + b"WAVEfmt " + struct.pack("<I", 16) + layout
    return head + b"data" + struct.pack("<I", said) + data


def broken_files(folder: Path) -> dict[str, Path]:
    """A file for each way of being no sound, by what is wrong with it."""
    rate = 16000
    sound = tone(0.5, rate)
    contents = {
        "empty": b"",
        "text": b"this is a text, whatever its name says\n" * 20,
        "cut": wav_bytes(sound, rate)[:9000],
        "header alone": wav_bytes(sound, rate)[:30],
        "no samples": wav_bytes(sound[:0], rate),
        "0 Hz": wav_bytes(sound, 0),
        "1 GHz": wav_bytes(sound, 1_000_000_000),
        "noise": bytes(range(256)) * 8,
    }
    files = {}
    for name, content in contents.items():
        files[name] = folder / f"{name.replace(' ', '-')}.wav"
        files[name].write_bytes(content)
    return files
