"""Records as pictures, pages, lines and word alignments.

Importing this package teaches `AttentionRecord.save` the endings .html, .png, .svg and .jsonl, and records `plot` and
`alignment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regard.attention.records.record import VIEWS, WRITERS, AttentionRecord
from regard.lens.alignment import Link, align, alignment_error_rate, from_pharaoh, to_pharaoh
from regard.lens.gaze import draw_gaze, looks_of, shows_picture, write_gaze_page
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
    "from_pharaoh",
    "looks_of",
    "plot",
    "to_pharaoh",
    "words_of",
    "write_gaze_page",
    "write_lines",
    "write_page",
]

VIEWS["alignment"] = align
VIEWS["plot"] = plot


def _write_page(records: Sequence[AttentionRecord], path: Path) -> None:
    about_pictures = bool(records) and all(shows_picture(record) for record in records)
    (write_gaze_page if about_pictures else write_page)(records, path)


def _draw(records: Sequence[AttentionRecord], path: Path) -> None:
    about_pictures = bool(records) and all(shows_picture(record) for record in records)
    (draw_gaze if about_pictures else draw)(records, path)


WRITERS[".html"] = _write_page
WRITERS[".png"] = _draw
WRITERS[".svg"] = _draw
WRITERS[".jsonl"] = write_lines
