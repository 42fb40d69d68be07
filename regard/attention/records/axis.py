"""What one side of an attention map is about: a text, its tokens, and where each token stands in it; or a picture."""

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


@dataclass(frozen=True)
class Axis:
    """What one side of an attention map is about.

    text: the whole text; of a picture its name.
    tokens: one string a position, special tokens included.
    spans: per token its half-open character range in `text`; empty for special tokens and for the cells of a picture.
    picture: what the positions lie on, where they are cells of a picture.
    """

    text: str
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    picture: PictureGrid | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.spans), "one span a token"
        if self.picture is not None:
            assert len(self.tokens) == self.picture.rows * self.picture.columns, "a position for each cell"

    @staticmethod
    def of_picture(name: str, picture: PictureGrid) -> Axis:
        """The cells of a picture, called "row:column" from 1."""
        cells = [f"{row}:{column}" for row in range(1, picture.rows + 1) for column in range(1, picture.columns + 1)]
        return Axis(name, tuple(cells), ((0, 0),) * len(cells), picture)

    def __len__(self) -> int:
        return len(self.tokens)


def over_words(axis: Axis, words: Sequence[Span]) -> tuple[Axis, Tensor]:
    """The axis over words, and its membership matrix [num_words, num_tokens] of zeros and ones.

    A token belongs to the word with which it shares most characters, a lone mark of a word's beginning to the word;
    what shares none stays a word of its own. A picture has no words: its cells stay as they are.
    """
    if axis.picture is not None:
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
