"""Log-mel features of speech: regard's front end beside librosa's on the same clips, in the same process.

Needs librosa, which no part of regard does: pip install librosa

    OMP_NUM_THREADS=2 python benchmarks/speech_features.py [--clips FOLDER] [--rounds 9] [--write]

Both compute 80 mel bands from 16 kHz sound in frames of 25 ms every 10 ms, in float32, from samples in memory; librosa
takes one clip after the other, since it has no batches of unequal lengths, and regard all at once. In every round both
are timed one after the other. Before, both are held against each other: no speed is quoted from features that differ.
A second line has regard taking one clip at a time, too.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from regard.inputs.front_end import FrontEnd, FrontEndConfig
from regard.inputs.sound import read_sound

RATE, MELS = 16_000, 80
CONFIG = FrontEndConfig(sample_rate=RATE, num_mels=MELS)
RESULTS = Path(__file__).parent / "results" / "speech_features.md"


def clips_of(folder: Path | None, count: int) -> list[np.ndarray]:
    """Sounds at RATE: the first `count` files of a folder, or coloured noise of 1 to 8 s."""
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".wav", ".flac"))[:count]
        if not paths:
            sys.exit(f"{folder}: no .wav or .flac in it")
        return [read_sound(path, RATE) for path in paths]
    chance = np.random.default_rng(1)
    lengths = chance.integers(RATE, 8 * RATE, size=count)
    return [0.1 * np.convolve(chance.normal(size=n), [1, 0.9, 0.5], "same").astype(np.float32) for n in lengths]


def theirs(clips: list[np.ndarray]) -> list[np.ndarray]:
    """librosa's, with HTK's mel scale and without the normalisation of areas, as Kaldi has them."""
    import librosa

    found = []
    # It puts a window of 400 into the middle of the transform's 512 samples.
    margin = (CONFIG.fft_size - CONFIG.frame_samples) // 2
    for clip in clips:
        power = librosa.feature.melspectrogram(
            y=np.pad(clip, margin),
            sr=RATE,
            n_fft=CONFIG.fft_size,
            win_length=CONFIG.frame_samples,
            hop_length=CONFIG.shift_samples,
            n_mels=MELS,
            fmin=CONFIG.low_hz,
            fmax=CONFIG.end_hz,
            htk=True,
            norm=None,
            center=False,
        )
        found.append(np.log(np.maximum(power, 1e-10)).T)
    return found


def check(ours: list[torch.Tensor], others: list[np.ndarray]) -> float:
    """The least correlation of a clip's features; they differ in window and pre-emphasis, so that each band's mean is
    taken off before."""
    least = 1.0
    for one, other in zip(ours, others, strict=True):
        count = min(len(one), len(other))
        left, right = one[:count].numpy(), other[:count]
        left, right = left - left.mean(0), right - right.mean(0)
        least = min(least, float((left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum())))
    return least


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, help="folder of sounds; noise unless given")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name}")
    given = parser.parse_args()
    try:
        import librosa
    except ImportError:
        sys.exit("librosa is missing; pip install librosa")
    clips = clips_of(given.clips, given.count)
    seconds = sum(map(len, clips)) / RATE
    front_end = FrontEnd(CONFIG)
    ours, others = front_end(clips), theirs(clips)  # also warms both up
    agreement = check(ours, others)
    if agreement < 0.8:
        sys.exit(f"the features correlate by {agreement:.2f} only: no speed is quoted from features that differ")
    ways: dict[str, Callable[[], object]] = {
        "regard, all clips at once": lambda: front_end(clips),
        "regard, clip by clip": lambda: [front_end([clip]) for clip in clips],
    }
    lines = [
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"librosa {librosa.__version__}, numpy {np.__version__}",
        f"{len(clips)} clips, {seconds:.0f} s of sound{'' if given.clips else ' (noise)'}; least correlation "
        f"{agreement:.3f}; {given.rounds} rounds, median and spread",
        "",
        "| way | times real time | librosa's time over it |",
        "|---|---|---|",
    ]
    for name, work in ways.items():
        ratios, speeds = [], []
        for _ in range(given.rounds):
            own, other = seconds_of(work), seconds_of(lambda: theirs(clips))
            ratios.append(other / own)
            speeds.append(seconds / own)
        lines.append(
            f"| {name} | {statistics.median(speeds):,.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    print("\n".join(lines))
    if given.write:
        command = " ".join(["python benchmarks/speech_features.py", *sys.argv[1:]])
        RESULTS.write_text(f"# Speech features\n\n`{command}`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
