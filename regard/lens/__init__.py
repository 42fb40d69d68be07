"""Records as pictures, pages, lines and word alignments.

Importing this package teaches `AttentionRecord.save` the endings .html, .png, .svg and .jsonl, and records `plot` and
`alignment`.
"""

from __future__ import annotations

from regard.attention.records.record import VIEWS, WRITERS
from regard.lens.alignment import Link, align, alignment_error_rate, from_pharaoh, to_pharaoh
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
    "from_pharaoh",
    "plot",
    "to_pharaoh",
    "words_of",
    "write_lines",
    "write_page",
]

VIEWS["alignment"] = align
VIEWS["plot"] = plot
WRITERS[".html"] = write_page
WRITERS[".png"] = draw
WRITERS[".svg"] = draw
WRITERS[".jsonl"] = write_lines
