"""Sound files: read whole or as a stream of blocks, mixed down to one channel, resampled to the rate that is wanted.

WAV, FLAC, OGG and MP3 are decoded by libsndfile, rates changed by soxr; both come with the extra `speech` and are
imported when a file is first read. Every way in which a file can be no sound is one line that names it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Any

import numpy as np

from regard.errors import ConfigError, DataError, RegardError
from regard.inputs.front_end import MAX_RATE, MIN_RATE

BLOCK_SECONDS = 30.0  # read at a time
_HELD_BLOCKS_BYTES = 2**31  # a header that announces more channels x samples a block than this lies
_RIFF_UNKNOWN = (0, 0xFFFFFFFF)  # how programs that write into a pipe fill in a size that they do not know yet


class SoundError(DataError):
    """A file that is no sound. reason: the kind of fault in a few words, for counting."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return SoundError, (str(self), self.reason)


@dataclass(frozen=True)
class SoundInfo:
    """What a file's header says, and the length in seconds that follows."""

    name: str
    sample_rate: int  # Hz
    channels: int
    num_samples: int  # of one channel
    format: str

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate


def sound_info(file: str | os.PathLike[str] | IO[bytes], name: str = "") -> SoundInfo:
    """What a sound file is, from its header alone. name: how errors call a file that is no path. Raises: DataError."""
    with _opened(file, name or _name(file)) as (_, info):
        return info


def read_sound(
    file: str | os.PathLike[str] | IO[bytes],
    sample_rate: int,
    *,
    name: str = "",
    begin_seconds: float = 0.0,
    seconds: float | None = None,
) -> np.ndarray:
    """float32 [samples] at `sample_rate` Hz, full scale 1; several channels are averaged.

    name: how errors call a file that is no path. begin_seconds, seconds: a part of it; to the end unless given; of no
    length, it has no samples.
    Raises: DataError for a file that is missing, empty, cut off or no sound, or whose header says what cannot be.
    """
    blocks = list(sound_blocks(file, sample_rate, name=name, begin_seconds=begin_seconds, seconds=seconds))
    return np.concatenate([np.zeros(0, dtype=np.float32), *blocks])


def sound_blocks(
    file: str | os.PathLike[str] | IO[bytes],
    sample_rate: int,
    *,
    name: str = "",
    begin_seconds: float = 0.0,
    seconds: float | None = None,
    block_seconds: float = BLOCK_SECONDS,
) -> Iterator[np.ndarray]:
    """What `read_sound` gives, in blocks of about `block_seconds`, so that memory does not grow with the length.

    Joined, the blocks are the whole sound: the resampler goes over their borders. A file that turns out to be cut off
    raises its DataError when it ends.
    """
    name = name or _name(file)
    with _opened(file, name) as (opened, info):
        begin = round(begin_seconds * info.sample_rate)
        wanted = info.num_samples - begin
        if begin_seconds < 0 or wanted <= 0:
            raise SoundError(
                f"{name}: has {info.seconds:.2f} s, asked for a part from {begin_seconds:g} s on; give a smaller one",
                "too short",
            )
        if seconds is not None:
            wanted = min(wanted, round(seconds * info.sample_rate))
        if begin:
            opened.seek(begin)
        resampler = None
        if info.sample_rate != sample_rate:
            resampler = _package("soxr").ResampleStream(info.sample_rate, sample_rate, 1, dtype="float32")
        left, size = wanted, max(int(block_seconds * info.sample_rate), 1)
        while left > 0:
            block = _decoded(opened, min(size, left), name)
            if not len(block):
                raise _cut_off(name, wanted / info.sample_rate, (wanted - left) / info.sample_rate)
            left -= len(block)
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(1, dtype=np.float32)
            if not np.isfinite(mono.sum()):
                raise SoundError(f"{name}: holds samples that are not finite; look at how it was made", "non-finite")
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=left <= 0)
            if len(mono):
                yield mono


def at_speed(sound: np.ndarray, speed: float) -> np.ndarray:
    """The sound played `speed` times as fast, pitch and all, so that it is as much shorter.

    Source: Ko et al. 2015, audio augmentation for speech recognition.
    """
    if speed == 1.0:
        return sound
    if not 0.25 <= speed <= 4.0:
        raise ConfigError(f"speed is {speed:g}, expected 0.25 to 4")
    played: np.ndarray = _package("soxr").resample(sound, 1000.0 * speed, 1000.0)
    return played


