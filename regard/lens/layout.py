"""Where everything stands in a picture of attention maps, whatever draws it. Lengths are in points (1/72 inch).

The origin is at the top left, y grows downwards, and a text stands on its baseline.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from regard.lens.colour import INK, MUTED

MARGIN = 18.0
GAP = 26.0  # between panels
LONGEST_LABEL = 28  # characters; what is longer ends in an ellipsis
LEAN = math.radians(45)  # of the source words over their columns
_WAY_OUT = {"\n": "\u23ce", "\t": "\u21e5", "\r": "\u21b5", " ": "\u2423"}


@dataclass(frozen=True)
class Words:
    """A text; angle in degrees, counter-clockwise; x, y is where its `anchor` stands on the baseline."""

    x: float
    y: float
    text: str
    size: float
    anchor: Literal["left", "center", "right"] = "left"
    angle: float = 0.0
    colour: str = INK
    weight: Literal["normal", "bold"] = "normal"


@dataclass(frozen=True)
class Cell:
    """A square of the heat map; weight from 0 to 1; about: what it says when pointed at."""

    x: float
    y: float
    size: float
    weight: float
    about: str


@dataclass(frozen=True)
class Image:
    """A map of many cells, framed; steps: their places on the colour scale, uint8 [rows, columns]; or a photograph,
    whose red, green and blue they are, uint8 [rows, columns, 3]."""

    x: float
    y: float
    width: float
    height: float
    steps: Tensor


@dataclass(frozen=True)
class Picture:
    """What to draw. outlines: cells' (x, y, size). lines: thin ones' (x1, y1, x2, y2). bar: the colour bar's (x, y,
    width, height), no wider than 0 where there are no cells. top: its upper end."""

    width: float
    height: float
    top: float
    bar: tuple[float, float, float, float]
    texts: list[Words] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    outlines: list[tuple[float, float, float]] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """One heat map: weights [len(rows), len(columns)], its labels, and which of them are special tokens."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    special_rows: Sequence[bool]
    special_columns: Sequence[bool]
    weights: Tensor
    expected: Sequence[tuple[int, int]] = ()


def lay_out(panels: Sequence[Panel | Picture], title: str = "") -> Picture:
    """Panels in reading order, in as many columns as give a picture a little wider than high.

    A panel that is a picture already stands as it is; the others share one scale of colours.
    """
    drawn = [panel if isinstance(panel, Picture) else _draw_panel(panel) for panel in panels]
    widest = max(piece.width for piece in drawn)
    page = max(widest, math.sqrt(sum((piece.width + GAP) * (piece.height + GAP) for piece in drawn)) * 1.2)
    top = _round_up(max((cell.weight for piece in drawn for cell in piece.cells), default=1.0))
    texts: list[Words] = []
    cells: list[Cell] = []
    outlines: list[tuple[float, float, float]] = []
    images: list[Image] = []
    lines: list[tuple[float, float, float, float]] = []
    y = MARGIN
    if title:
        texts.append(Words(MARGIN, y + 15, shown(title, 120), 15, weight="bold"))
        y += 30
    begin_y, x, row_height, right = y, MARGIN, 0.0, 0.0
    for piece in drawn:
        if x > MARGIN and x + piece.width > MARGIN + page:
            x, y, row_height = MARGIN, y + row_height + GAP, 0.0
        texts += [replace(text, x=text.x + x, y=text.y + y) for text in piece.texts]
        cells += [replace(cell, x=cell.x + x, y=cell.y + y) for cell in piece.cells]
        outlines += [(left + x, upper + y, size) for left, upper, size in piece.outlines]
        images += [replace(image, x=image.x + x, y=image.y + y) for image in piece.images]
        lines += [(x1 + x, y1 + y, x2 + x, y2 + y) for x1, y1, x2, y2 in piece.lines]
        x += piece.width + GAP
        row_height, right = max(row_height, piece.height), max(right, x - GAP)
    y += row_height
    captions = ["rows: words produced; columns: words attended to" + ("; outlined: expected" if outlines else "")]
    if images:
        long = "rows: queries; columns: keys; colour: the share of a query's attention, on a logarithmic scale"
        captions = [*captions, long] if cells else [long]
    for caption in captions:
        y += 14
        texts.append(Words(MARGIN, y + 6, caption, 8.5, colour=MUTED))
        right = max(right, MARGIN + width_of(caption, 8.5) * 0.9) if not cells else right
    if not cells:
        return Picture(right + MARGIN, y + 6 + MARGIN, top, (0.0, 0.0, 0.0, 0.0), texts, images=images, lines=lines)
    height = max(y + 6 + MARGIN, begin_y + 150)
    bar_height = min(160.0, height - begin_y - 56)
    bar = (right + GAP, begin_y + 22, 11.0, bar_height)
    for part in (0.0, 0.5, 1.0):
        texts.append(Words(bar[0] + 16, bar[1] + bar_height * (1 - part) + 3, f"{top * part:.3g}", 8.5, colour=MUTED))
    label = Words(bar[0] + 52, bar[1] + bar_height / 2, "attention weight", 9, "center", 90.0, MUTED)
    return Picture(bar[0] + 52 + MARGIN, height, top, bar, [*texts, label], cells, outlines, images, lines)


