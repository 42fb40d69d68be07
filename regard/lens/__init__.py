"""Records as pictures, pages, lines and word alignments.

Importing this package teaches `AttentionRecord.save` the endings .html, .png, .svg and .jsonl, and records `plot` and
`alignment`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from regard.attention.records.record import VIEWS, WRITERS, AttentionRecord
from regard.lens.alignment import Link, align, alignment_error_rate, from_pharaoh, to_pharaoh
from regard.lens.gaze import draw_gaze, looks_of, shows_picture, write_gaze_page
from regard.lens.hearing import draw_hearing, shows_sound, write_hearing_page
from regard.lens.lines import write_lines
from regard.lens.page import write_page
from regard.lens.plot import Drawing, draw, plot
from regard.lens.words import words_of

__all__ = [
    "Drawing",
    "Link",
    "align",
    "alignment_error_rate",
    "draw",
    "draw_gaze",
    "draw_hearing",
    "from_pharaoh",
    "looks_of",
    "plot",
    "to_pharaoh",
    "words_of",
    "write_gaze_page",
    "write_hearing_page",
    "write_lines",
    "write_page",
]

VIEWS["alignment"] = align
VIEWS["plot"] = plot


def _write_page(records: Sequence[AttentionRecord], path: Path) -> None:
    chosen: Callable[[Sequence[AttentionRecord], Path], None] = write_page
    if records and all(shows_picture(record) for record in records):
        chosen = write_gaze_page
    elif records and all(shows_sound(record) for record in records):
        chosen = write_hearing_page
    chosen(records, path)


def _draw(records: Sequence[AttentionRecord], path: Path) -> None:
    chosen: Callable[[Sequence[AttentionRecord], Path], None] = draw
    if records and all(shows_picture(record) for record in records):
        chosen = draw_gaze
    elif records and all(shows_sound(record) for record in records):
        chosen = draw_hearing
    chosen(records, path)


WRITERS[".html"] = _write_page
WRITERS[".png"] = _draw
WRITERS[".svg"] = _draw
WRITERS[".jsonl"] = write_lines
