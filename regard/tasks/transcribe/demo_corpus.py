"""The demo's phrases: digits and months, said by many synthetic voices.

Held-out phrases are other strings of words than those of training. What surrounds the words differs, too: pauses before
and behind, loudness, and a floor of noise. All is drawn from the seed; eSpeak NG's sound also depends a little on what
it said before in the same process, so that the first phrases that a process makes are the same every time.
"""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regard.tasks.transcribe.voices import Synthesiser, Voice

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
LANGUAGES = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp")
VARIANTS = ("", "+m1", "+m2", "+m3", "+m5", "+m7", "+f1", "+f2", "+f3", "+f5")


@dataclass(frozen=True)
class Phrase:
    """samples: float32, full scale 1. begins, end: of the words, seconds from the first sample."""

    name: str
    words: tuple[str, ...]
    samples: np.ndarray
    sample_rate: int
    begins: tuple[float, ...]
    end: float

    @property
    def text(self) -> str:
        return " ".join(self.words)


def phrases(seed: int, num_train: int, num_validation: int, num_test: int) -> dict[str, list[Phrase]]:
    """Phrases by part: train, validation, test; no two of all have the same words.

    Raises: RegardError when the synthesiser is not there.
    """
    chance = np.random.default_rng(seed)
    synthesiser = Synthesiser()
    seen: set[tuple[str, ...]] = set()
    parts: dict[str, list[Phrase]] = {}
    for part, count in (("test", num_test), ("validation", num_validation), ("train", num_train)):
        parts[part] = []
        while len(parts[part]) < count:
            words = _words(chance)
            if words not in seen:
                seen.add(words)
                parts[part].append(_said(f"{part}-{len(parts[part]):04d}", words, chance, synthesiser))
    return parts


def write_manifest(folder: Path, name: str, chosen: Sequence[Phrase]) -> Path:
    """WAV files and a manifest NAME.jsonl of them; its path."""
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    lines = []
    for phrase in chosen:
        path = Path("wav") / f"{phrase.name}.wav"
        with wave.open(str(folder / path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(phrase.sample_rate)
            file.writeframes((phrase.samples * 32767).astype("<i2").tobytes())
        seconds = round(len(phrase.samples) / phrase.sample_rate, 4)
        ends = (*phrase.begins[1:], phrase.end)
        words = [
            [word, round(begin, 4), round(end, 4)]
            for word, begin, end in zip(phrase.words, phrase.begins, ends, strict=True)
        ]
        lines.append(json.dumps({"audio": str(path), "text": phrase.text, "duration": seconds, "words": words}) + "\n")
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(lines))
    return manifest


def _words(chance: np.random.Generator) -> tuple[str, ...]:
    """A number of 2 to 5 digits, a date ("march one seven"), or a date between numbers."""
    digits = [DIGITS[place] for place in chance.integers(0, 10, size=5)]
    month = MONTHS[chance.integers(0, 12)]
    kind = chance.integers(0, 4)
    if kind == 0:
        return tuple(digits[: chance.integers(2, 6)])
    if kind == 1:
        return (month, *digits[: chance.integers(1, 4)])
    if kind == 2:
        return (*digits[: chance.integers(1, 3)], month, *digits[3 : chance.integers(4, 6)])
    return (month, digits[0], MONTHS[chance.integers(0, 12)], digits[1])


def _said(name: str, words: tuple[str, ...], chance: np.random.Generator, synthesiser: Synthesiser) -> Phrase:
    voice = Voice(
        LANGUAGES[chance.integers(0, len(LANGUAGES))] + VARIANTS[chance.integers(0, len(VARIANTS))],
        words_per_minute=int(chance.integers(130, 231)),
        pitch=int(chance.integers(25, 76)),
        pitch_range=int(chance.integers(20, 81)),
        gap_milliseconds=10 * int(chance.integers(0, 11)),
    )
    said = synthesiser.say(words, voice)
    before, behind = (int(said.sample_rate * chance.uniform(0.05, 0.3)) for _ in range(2))
    loudness = 10 ** chance.uniform(-0.8, 0.0)
    samples = np.pad(said.samples, (before, behind)) * loudness
    samples = samples + chance.normal(0.0, 10 ** chance.uniform(-4, -2.7), size=len(samples))
    shift = before / said.sample_rate
    return Phrase(
        name,
        words,
        np.clip(samples, -1.0, 1.0).astype(np.float32),
        said.sample_rate,
        tuple(begin + shift for begin in said.begins),
        said.end + shift,
    )
