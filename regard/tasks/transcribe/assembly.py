"""From what was found in the windows of a sound to its transcript: text, words with times, records of attention."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from regard.attention.observation import Observation
from regard.attention.records.axis import Axis, SoundFrames
from regard.attention.records.record import AttentionRecord
from regard.inputs.filter_banks import bands_of_cepstra
from regard.inputs.front_end import FrontEndConfig
from regard.inputs.text import Tokenizer
from regard.tasks.transcribe.result import Transcript, Word
from regard.tasks.transcribe.search import Found
from regard.tasks.transcribe.windows import joined, quietest_place
from regard.tasks.transcribe.word_times import Times, Timing, by_attention, by_ctc, edges, energy_of

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Heard:
    """What one window said. words: with times from the sound's beginning; energy: of its frames, logarithms."""

    text: str
    score: float
    tokens: tuple[str, ...]
    finished: bool
    words: tuple[Word, ...]
    attention: AttentionRecord | None
    begin_seconds: float
    end_seconds: float
    energy: np.ndarray
    shift_seconds: float


def heard_of(
    found: Found | None,
    frames: np.ndarray | None,
    tokenizer: Tokenizer,
    front_end: FrontEndConfig,
    timing: Timing,
    *,
    begin_seconds: float,
    seconds: float,
    with_words: bool,
    with_attention: bool,
) -> Heard:
    """One window; found and frames: None where nothing was to be heard in it."""
    shift, end = front_end.shift_seconds, begin_seconds + seconds
    if found is None or frames is None:
        return Heard("", 0.0, (), True, (), None, begin_seconds, end, np.zeros(0), shift)
    text, spans = tokenizer.spans(found.tokens)
    energy = energy_of(torch.from_numpy(frames), front_end.kind == "mfcc")
    words: tuple[Word, ...] = ()
    if with_words:
        placed = word_frames(found, text, spans, energy, timing)
        words = tuple(
            Word(text[slice(*span)], begin_seconds + first * shift, min(begin_seconds + last * shift, end))
            for span, (first, last) in placed
        )
    record = None
    if with_attention:
        sound = SoundFrames.of(spectrogram(frames, front_end), begin_seconds, shift, found.stride)
        record = attention_record(found, text, spans, tokenizer, sound)
    tokens = tuple(tokenizer.tokens_of(found.tokens))
    return Heard(text, found.score, tokens, found.finished, words, record, begin_seconds, end, energy.numpy(), shift)


def word_frames(
    found: Found,
    text: str,
    spans: Sequence[tuple[int, int]],
    energy: torch.Tensor,
    timing: Timing,
) -> list[tuple[tuple[int, int], Times]]:
    """Of each word its characters in the text and its frames: by `timing`, by the other method where it finds none."""
    words = [match.span() for match in _WORD.finditer(text)]
    return list(zip(words, edges(word_cores(found, words, spans, timing), energy, timing.placement), strict=True))


def word_cores(
    found: Found, words: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], timing: Timing
) -> list[Times]:
    """The frames that said each word. words, spans: characters of words and of tokens."""
    places: list[Times] | None = None
    for chosen in (timing.method, "attention" if timing.method == "ctc" else "ctc"):
        if places is None and chosen == "ctc" and found.ctc is not None:
            places = by_ctc(found.ctc, found.tokens)
        elif places is None and chosen == "attention":
            places = by_attention(found.attention, len(found.tokens), timing.heads)
    if places is None:  # neither knows: words spread evenly are better than none
        count, vectors = max(len(found.tokens), 1), max(found.num_vectors, 1)
        places = [(vectors * place // count, vectors * (place + 1) // count) for place in range(len(found.tokens))]
    cores = []
    for begin, end in words:
        mine = [place for place, (first, last) in zip(places, spans, strict=True) if min(last, end) > max(first, begin)]
        first, last = (mine[0][0], mine[-1][1]) if mine else (0, 1)
        cores.append((first * found.stride, last * found.stride))
    return cores


def spectrogram(frames: np.ndarray, front_end: FrontEndConfig) -> torch.Tensor:
    """Logarithms of energy [frames, bands], to be looked at, of frames as the front end makes them."""
    if front_end.kind != "mfcc":
        return torch.from_numpy(frames)
    bands = bands_of_cepstra(front_end.convention, front_end.num_cepstra, front_end.num_mels)
    return torch.from_numpy(frames).double() @ bands.T


def attention_record(
    found: Found, text: str, spans: Sequence[tuple[int, int]], tokenizer: Tokenizer, sound: SoundFrames
) -> AttentionRecord | None:
    """Where the decoder looked: tokens over stretches of the sound. None without a decoder."""
    if not found.attention:
        return None
    key = Axis.of_sound("", sound, found.num_vectors)
    ids = [*found.tokens, *([Tokenizer.EOS] if found.finished else [])]
    tokens = tuple(tokenizer.tokens_of(ids))
    ends = (*spans, *([(len(text), len(text))] if found.finished else []))
    layers = {
        name: Observation(rows=rows[None, :, : len(tokens)], row_index=torch.arange(len(tokens)))
        for name, rows in found.attention.items()
    }
    return AttentionRecord(layers, Axis(text, tokens, tuple(ends)), key)


def assembled(name: str, seconds: float, heard: Sequence[Heard], timing: Timing | None) -> Transcript:
    """The transcript of a sound of these windows. timing: how its words got their times; None: it tells none."""
    records = tuple(one.attention for one in heard if one.attention is not None)
    finished = all(one.finished for one in heard)
    score = sum(one.score for one in heard)
    tokens = tuple(token for one in heard for token in one.tokens)
    if len(heard) == 1:
        [only] = heard
        text, words = only.text, only.words
    else:
        words = _joined(heard)
        text = " ".join(word.text for word in words)
    if timing is None:
        return Transcript(name, text, score, tokens, seconds, (), None, records, finished)
    return Transcript(name, text, score, tokens, seconds, words, timing.method, records, finished, timing.heads_in_use)


def _joined(heard: Sequence[Heard]) -> tuple[Word, ...]:
    cuts = []
    for one, following in itertools.pairwise(heard):
        first = round((following.begin_seconds - one.begin_seconds) / one.shift_seconds)
        cuts.append(quietest_place(one.energy[first:], following.begin_seconds, one.end_seconds, one.shift_seconds))
    return tuple(joined([one.words for one in heard], cuts))
