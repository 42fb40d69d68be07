"""Summaries as pages and pictures: where each word came from, and which were copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regard.attention.records.record import WRITERS, AttentionRecord
from regard.errors import ObservationError
from regard.inputs.word_splitting import words
from regard.lens.maps import is_long
from regard.lens.page import write_page
from regard.lens.plot import draw
from regard.tasks.summarize.result import Summary

TITLE = "Summary"
COPIED_NOTE = (
    "A word that was copied is outlined at the word of the document that it was copied from. The attention is that of "
    "the part of the model that copies."
)


def show(summaries: Sequence[Summary], path: Path, *, title: str = TITLE, notes: Sequence[str] = ()) -> None:
    """Writes the summaries' attention to `path`: .html .png .svg .jsonl.

    A page and a picture outline what was copied, and a page says it in words, too; a document too long for cells is
    shown as a chart. Raises: ObservationError when a summary has no attention.
    """
    records = [_record(summary) for summary in summaries]
    if path.suffix not in (".html", ".png", ".svg"):
        WRITERS[path.suffix](records, path)
        return
    links = [[] if is_long(record) else copied_links(one) for one, record in zip(summaries, records, strict=True)]
    expected = links if any(links) else None
    if path.suffix == ".html":
        said = [*notes, *([COPIED_NOTE] if expected else [])]
        for number, summary in enumerate(summaries, 1):
            said += [f"Summary {number}: {summary.text}", *summary.origins()]
        write_page(records, path, title=title, notes=said, expected=expected, words=words)
    else:
        draw(records, path, title=title, expected=expected, words=words)


def copied_links(summary: Summary) -> list[tuple[int, int]]:
    """(word of the summary, word of the document) of each copied word, counted as `regard.lens.align` counts words."""
    record = summary.attention
    assert record is not None and record.key is not None
    theirs = words(record.key.text)
    found = []
    for place, word in enumerate(summary.words):
        if word.source_span is None:
            continue
        begin, end = word.source_span
        at = next((number for number, (first, last) in enumerate(theirs) if first < end and last > begin), None)
        if at is not None:
            found.append((place, at))
    return found


def _record(summary: Summary) -> AttentionRecord:
    record = summary.pointed()
    if record is None:
        raise ObservationError("show: a summary without attention; ask for it with attention=True")
    return record
