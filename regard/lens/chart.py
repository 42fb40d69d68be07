"""A map too long for words as a chart: an image of its cells, with positions along both sides and a scale of its own.

Weights of long sequences lie orders of magnitude apart, a sink beside the rest, so that the scale is logarithmic. What
is exactly 0, as what a mask excludes, has the colour of the paper; the faintest colour stands for all that is less than
the scale's lower end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard.lens.areas import Area
from regard.lens.colour import MUTED, STEPS
from regard.lens.layout import Image, Picture, Words, width_of

LONGER_SIDE = 460.0  # of the image, in points
SHORTER_SIDE = 60.0  # the least
DECADES = 4  # that the scale spans below its upper end
FONT = 8.5
_TICK = 4.0
_MOST_TICKS = 6


def chart_of(area: Area, title: str = "") -> Picture:
    """The chart at the origin."""
    num_queries, num_keys = area.queries[1] - area.queries[0], area.keys[1] - area.keys[0]
    unit = LONGER_SIDE / max(num_queries, num_keys, 1)
    width, height = max(num_keys * unit, SHORTER_SIDE), max(num_queries * unit, SHORTER_SIDE)
    rows, columns = (_ticks(*side) for side in (area.queries, area.keys))
    left = max((width_of(f"{row:,}", FONT) for row in rows), default=0.0) + _TICK + 4
    upper = 24 + FONT + _TICK + 4
    top = _upper_end(area.shares)
    texts = [Words(0, 11, title, 10, weight="bold")] if title else []
    lines = []
    for row in rows:
        y = upper + (row - area.queries[0] + 0.5) / max(num_queries, 1) * height
        texts.append(Words(left - _TICK - 3, y + 0.34 * FONT, f"{row:,}", FONT, "right", colour=MUTED))
        lines.append((left - _TICK, y, left, y))
    for column in columns:
        x = left + (column - area.keys[0] + 0.5) / max(num_keys, 1) * width
        texts.append(Words(x, upper - _TICK - 3, f"{column:,}", FONT, "center", colour=MUTED))
        lines.append((x, upper - _TICK, x, upper))
    images = [Image(left, upper, width, height, steps_of(area.shares, top))]
    bar_x, bar_height = left + width + 18, min(height, 150.0)
    images.append(Image(bar_x, upper, 11, bar_height, torch.arange(STEPS, 0, -1, dtype=torch.uint8)[:, None]))
    labels = [f"{top * 10.0**-decade:.3g}" for decade in range(DECADES + 1)]
    for decade, label in enumerate(labels):
        texts.append(Words(bar_x + 16, upper + bar_height * decade / DECADES + 3, label, FONT, colour=MUTED))
    right = max(bar_x + 16 + max(width_of(label, FONT) for label in labels), width_of(title, 10) * 1.1)
    return Picture(right, upper + max(height, bar_height), top, (0.0, 0.0, 0.0, 0.0), texts, images=images, lines=lines)


def steps_of(shares: Tensor, top: float) -> Tensor:
    """The step of the colour scale for each share, uint8: 0 for exactly 0, 1 at the lower end of the scale and below,
    `STEPS` at `top`."""
    decades = torch.log10((shares / top).clamp(min=10.0 ** -(DECADES + 1), max=1.0))
    steps = (1 + decades / DECADES) * (STEPS - 1) + 1
    return torch.where(shares > 0, steps.round().clamp(1, STEPS), 0).to(torch.uint8)


def _upper_end(shares: Tensor) -> float:
    """The least power of ten that no share exceeds, 1 at most."""
    largest = float(shares.max()) if shares.numel() else 0.0
    return min(10.0 ** math.ceil(math.log10(largest) - 1e-6), 1.0) if largest > 0 else 1.0


def _ticks(begin: int, end: int) -> list[int]:
    """Round positions in [begin, end), the first among them."""
    length = end - begin
    if length <= 0:
        return []
    step = next(
        factor * 10**power
        for power in range(20)
        for factor in (1, 2, 5)
        if length / (factor * 10**power) <= _MOST_TICKS
    )
    return list(range(-(-begin // step) * step, end, step)) or [begin]
