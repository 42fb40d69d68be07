"""What one side of an attention map is about: a text and where its tokens stand in it, a picture, or a sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard.attention.words import Span

WORD_MARKS = " \u2581\u0120"  # how SentencePiece and byte-level tokenizers show the space before a word


@dataclass(frozen=True, eq=False)
class PictureGrid:
    """A picture, and the grid on it whose cells, row by row, are the positions of an axis.

    rows, columns: of the grid. pixels: uint8 [height, width, 3]. box: (left, upper, right, lower), the part of the
    picture that the grid covers, in shares of its sides; it may reach beyond 0 and 1 where the model saw a margin.
    """

    rows: int
    columns: int
    pixels: Tensor
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        assert self.pixels.dtype == torch.uint8 and self.pixels.ndim == 3 and self.pixels.shape[2] == 3

    def centres(self) -> Tensor:
        """Where each cell's middle lies, float64 [rows * columns, 2]: (x, y) in pixels."""
        height, width = self.pixels.shape[:2]
        left, upper, right, lower = self.box
        across = left + (torch.arange(self.columns, dtype=torch.float64) + 0.5) / self.columns * (right - left)
        down = upper + (torch.arange(self.rows, dtype=torch.float64) + 0.5) / self.rows * (lower - upper)
        y, x = torch.meshgrid(down * height, across * width, indexing="ij")
        return torch.stack([x, y], -1).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class SoundFrames:
    """A sound as frames, and the stretches of it that are the positions of an axis, one after the other.

    frames: uint8 [num_frames, bins], low frequencies first, 255 the loudest. begin_seconds: where the first one stands.
    frame_seconds: from frame to frame. frames_a_position: how many of them a position stands for.
    """

    frames: Tensor
    begin_seconds: float
    frame_seconds: float
    frames_a_position: int

    def __post_init__(self) -> None:
        assert self.frames.dtype == torch.uint8 and self.frames.ndim == 2

    @staticmethod
    def of(frames: Tensor, begin_seconds: float, frame_seconds: float, frames_a_position: int) -> SoundFrames:
        """frames: logarithms of energy, [num_frames, bins]; what is 8 below the loudest (35 dB) is black."""
        levels = (1.0 + (frames.float() - frames.max().float()) / 8.0).clamp(0.0, 1.0)
        return SoundFrames((255 * levels).round().to(torch.uint8), begin_seconds, frame_seconds, frames_a_position)


@dataclass(frozen=True)
class Axis:
    """What one side of an attention map is about.

    text: the whole text; of a picture its name.
    tokens: one string a position, special tokens included.
    spans: per token its half-open character range in `text`; empty for special tokens, for the cells of a picture and
    for stretches of a sound.
    picture, sound: what the positions lie on, where they are cells of a picture or stretches of a sound.
    """

    text: str
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    picture: PictureGrid | None = field(default=None, compare=False)
    sound: SoundFrames | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.spans), "one span a token"
        if self.picture is not None:
            assert len(self.tokens) == self.picture.rows * self.picture.columns, "a position for each cell"

    @staticmethod
    def of_picture(name: str, picture: PictureGrid) -> Axis:
        """The cells of a picture, called "row:column" from 1."""
        cells = [f"{row}:{column}" for row in range(1, picture.rows + 1) for column in range(1, picture.columns + 1)]
        return Axis(name, tuple(cells), ((0, 0),) * len(cells), picture)

    @staticmethod
    def of_sound(name: str, sound: SoundFrames, num_positions: int) -> Axis:
        """Stretches of a sound, called by the second at which they begin."""
        step = sound.frame_seconds * sound.frames_a_position
        times = tuple(f"{sound.begin_seconds + place * step:.2f}" for place in range(num_positions))
        return Axis(name, times, ((0, 0),) * num_positions, sound=sound)

    def __len__(self) -> int:
        return len(self.tokens)


def over_words(axis: Axis, words: Sequence[Span]) -> tuple[Axis, Tensor]:
    """The axis over words, and its membership matrix [num_words, num_tokens] of zeros and ones.

    A token belongs to the word with which it shares most characters, a lone mark of a word's beginning to the word;
    what shares none stays a word of its own. Pictures and sounds have no words: their positions stay as they are.
    """
    if axis.picture is not None or axis.sound is not None:
        return axis, torch.eye(len(axis))
    owner: list[tuple[int, int]] = []  # per token: (word, -1), or (-1, token) where it stands for itself
    for index, (begin, end) in enumerate(axis.spans):
        shared = [min(end, stop) - max(begin, start) for start, stop in words]
        best = max(range(len(words)), key=shared.__getitem__, default=-1)
        owner.append((best, -1) if best >= 0 and shared[best] > 0 else (-1, index))
    for index in reversed(range(len(owner) - 1)):
        # Subword tokenizers may set a word's mark apart ("▁", "O", "ctober"): it belongs to the word that follows.
        if owner[index][0] < 0 <= owner[index + 1][0] and not axis.tokens[index].strip(WORD_MARKS):
            owner[index] = owner[index + 1]
    order = list(dict.fromkeys(owner))
    members = torch.zeros(len(order), len(axis))
    for token, who in enumerate(owner):
        members[order.index(who), token] = 1.0
    tokens, spans = [], []
    for word, token in order:
        spans.append(words[word] if word >= 0 else axis.spans[token])
        tokens.append(axis.text[slice(*words[word])] if word >= 0 else axis.tokens[token])
    return Axis(axis.text, tuple(tokens), tuple(spans)), members
