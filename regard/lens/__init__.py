"""Records as pictures, pages, lines and word alignments.

Importing this package teaches `AttentionRecord.save` the endings .html, .png, .svg and .jsonl.
"""

from __future__ import annotations

from regard.attention.record import WRITERS
from regard.lens.alignment import Link, align, alignment_error_rate, from_pharaoh, to_pharaoh
from regard.lens.lines import write_lines
from regard.lens.page import write_page
from regard.lens.plot import draw
from regard.lens.words import words_of

__all__ = [
    "Link",
    "align",
    "alignment_error_rate",
    "draw",
    "from_pharaoh",
    "to_pharaoh",
    "words_of",
    "write_lines",
    "write_page",
]

WRITERS[".html"] = write_page
WRITERS[".png"] = draw
WRITERS[".svg"] = draw
WRITERS[".jsonl"] = write_lines
