"""When each token was said, read off cross-attention: dynamic time warping over heads that follow the sound.

Tokens are said in order and the sound goes on, so the path from the first frame to the last that gathers most attention
and never turns back gives every token its frames. Source: Sakoe and Chiba 1978 for the path; its use on normalised and
filtered attention is that of Radford et al. 2022's reference code (Whisper), word timestamps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.errors import ShapeError


def token_frames(attention: Tensor, *, filter_frames: int = 7) -> list[tuple[int, int]]:
    """(begin, end) of every token: it stands on frames begin to end - 1, at least one. Neighbours may share a frame.

    attention: [heads, tokens, frames], rows of the heads that were chosen for following the sound.
    filter_frames: width of the median filter along the frames; odd.
    """
    if not attention.shape[1]:
        return []
    rows, columns = warp(salience(attention, filter_frames=filter_frames))
    spans: list[tuple[int, int]] = []
    for row, column in zip(rows, columns, strict=True):
        if row == len(spans):
            spans.append((column, column + 1))
        else:
            spans[row] = (spans[row][0], column + 1)
    return spans


def followed(attention: Tensor, *, filter_frames: int = 7) -> Tensor:
    """How well each head follows the sound, [heads], from 0 to 1: the share of its attention that lies on the frames
    which warping by this head alone gives to its tokens, the mean over tokens.

    Near 1 for a head that goes through the sound word by word; about 1 / tokens for one that looks everywhere alike, or
    always at one place. The mean over some utterances tells which heads to warp over; no true times are needed.

    attention: [heads, tokens, frames]; filter_frames: see `token_frames`.
    """
    shares = []
    for head in attention.detach():
        spans = token_frames(head[None], filter_frames=filter_frames)
        on_its_frames = [row[begin:end].sum() for row, (begin, end) in zip(head, spans, strict=True)]
        shares.append(torch.stack(on_its_frames).mean() if on_its_frames else head.new_zeros(()))
    return torch.stack(shares)


def salience(attention: Tensor, *, filter_frames: int = 7) -> Tensor:
    """[heads, tokens, frames] -> [tokens, frames]: how much more each frame gets from a token than from the others.

    Each frame's column is normalised to mean 0 and deviation 1 over the tokens, so that a frame which all tokens look
    at counts for none; a median filter along the frames takes out lone peaks; then the mean over heads.

    Numerics: float64. Raises: ShapeError for other shapes and for an even width.
    """
    if attention.ndim != 3 or 0 in attention.shape:
        raise ShapeError(f"salience: attention has shape {tuple(attention.shape)}, expected (heads, tokens, frames)")
    if filter_frames < 1 or filter_frames % 2 == 0:
        raise ShapeError(f"salience: filter_frames is {filter_frames}, expected an odd number of frames, 1 for none")
    weights = attention.detach().double()
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    # A column without differences says nothing: it becomes 0, not noise.
    flat = deviation <= 1e-9 * mean.abs().clamp_min(1e-9)
    normalised = ((weights - mean) / deviation.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)
    reach = min(filter_frames // 2, attention.shape[2] - 1)  # a mirror shows no more than there is
    if reach:
        mirrored = torch.nn.functional.pad(normalised, (reach, reach), mode="reflect")
        normalised = mirrored.unfold(2, 2 * reach + 1, 1).median(-1).values
    return normalised.mean(0)


def warp(benefit: Tensor) -> tuple[list[int], list[int]]:
    """The path of greatest sum from the first cell to the last: (its rows, its columns), both never falling.

    benefit: [rows, columns]. A step goes one row down, one column on, or both. Cost: rows + columns steps over an
    anti-diagonal each. Raises: ShapeError when there is no cell.
    """
    rows, columns = benefit.shape
    if not rows or not columns:
        raise ShapeError(f"warp: benefit has shape {tuple(benefit.shape)}, expected at least one row and one column")
    values = benefit.double().cpu()
    # Anti-diagonal d holds the cells (r, d - r); cell r of it goes on from cells r - 1 of d - 2, r of d - 1, r - 1 of
    # d - 1. Index 0 stands for the row above the first.
    nothing = values.new_full((rows + 1,), float("-inf"))
    before, last = nothing, nothing.clone()
    row = torch.arange(rows)
    ways = torch.zeros(rows + columns - 1, rows, dtype=torch.int8)
    for diagonal in range(rows + columns - 1):
        column = diagonal - row
        inside = (column >= 0) & (column < columns)
        cells = values[row, column.clamp(0, columns - 1)]
        if diagonal == 0:
            best = torch.zeros_like(cells)
        else:
            best, way = torch.stack([before[:-1], last[1:], last[:-1]]).max(0)
            ways[diagonal] = way.to(torch.int8)
        now = nothing.clone()
        now[1:] = torch.where(inside, best + cells, now[1:])
        before, last = last, now
    path = [(rows - 1, columns - 1)]
    while path[-1] != (0, 0):
        at_row, at_column = path[-1]
        came = int(ways[at_row + at_column, at_row])
        path.append((at_row - (came != 1), at_column - (came != 2)))
    path.reverse()
    return [place for place, _ in path], [place for _, place in path]
