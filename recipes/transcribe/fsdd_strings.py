"""Strings of 3 to 7 spoken digits, made of the Free Spoken Digit Dataset's clips, with the true place of every word.

    python recipes/transcribe/fsdd_strings.py PATH/TO/fsdd OUT

The clips of a string are one speaker's, of one part: takes 0 to 4 test, 5 to 9 validation, 10 to 49 train. Between
two clips lie 0 to 200 ms of faint noise, before the first and behind the last one 50 to 200 ms. Everything is at 16 kHz
and drawn from a fixed seed. OUT gets test.jsonl, validation.jsonl, train.jsonl, their sounds as FLAC, and strings.tsv,
which lists every string by its clips and gaps. OUT/SPEAKER has the same with strings of that speaker's clips (all
takes) as its test set, and strings of the five others to learn from.

A word begins and ends where its clip's energy rises above, and falls below, a thousandth of its peak (30 dB).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr

SEED = 20
RATE = 16_000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = (3, 7)  # digits in a string
GAP_SECONDS = 0.2  # the longest between two clips
MARGIN_SECONDS = (0.05, 0.2)  # around a string
NOISE = 1e-3  # standard deviation, full scale 1: -60 dB
COUNTS = {"train": 2400, "validation": 120, "test": 200}  # strings of the official split
HELD_OUT_COUNT = 100  # strings of a speaker who is held out
TAKES = {"test": range(5), "validation": range(5, 10), "train": range(10, 50)}
_HOP, _FRAME = RATE // 200, RATE // 100  # 5 and 10 ms
_FLOOR_DECIBELS = 30.0


class Clips:
    """The clips at RATE, by speaker, digit and take."""

    def __init__(self, root: Path) -> None:
        self.sounds: dict[tuple[str, int, int], tuple[str, np.ndarray, float, float]] = {}
        with (root / "index.tsv").open() as file:
            for row in csv.DictReader(file, delimiter="\t"):
                samples, rate = soundfile.read(root / row["file"], dtype="float32")
                sound = soxr.resample(samples, rate, RATE)
                key = (row["speaker"], int(row["digit"]), int(row["take"]))
                self.sounds[key] = (Path(row["file"]).stem, sound, *onset_and_offset(sound))
        self.speakers = sorted({speaker for speaker, _, _ in self.sounds})


def onset_and_offset(sound: np.ndarray) -> tuple[float, float]:
    """Seconds: the begin of the first and the end of the last frame of 10 ms that is within 30 dB of the loudest."""
    starts = range(0, max(len(sound) - _FRAME, 1), _HOP)
    power = np.array([np.mean(np.square(sound[start : start + _FRAME])) for start in starts])
    loud = np.flatnonzero(power > power.max() * 10 ** (-_FLOOR_DECIBELS / 10))
    return starts[loud[0]] / RATE, min(starts[loud[-1]] + _FRAME, len(sound)) / RATE


def make(clips: Clips, folder: Path, part: str, count: int, speakers: list[str], takes: range, seed: int) -> str:
    """Writes `count` strings of these speakers; the lines of the list."""
    chance = np.random.default_rng(seed)
    (folder / part).mkdir(parents=True, exist_ok=True)
    manifest, listed = [], []
    for number in range(count):
        speaker = speakers[chance.integers(0, len(speakers))]
        length = int(chance.integers(LENGTHS[0], LENGTHS[1] + 1))
        chosen = [(int(chance.integers(0, 10)), int(chance.choice(list(takes)))) for _ in range(length)]
        gaps = [float(chance.uniform(*MARGIN_SECONDS))]
        gaps += [float(chance.uniform(0.0, GAP_SECONDS)) for _ in range(length - 1)]
        gaps.append(float(chance.uniform(*MARGIN_SECONDS)))
        gaps = [round(gap, 3) for gap in gaps]
        pieces, words, names, now = [np.zeros(round(gaps[0] * RATE), dtype=np.float32)], [], [], round(gaps[0] * RATE)
        for (digit, take), gap in zip(chosen, gaps[1:], strict=True):
            name, sound, begin, end = clips.sounds[speaker, digit, take]
            words.append([WORDS[digit], round(now / RATE + begin, 4), round(now / RATE + end, 4)])
            names.append(name)
            pieces += [sound, np.zeros(round(gap * RATE), dtype=np.float32)]
            now += len(sound) + round(gap * RATE)
        whole = np.concatenate(pieces)
        whole = np.clip(whole + chance.normal(0.0, NOISE, len(whole)), -1, 1).astype(np.float32)
        path = Path(part) / f"{number:04d}.flac"
        soundfile.write(folder / path, whole, RATE)
        text = " ".join(word for word, _, _ in words)
        manifest.append(json.dumps({"audio": str(path), "text": text, "speaker": speaker, "words": words}) + "\n")
        listed.append(f"{part}\t{number:04d}\t{' '.join(names)}\t{' '.join(f'{gap:.3f}' for gap in gaps)}\n")
    (folder / f"{part}.jsonl").write_text("".join(manifest))
    return "".join(listed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the dataset: index.tsv and wav/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="one speaker's held-out set, or `official`; all unless given")
    given = parser.parse_args()
    if not (given.root / "index.tsv").is_file():
        sys.exit(f"{given.root}: no index.tsv; give the folder of the Free Spoken Digit Dataset")
    clips = Clips(given.root)
    sets = {"official": (given.out, clips.speakers, None)}
    for speaker in clips.speakers:
        others = [other for other in clips.speakers if other != speaker]
        sets[speaker] = (given.out / speaker, others, speaker)
    for place, (name, (folder, speakers, held_out)) in enumerate(sets.items()):
        if given.only not in (None, name):
            continue
        listed = "part\tstring\tclips\tgaps_seconds\n"
        for number, part in enumerate(("test", "validation", "train")):
            is_held_out = held_out is not None and part == "test"
            count = HELD_OUT_COUNT if is_held_out else COUNTS[part]
            who, takes = ([held_out], range(50)) if is_held_out else (speakers, TAKES[part])
            listed += make(clips, folder, part, count, who, takes, SEED + 10 * place + number)
        (folder / "strings.tsv").write_text(listed)
        print(f"{name}: {folder}, list sha256 {hashlib.sha256(listed.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
