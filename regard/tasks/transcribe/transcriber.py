"""A trained speech model: loaded by path, asked for transcripts, written as a model directory."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

import regard.lens  # noqa: F401  (teaches records to save themselves as pages and pictures)
from regard.data.batches import TokenBudget
from regard.data.batches import cut as cut_batches
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, DataError
from regard.inputs.front_end import FrontEnd, FrontEndConfig
from regard.inputs.sound import is_silent, resampled, sound_blocks, sound_info
from regard.inputs.text import Tokenizer
from regard.models.sliding import SlidingDecoder
from regard.tasks import model_directory
from regard.tasks.loading import config_of, fitted, tokenizer_of
from regard.tasks.recipe import plain, validated
from regard.tasks.transcribe.assembly import Heard, assembled, heard_of
from regard.tasks.transcribe.recipe import built
from regard.tasks.transcribe.result import Transcript
from regard.tasks.transcribe.scoring import Compared
from regard.tasks.transcribe.search import (
    AcousticConfig,
    AcousticModel,
    Found,
    LanguageModelVoter,
    SpeechDecoding,
    search,
)
from regard.tasks.transcribe.windows import Window, windows
from regard.tasks.transcribe.word_times import MIDWAY, Heads, Method, Placement, Timing
from regard.training.averaging import weights_of

TOKENIZER = "tokenizer.json"
WINDOWS_AT_ONCE = 16  # decoded together: half a minute each is 30 MB of sound
# The shortest window: a model of single words hears a little more than the word.
LEAST_WINDOW_SECONDS = 2.0

Sound = str | os.PathLike[str] | np.ndarray | tuple[np.ndarray, int] | IO[bytes]


@dataclass(frozen=True)
class TranscriberConfig:
    """What a model directory says beside the model itself."""

    front_end: FrontEndConfig
    model: AcousticConfig
    decoding: SpeechDecoding
    longest_frames: int  # the longest sound that training saw; a longer one is heard in windows
    training: dict[str, Any]  # where the model comes from: recipe, data hash, scores; for people and for `evaluate`
    # What says when words were said; where validation knew the places of words, the better one there.
    timestamps: Method = "ctc"
    placement: Placement = MIDWAY  # where words meet between what says them; found on validation, too
    compared: Compared = "exact"  # how transcripts are compared with references
    decoding_frames: int = 20_000  # padded frames decoded at once
    _: dataclasses.KW_ONLY
    language: str | None = field(default=None)
    # The heads of cross-attention that follow the sound, where attention says when words were said; None: all.
    heads: Heads | None = None

    def __post_init__(self) -> None:
        self.decoding.check()
        if self.longest_frames < 1:
            raise ConfigError(f"longest_frames is {self.longest_frames}, expected 1 or more")

    @property
    def timing(self) -> Timing:
        return Timing(self.timestamps, self.placement, self.heads)

    @property
    def window_seconds(self) -> float:
        return max(self.longest_frames * self.front_end.shift_seconds, LEAST_WINDOW_SECONDS)


class Transcriber:
    """model: in evaluation mode, on the device and in the dtype that it computes in."""

    def __init__(self, model: AcousticModel, tokenizer: Tokenizer, config: TranscriberConfig) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config
        self.front_end = FrontEnd(config.front_end)
        self._language_models: dict[str, LanguageModelVoter] = {}

    @classmethod
    def load(
        cls, directory: model_directory.ModelDirectory, device: torch.device | str, dtype: torch.dtype
    ) -> Transcriber:
        """The model that `save` wrote. Raises: ModelFileError when the files do not fit each other."""
        tokenizer = tokenizer_of(directory, "target")
        config = config_of(directory, TranscriberConfig)
        model = fitted(directory, lambda: built(config.front_end, len(tokenizer), config.model))
        return cls(model.to(device=device, dtype=dtype), tokenizer, config)

    def __repr__(self) -> str:
        return f"Transcriber({self.config.front_end.sample_rate} Hz, {self.model.num_parameters():,} parameters)"

    def save(self, folder: Path, card: str = "") -> None:
        """Writes a model directory. card: the text of its README.md."""
        texts = {TOKENIZER: self.tokenizer.to_json()} | ({"README.md": card} if card else {})
        config = {**json.loads(json.dumps(plain(self.config))), "tokenizers": {"target": TOKENIZER}}
        model_directory.write(folder, task="transcribe", config=config, weights=weights_of(self.model), texts=texts)

    # -- sounds --------------------------------------------------------------------------------------------------------

    def transcribe(
        self,
        sounds: Iterable[Sound],
        decoding: SpeechDecoding | None = None,
        *,
        timestamps: bool = False,
        attention: bool = False,
        **changes: Any,
    ) -> list[Transcript]:
        """A transcript of each sound, in their order.

        sounds: paths of sound files, or arrays of samples (full scale 1) at the model's rate, or (array, rate) pairs.
        decoding: how to search; the model's own unless given. changes: single fields of its search, as in beam_size=1.
        timestamps: also say when each word was said. attention: also return what the decoder attended to.

        A sound without any signal has an empty transcript. Raises: ConfigError for options that cannot work; DataError
        naming the first sound that is none; `transcribe_each` goes on with the rest.
        """
        results = []
        for one in self.transcribe_each(sounds, decoding, timestamps=timestamps, attention=attention, **changes):
            if isinstance(one, DataError):
                raise one
            results.append(one)
        return results

    def transcribe_each(
        self,
        sounds: Iterable[Sound],
        decoding: SpeechDecoding | None = None,
        *,
        timestamps: bool = False,
        attention: bool = False,
        **changes: Any,
    ) -> Iterator[Transcript | DataError]:
        """As `transcribe`, one by one as they are done; a sound that cannot be read is its error.

        Memory is that of a few windows, whatever the sounds' lengths: files are read as streams.
        """
        decoding = self.decoding_with(decoding, **changes)
        if isinstance(sounds, str | os.PathLike):
            raise DataError("transcribe: expected a list of sounds, as in transcribe(['a.wav'])")
        language_model = self._language_model(decoding)
        waiting: list[tuple[_Piece, np.ndarray | None]] = []  # windows that are read and not yet decoded
        heard: dict[int, list[Heard]] = {}  # by number of the sound, of sounds not yet told

        def decode() -> None:
            frames = [one for _, one in waiting if one is not None]
            # Windows are joined by the times of their words.
            with_words = [timestamps or piece.window > 0 or not piece.is_last for piece, _ in waiting]
            looks = attention or (any(with_words) and self._times_by_attention)
            found = iter(self.recognise(frames, decoding, attention=looks, language_model=language_model))
            for (piece, one), words in zip(waiting, with_words, strict=True):
                output = next(found) if one is not None else None
                heard.setdefault(piece.sound, []).append(self._heard(piece, output, one, words, attention))
            waiting.clear()

        told = 0
        ended: dict[int, tuple[str, float] | DataError] = {}  # sounds read to their end: name and seconds
        for number, sound in enumerate(sounds):
            name = _name(sound, number)
            try:
                for place, window in enumerate(self._windows(sound, name)):
                    seconds = window.begin_seconds + len(window.samples) / self.config.front_end.sample_rate
                    piece = _Piece(number, place, window.begin_seconds, len(window.samples), window.is_last)
                    waiting.append((piece, self._frames(window, name, place)))
                    if len(waiting) >= WINDOWS_AT_ONCE:
                        decode()
                ended[number] = (name, seconds)
            except DataError as error:
                ended[number] = error
                waiting[:] = [one for one in waiting if one[0].sound != number]
                heard.pop(number, None)
            # Whatever waits belongs to the last sounds: all before them can be told.
            first_waiting = waiting[0][0].sound if waiting else number + 1
            while told < first_waiting and told in ended:
                yield self._told(ended.pop(told), heard.pop(told, []), timestamps)
                told += 1
        if waiting:
            decode()
        while told in ended:
            yield self._told(ended.pop(told), heard.pop(told, []), timestamps)
            told += 1

    def recognise(
        self,
        frames: Sequence[np.ndarray],
        decoding: SpeechDecoding | None = None,
        *,
        attention: bool = False,
        language_model: LanguageModelVoter | None = None,
    ) -> list[Found]:
        """What the model hears in frames [frames, bins] as its front end makes them, in their order."""
        decoding = decoding or self.config.decoding
        lengths = np.array([len(one) for one in frames], dtype=np.int64)
        if not len(lengths):
            return []
        language_model = language_model or self._language_model(decoding)
        device = next(self.model.parameters()).device
        order = np.argsort(lengths, kind="stable")
        budget = TokenBudget(max(self.config.decoding_frames // decoding.search.beam_size, int(lengths.max())))
        results: list[Found | None] = [None] * len(frames)
        for rows in np.split(order, cut_batches(lengths[order], budget)[:-1]):
            padded = torch.zeros(len(rows), int(lengths[rows].max()), self.config.front_end.bins)
            for place, row in enumerate(rows):
                padded[place, : lengths[row]] = torch.from_numpy(frames[row])
            found = search(
                self.model,
                padded.to(device),
                torch.from_numpy(lengths[rows]).to(device),
                decoding,
                language_model=language_model,
                attention=attention,
            )
            for row, one in zip(rows, found, strict=True):
                results[row] = one
        return [one for one in results if one is not None]

    @property
    def _times_by_attention(self) -> bool:
        return self.model.ctc is None or self.config.timestamps == "attention"

    def decoding_with(self, decoding: SpeechDecoding | None = None, **changes: Any) -> SpeechDecoding:
        """The given decoding, or the model's own, with fields of it or of its search changed. Raises: ConfigError."""
        decoding = decoding or self.config.decoding
        if not isinstance(decoding, SpeechDecoding):
            raise ConfigError(f"transcribe: decoding is {type(decoding).__name__}, expected SpeechDecoding")
        own = {one.name for one in dataclasses.fields(SpeechDecoding)} & set(changes)
        searched = {name: value for name, value in changes.items() if name not in own}
        if searched:
            validated(DecodingOptions, {**plain(decoding.search), **searched}, "transcribe")  # names and kinds
            decoding = dataclasses.replace(decoding, search=decoding.search.changed(**searched))
        if own:
            given = {**plain(decoding), **{name: changes[name] for name in own}}
            decoding = validated(SpeechDecoding, given, "transcribe")
        decoding.check()
        return decoding

    def _language_model(self, decoding: SpeechDecoding) -> LanguageModelVoter | None:
        path = decoding.language_model
        if path is None or decoding.language_weight == 0:
            return None
        if path not in self._language_models:
            from regard.tasks.generate.generator import Generator
            from regard.tasks.load import load

            parameter = next(self.model.parameters())
            loaded = load(path, device=parameter.device, dtype=parameter.dtype)
            if not isinstance(loaded, Generator):
                raise ConfigError(f"{path}: not a language model; train one with a recipe whose task is generate")
            if loaded.tokenizer != self.tokenizer:
                raise ConfigError(
                    f"{path}: its tokens are not those of this speech model; train it on the same transcripts, in "
                    "their order, with the same tokenizer section"
                )
            # A transcript may be longer than the texts that it was trained on.
            decoder = SlidingDecoder(loaded.model, loaded.config.context)
            self._language_models[path] = LanguageModelVoter(decoder, loaded.config.begins)
        return self._language_models[path]

    def _windows(self, sound: Sound, name: str) -> Iterator[Window]:
        rate = self.config.front_end.sample_rate
        if isinstance(sound, np.ndarray):
            blocks: Iterable[np.ndarray] = [_samples(sound, name)]
        elif isinstance(sound, tuple):
            samples, its_rate = sound
            blocks = [resampled(_samples(samples, name), its_rate, rate)]
        else:
            sound_info(sound, name)
            blocks = sound_blocks(sound, rate, name=name, block_seconds=self.config.window_seconds)
        yield from windows(blocks, rate, self.config.window_seconds)

    def _frames(self, window: Window, name: str, place: int) -> np.ndarray | None:
        """The window's frames, None where nothing is to be heard."""
        samples = window.samples
        needed = self.config.front_end.frame_samples
        if len(samples) < needed and place == 0:
            rate = self.config.front_end.sample_rate
            raise DataError(
                f"{name}: {len(samples) / rate:.3f} s of sound, shorter than a frame ({needed / rate:.3f} s); give more"
            )
        if len(samples) < needed or is_silent(samples):
            return None
        [frames] = self.front_end([samples])
        return frames.numpy()

    def _heard(
        self, piece: _Piece, found: Found | None, frames: np.ndarray | None, words: bool, attention: bool
    ) -> Heard:
        return heard_of(
            found,
            frames,
            self.tokenizer,
            self.config.front_end,
            self.config.timing,
            begin_seconds=piece.begin_seconds,
            seconds=piece.num_samples / self.config.front_end.sample_rate,
            with_words=words,
            with_attention=attention,
        )

    def _told(self, end: tuple[str, float] | DataError, heard: list[Heard], timestamps: bool) -> Transcript | DataError:
        if isinstance(end, DataError):
            return end
        name, seconds = end
        return assembled(name, seconds, heard, self.config.timing if timestamps else None)


@dataclass(frozen=True)
class _Piece:
    """Which window of which sound."""

    sound: int
    window: int
    begin_seconds: float
    num_samples: int
    is_last: bool


def _samples(sound: np.ndarray, name: str) -> np.ndarray:
    if not isinstance(sound, np.ndarray) or sound.ndim != 1 or sound.dtype.kind != "f" or not np.isfinite(sound).all():
        kind = f"{list(sound.shape)} of {sound.dtype}" if isinstance(sound, np.ndarray) else type(sound).__name__
        raise DataError(
            f"{name}: received {kind}, expected one vector of finite floating-point samples, full scale 1; mix channels"
            " down, and divide 16-bit samples by 32768"
        )
    return sound.astype(np.float32, copy=False)


def _name(sound: Sound, number: int) -> str:
    if isinstance(sound, str | os.PathLike):
        return os.fspath(sound)
    if isinstance(sound, np.ndarray | tuple):
        return f"sound {number + 1}"
    name = getattr(sound, "name", None)  # of a temporary file: none, or the number of its descriptor
    return name if isinstance(name, str) and name else f"sound {number + 1}"
