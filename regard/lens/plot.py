"""Heat maps of records as .png and .svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from regard.attention.record import AttentionRecord
from regard.errors import ConfigError, ObservationError
from regard.lens.atomic import write_whole
from regard.lens.layout import Panel, lay_out
from regard.lens.maps import as_record, choice_name, chosen_map, maps_of
from regard.lens.words import WordSplitter, axis_words, numbers, words_of

Expected = Sequence[Sequence[tuple[int, int]]]


def draw(
    records: AttentionRecord | Sequence[AttentionRecord],
    path: str | Path,
    *,
    layer: str | None = None,
    head: int | None = None,
    unit: Literal["words", "tokens"] = "words",
    title: str = "",
    expected: Expected | None = None,
    words: WordSplitter = words_of,
) -> None:
    """Draws one heat map a record into one picture: target in rows, source in columns, one colour bar for all of them.

    layer: a layer's name, "last", or None or "mean" for the mean over layers.
    head: one head; the mean over heads if None.
    unit: whether words or tokens are shown. words: text -> character spans of its words.
    expected: per record the (query_index, key_index) pairs to outline, counted as `regard.lens.align` counts words.

    Raises: ConfigError for an ending other than .png and .svg, and for a folder that cannot be written to;
    ObservationError for a record that cannot be drawn.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"{path}: ending {path.suffix or 'missing'!r} is not a picture's; known: .png, .svg")
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    if not records:
        raise ObservationError(f"{path}: there is no record to draw; give one or more")
    if expected is not None and len(expected) != len(records):
        raise ObservationError(f"expected: {len(expected)} alignments for {len(records)} records; give one each")
    panels = []
    for place, record in enumerate(records):
        links = expected[place] if expected is not None else ()
        number = f"{place + 1}.  " if len(records) > 1 else ""
        panels.append(_panel(record, layer, head, unit, links, words, number))
    picture = lay_out(panels, title)
    if path.suffix == ".svg":
        from regard.lens.vector import to_svg

        write_whole(path, to_svg(picture).encode())
    else:
        from regard.lens.raster import to_png

        write_whole(path, to_png(picture))


def expected_places(
    links: Sequence[tuple[int, int]], rows: Sequence[int | None], columns: Sequence[int | None]
) -> list[tuple[int, int]]:
    """Pairs of word numbers as pairs of places in the map.

    rows, columns: per place its word's number. Words that were cut off have no place: their pairs are left out.
    """
    row_of = {number: place for place, number in enumerate(rows) if number is not None}
    column_of = {number: place for place, number in enumerate(columns) if number is not None}
    return sorted((row_of[q], column_of[k]) for q, k in set(links) if q in row_of and k in column_of)


def check_expected(links: Sequence[tuple[int, int]], num_rows: int, num_columns: int) -> None:
    """Raises ObservationError where a pair lies outside the words that there are."""
    wrong = [(q, k) for q, k in links if not (0 <= q < num_rows and 0 <= k < num_columns)]
    if wrong:
        raise ObservationError(
            f"expected: pairs {wrong} of (target, source), but there are {num_rows} target words and {num_columns} "
            "source words; count from 0"
        )


def _panel(
    record: AttentionRecord,
    layer: str | None,
    head: int | None,
    unit: str,
    links: Sequence[tuple[int, int]],
    words: WordSplitter,
    number: str,
) -> Panel:
    if unit not in ("words", "tokens"):
        raise ObservationError(f"draw: unit {unit!r} is not known; known: 'words', 'tokens'")
    maps = maps_of(record)
    title = number + choice_name(maps, layer, head)
    places: list[tuple[int, int]] = []
    if unit == "words":
        row_words, column_words = axis_words(maps.target, words), axis_words(maps.source, words)
        check_expected(links, len(row_words), len(column_words))
        maps = maps_of(as_record(maps).over_words(row_words, column_words))
        places = expected_places(links, numbers(maps.target, row_words), numbers(maps.source, column_words))
    elif links:
        raise ObservationError("draw: expected pairs are pairs of words; draw with unit='words'")
    return Panel(
        title,
        maps.target.tokens,
        maps.source.tokens,
        [begin == end for begin, end in maps.target.spans],
        [begin == end for begin, end in maps.source.spans],
        chosen_map(maps, layer, head),
        places,
    )
