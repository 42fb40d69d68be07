"""What one side of an attention map is about: a text, its tokens, and where each token stands in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.attention.words import Span

WORD_MARKS = " \u2581\u0120"  # how SentencePiece and byte-level tokenizers show the space before a word


@dataclass(frozen=True)
class Axis:
    """What one side of an attention map is about.

    text: the whole text.
    tokens: one string a position, special tokens included.
    spans: per token its half-open character range in `text`; empty for special tokens.
    """

    text: str
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.spans), "one span a token"

    def __len__(self) -> int:
        return len(self.tokens)


def over_words(axis: Axis, words: Sequence[Span]) -> tuple[Axis, Tensor]:
    """The axis over words, and its membership matrix [num_words, num_tokens] of zeros and ones.

    A token belongs to the word with which it shares most characters, a lone mark of a word's beginning to the word;
    what shares none stays a word of its own.
    """
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