def resampled(sound: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """float32 [samples] of a sound at another rate, in Hz."""
    if from_rate == to_rate:
        return sound.astype(np.float32, copy=False)
    if not MIN_RATE <= from_rate <= MAX_RATE:
        raise DataError(f"sound: its rate is {from_rate} Hz, expected {MIN_RATE} to {MAX_RATE}; give the true one")
    changed: np.ndarray = _package("soxr").resample(sound.astype(np.float32, copy=False), from_rate, to_rate)
    return changed


def is_silent(sound: np.ndarray, full_scale_share: float = 1e-4) -> bool:
    """Whether nothing in a sound leaves its mean by more than a ten-thousandth of full scale (-80 dB)."""
    return not len(sound) or float(sound.max() - sound.min()) < 2 * full_scale_share


@contextmanager
def _opened(file: Any, name: str) -> Iterator[tuple[Any, SoundInfo]]:
    """The file, opened by soundfile, and what its header says; checked. Raises: DataError."""
    soundfile = _package("soundfile")
    if isinstance(file, str | os.PathLike):
        if os.path.isdir(file):
            raise SoundError(f"{name}: is a folder, expected a sound file; name the files in it", "folder")
        try:
            size = os.path.getsize(file)
            with open(file, "rb") as beginning:
                promised = _missing_seconds(beginning, size)
        except OSError as error:
            raise SoundError(f"{name}: cannot be read ({error.strerror}); check the path", "missing") from None
        target: Any = os.fspath(file)
    else:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        promised = _missing_seconds(file, size)
        file.seek(0)
        target = file
    if not size:
        raise SoundError(f"{name}: the file is empty, expected a sound; check how it was made", "empty")
    if promised is not None:
        raise _cut_off(name, *promised)
    try:
        opened = soundfile.SoundFile(target)
    except Exception as error:  # libsndfile's errors, and those of a header without sense (0 Hz divides by zero)
        raise _no_sound(name, error) from None
    with opened:
        info = SoundInfo(name, int(opened.samplerate), int(opened.channels), int(opened.frames), str(opened.format))
        _check(info)
        yield opened, info


def _check(info: SoundInfo) -> None:
    if not MIN_RATE <= info.sample_rate <= MAX_RATE:
        raise SoundError(
            f"{info.name}: its header says {info.sample_rate} Hz, expected {MIN_RATE} to {MAX_RATE}; "
            "write the file again with its true rate",
            "impossible rate in",
        )
    if info.channels * info.sample_rate * BLOCK_SECONDS * 4 > _HELD_BLOCKS_BYTES:
        raise SoundError(
            f"{info.name}: its header says {info.channels} channels; mix them down before", "too many channels in"
        )
    if info.num_samples <= 0:
        raise SoundError(f"{info.name}: holds no sound (0 samples); check how it was made", "empty")


def _decoded(opened: Any, count: int, name: str) -> np.ndarray:
    try:
        block: np.ndarray = opened.read(count, dtype="float32", always_2d=True)
    except Exception as error:
        raise _no_sound(name, error) from None
    return block


def _missing_seconds(file: IO[bytes], size: int) -> tuple[float, float] | None:
    """What a WAV file's header promises and what is there, in seconds, where that is less; None where all is there.

    libsndfile reads a file that was cut off as if it were a shorter one.
    """
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    bytes_a_second, place = 0, 12
    while place + 8 <= size:
        file.seek(place)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"fmt " and length >= 16 and place + 20 <= size:
            bytes_a_second = struct.unpack("<8xI", file.read(12))[0]
        elif kind == b"data":
            there = size - place - 8
            if length in _RIFF_UNKNOWN or length <= there or not bytes_a_second:
                return None
            return length / bytes_a_second, there / bytes_a_second
        place += 8 + length + length % 2
    return None


def _cut_off(name: str, promised: float, there: float) -> SoundError:
    return SoundError(
        f"{name}: cut off: its header promises {promised:.2f} s, the file holds {there:.2f} s; copy it again", "cut-off"
    )


def _no_sound(name: str, error: Exception) -> SoundError:
    reason = " ".join(str(getattr(error, "error_string", "") or error).split()).rstrip(".") or type(error).__name__
    return SoundError(f"{name}: no readable sound ({reason}); expected WAV, FLAC, OGG or MP3", "unreadable")


def _name(file: Any) -> str:
    return os.fspath(file) if isinstance(file, str | os.PathLike) else str(getattr(file, "name", "sound"))


def _package(name: str) -> ModuleType:
    """soundfile or soxr, imported when first needed. Raises: RegardError naming the extra."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RegardError(
            f"reading sound files needs the package {name}, which is missing; pip install 'regard[speech]'"
        ) from error
    except OSError as error:  # soundfile without libsndfile
        raise RegardError(f"reading sound files: {name} does not work here ({error}); install libsndfile") from error