def _draw_panel(panel: Panel) -> Picture:
    """One panel at the origin."""
    longest = max(len(panel.rows), len(panel.columns))
    cell, font = (24.0, 11.0) if longest <= 20 else (17.0, 9.5) if longest <= 40 else (12.5, 8.0)
    rows, columns = [shown(label) for label in panel.rows], [shown(label) for label in panel.columns]
    left = max((width_of(label, font) for label in rows), default=0.0) + 7
    rise = max((width_of(label, font) for label in columns), default=0.0) * math.sin(LEAN) + font
    upper = 24 + rise
    texts = [Words(0, 11, panel.title, 10, weight="bold")] if panel.title else []
    right = left + cell * len(columns)
    for place, (label, special) in enumerate(zip(rows, panel.special_rows, strict=True)):
        y = upper + cell * (place + 0.5) + 0.34 * font
        texts.append(Words(left - 7, y, label, font, "right", colour=MUTED if special else INK))
    for place, (label, special) in enumerate(zip(columns, panel.special_columns, strict=True)):
        x = left + cell * (place + 0.5) + 0.3 * font
        texts.append(Words(x, upper - 5, label, font, angle=45.0, colour=MUTED if special else INK))
        right = max(right, x + width_of(label, font) * math.cos(LEAN))
    cells = [
        Cell(
            left + cell * column,
            upper + cell * row,
            cell,
            weight,
            f"{rows[row]} \u2190 {columns[column]}: {weight:.4f}",
        )
        for row, line in enumerate(panel.weights.tolist())
        for column, weight in enumerate(line)
    ]
    outlines = [(left + cell * column, upper + cell * row, cell) for row, column in panel.expected]
    width = max(right, width_of(panel.title, 10) * 1.1)
    return Picture(width, upper + cell * len(rows), 1.0, (0.0, 0.0, 0.0, 0.0), texts, cells, outlines)


def shown(label: str, longest: int = LONGEST_LABEL) -> str:
    """The label on one line: white space and control characters made visible, the end of a long one left off."""
    if not label.strip():
        label = "".join(_WAY_OUT.get(character, character) for character in label) or "\u2423"
    label = "".join(
        _WAY_OUT.get(c, "\ufffd") if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in label
    )
    return label if len(label) <= longest else label[: longest - 1] + "\u2026"


def width_of(text: str, size: float) -> float:
    """Width in points at font size `size`, estimated from above for a wide sans-serif face such as DejaVu Sans."""
    ems = 0.0
    for character in text:
        if unicodedata.combining(character):
            continue
        if unicodedata.east_asian_width(character) in "WF":
            ems += 1.0
        elif character in "iljtfr.,;:!'|()[] ":
            ems += 0.41
        else:
            ems += 0.98 if character in "mwMW@%\u2014\u2026" else 0.72 if character.isupper() else 0.63
    return ems * size


def _round_up(largest: float) -> float:
    """The upper end of the colour bar: `largest` rounded up to a step of half its first digit's unit."""
    if largest <= 0:
        return 1.0
    step = 10.0 ** math.floor(math.log10(largest)) / 2
    return float(round(math.ceil(largest / step - 1e-6) * step, 12))
