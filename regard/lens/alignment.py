"""Which source word each target word came from, read off the attention.

A row of a record belongs to the token that it produced: row t is the distribution from which token t was made (Bahdanau
et al. 2015, eq. 6: their alpha_i belongs to the i-th target word). Nothing has to be shifted by one position, as it
must be where attention is recorded at the step that *reads* token t.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from regard.attention.records.record import AttentionRecord
from regard.errors import DataError, ObservationError
from regard.lens.maps import as_record, chosen_map, maps_of
from regard.lens.words import WordSplitter, axis_words, numbers, words_of


class Link(NamedTuple):
    """A target word, the source word that it is aligned with, and the attention weight between them (0 to 1)."""

    query_index: int
    key_index: int
    weight: float


def align(
    record: AttentionRecord,
    *,
    layer: str | None = None,
    head: int | None = None,
    method: Literal["argmax", "mutual"] = "argmax",
    special: bool = False,
    threshold: float = 0.0,
    words: WordSplitter = words_of,
) -> list[Link]:
    """Links between target words (queries) and source words (keys), by rising (query_index, key_index).

    layer: a layer's name, "last", or None or "mean" for the mean over layers.
    head: one head; the mean over heads if None.
    method: "argmax" links each target word with the source word of the largest weight (the first of equals); "mutual"
    keeps those of them where the source word, too, gives most of its column to that target word.
    special: whether special tokens take part. Without them an index counts the words of the text, 0 first; with them it
    counts words and special tokens together, as `record.over_words` orders them.
    threshold: links of this weight or less are left out; a row of nothing but zeros links with nothing.
    words: text -> character spans of its words.

    Raises: ObservationError for an unknown layer, head or method, and for a record without rows or axes.
    """
    if method not in ("argmax", "mutual"):
        raise ObservationError(f"align: method {method!r} is not known; known: 'argmax', 'mutual'")
    if record.query is None or record.key is None:
        raise ObservationError("align: the record does not say what its axes are; give it `query` and `key`")
    maps = maps_of(record)
    query_words, key_words = axis_words(maps.target, words), axis_words(maps.source, words)
    over = maps_of(as_record(maps).over_words(query_words, key_words))
    weights = chosen_map(over, layer, head)
    rows: dict[int, int]  # position in the map -> index in the answer
    columns: dict[int, int]
    if special:
        rows, columns = ({place: place for place in range(len(axis))} for axis in (over.target, over.source))
    else:
        rows, columns = (
            {place: number for place, number in enumerate(numbers(axis, spans)) if number is not None}
            for axis, spans in ((over.target, query_words), (over.source, key_words))
        )
    if not rows or not columns:
        return []
    table = weights[list(rows)][:, list(columns)]
    query_indices, key_indices = list(rows.values()), list(columns.values())
    best_key, best_query = table.argmax(1).tolist(), table.argmax(0).tolist()
    links = []
    for row, column in enumerate(best_key):
        weight = table[row, column].item()
        if weight > threshold and (method == "argmax" or best_query[column] == row):
            links.append(Link(query_indices[row], key_indices[column], weight))
    return sorted(links)


def to_pharaoh(links: Iterable[tuple[int, int] | Link]) -> str:
    """Links in Pharaoh format: "source-target" pairs, by rising source index, as in "0-0 1-2"."""
    return " ".join(f"{key}-{query}" for key, query in sorted({(link[1], link[0]) for link in links}))


def from_pharaoh(line: str) -> list[tuple[int, int]]:
    """The (query_index, key_index) pairs of a line in Pharaoh format, sorted.

    Raises: DataError for a word that is not "source-target".
    """
    pairs = set()
    for word in line.split():
        found = re.fullmatch(r"([0-9]+)-([0-9]+)", word)
        if found is None:
            raise DataError(f"alignment: {word!r} is not a link; expected source-target from 0, as in '0-0 1-2'")
        pairs.add((int(found[2]), int(found[1])))
    return sorted(pairs)


def alignment_error_rate(
    links: Iterable[tuple[int, int] | Link],
    sure: Iterable[tuple[int, int]],
    possible: Iterable[tuple[int, int]] = (),
) -> float:
    """1 - (|A & S| + |A & P|) / (|A| + |S|), from 0 (best) to 1; 0 where there is nothing to align.

    links: A. sure: S. possible: P, which always includes S. All as (query_index, key_index).
    Source: Och and Ney 2003, "A systematic comparison of various statistical alignment models".
    """
    found = {(link[0], link[1]) for link in links}
    certain = set(sure)
    allowed = certain | set(possible)
    if not found and not certain:
        return 0.0
    return 1.0 - (len(found & certain) + len(found & allowed)) / (len(found) + len(certain))
