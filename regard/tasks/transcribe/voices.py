"""Synthetic speech with the true place of every word, by eSpeak NG.

The library comes as a wheel (espeakng-loader, the extra `voices`) and is called through its C interface. eSpeak NG is
free software under the GPL; it is loaded when something is to be said, and by nothing else in regard.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regard.errors import RegardError

# espeak_ng/speak_lib.h, revision 12.
_RETRIEVAL = 2  # of the sound, by callback, without playing it
_RATE, _PITCH, _RANGE, _WORDGAP = 1, 3, 4, 7  # parameters
_LIST_TERMINATED, _WORD, _END = 0, 1, 5  # kinds of event
_UTF8 = 1
_BUFFER_MILLISECONDS = 10_000
_SEED = 1


@dataclass(frozen=True)
class Voice:
    """How something is said. name: of eSpeak NG, as "en-us+f2". words_per_minute: 80 to 450. pitch: 0 to 99, 50 is
    usual. pitch_range: 0 is monotonous. gap_milliseconds: between words, in tens."""

    name: str
    words_per_minute: int = 170
    pitch: int = 50
    pitch_range: int = 50
    gap_milliseconds: int = 0


@dataclass(frozen=True)
class Said:
    """samples: float32, full scale 1. begins: where each word begins, seconds; end: where the last one ends."""

    samples: np.ndarray
    sample_rate: int
    begins: tuple[float, ...]
    end: float


class _Event(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("content", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Synthesiser:
    """Says words. The library keeps its state in the process: one at a time.

    Raises: RegardError when the extra is not installed or the library does not start.
    """

    def __init__(self) -> None:
        try:
            loader: Any = importlib.import_module("espeakng_loader")
        except ImportError as error:
            raise RegardError(
                "synthetic voices need the package espeakng-loader (eSpeak NG, GPL); pip install 'regard[voices]'"
            ) from error
        try:
            self._library = ctypes.CDLL(loader.get_library_path())
        except OSError as error:
            raise RegardError(f"eSpeak NG cannot be loaded ({error}); install espeakng-loader again") from None
        data = str(loader.get_data_path()).encode()
        self.sample_rate = int(self._library.espeak_Initialize(_RETRIEVAL, _BUFFER_MILLISECONDS, data, 0))
        if self.sample_rate <= 0:
            raise RegardError(f"eSpeak NG does not start with the data in {data!r}; install espeakng-loader again")
        self._pieces: list[bytes] = []
        self._events: list[tuple[int, int]] = []
        self._callback = _CALLBACK(self._heard)  # kept: the library calls it later
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, words: Sequence[str], voice: Voice) -> Said:
        """The words, one after the other. Raises: RegardError for a voice that is not there."""
        library = self._library
        if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise RegardError(f"eSpeak NG has no voice {voice.name!r}; expected one as en-us+f2")
        for parameter, value in (
            (_RATE, voice.words_per_minute),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
            (_WORDGAP, voice.gap_milliseconds // 10),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(_SEED)  # of breath and hiss, which otherwise follow the clock
        self._pieces, self._events = [], []
        text = " ".join(words).encode()
        library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        samples = np.frombuffer(b"".join(self._pieces), dtype="<i2").astype(np.float32) / 32768.0
        begins = tuple(sample / self.sample_rate for kind, sample in self._events if kind == _WORD)
        ends = [sample / self.sample_rate for kind, sample in self._events if kind == _END]
        if len(begins) != len(words) or not len(samples):
            raise RegardError(f"eSpeak NG said {len(begins)} words of {' '.join(words)!r}; give plain words")
        return Said(samples, self.sample_rate, begins, ends[-1] if ends else len(samples) / self.sample_rate)

    def _heard(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        place = 0
        while events[place].kind != _LIST_TERMINATED:
            self._events.append((events[place].kind, events[place].sample))
            place += 1
        return 0
