"""Heat maps of records as .png and .svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from regard.attention.records.map_parts import Range, head_numbers, lengths
from regard.attention.records.record import AttentionRecord
from regard.errors import ConfigError, ObservationError
from regard.lens.areas import Area, area_of, mean_area
from regard.lens.atomic import write_whole
from regard.lens.chart import chart_of
from regard.lens.layout import Panel, Picture, lay_out
from regard.lens.maps import as_record, choice_in_words, choice_name, chosen_layers, chosen_map, is_long, maps_of
from regard.lens.words import WordSplitter, axis_words, numbers, words_of

Expected = Sequence[Sequence[tuple[int, int]]]
MOST_LABELS = 48  # positions a side of an area that are drawn with their tokens
CHART_CELLS = 512  # a side, of charts that stand beside others


class Drawing:
    """A drawn map; a notebook shows it as a picture."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    def png(self) -> bytes:
        from regard.lens.raster import to_png

        return to_png(self._picture)

    def svg(self) -> str:
        from regard.lens.vector import to_svg

        return to_svg(self._picture)

    def save(self, path: str | Path) -> Path:
        """Writes it as .png or .svg. Raises: ConfigError for another ending and where it cannot be written."""
        path = picture_path(path)
        write_whole(path, self.svg().encode() if path.suffix == ".svg" else self.png())
        return path

    def _repr_png_(self) -> bytes:
        return self.png()


def plot(
    record: AttentionRecord,
    layer: str,
    head: int | None = None,
    *,
    queries: Range | None = None,
    keys: Range | None = None,
    item: int = 0,
) -> Drawing:
    """One layer's map, or an area of it: what `AttentionRecord.plot` draws.

    An area of up to 48 positions a side is drawn with its tokens, a larger one as a chart, see `regard.lens.areas`.
    """
    area = area_of(record, layer, head, queries=queries, keys=keys, item=item)
    title = choice_in_words({layer: len(head_numbers(record[layer]))}, layer, head)
    title += f", item {item}" if item else ""
    if area.exact and max(area.shares.shape) <= MOST_LABELS:
        return Drawing(lay_out([_labelled(record, layer, area, title)]))
    if not area.exact:
        title += f", {area.shares.shape[0]} x {area.shares.shape[1]} cells"
    return Drawing(lay_out([chart_of(area, title)]))


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

    A record too long for words and cells is drawn as a chart of its pooled map, see `regard.lens.areas`.

    layer: a layer's name, "last", or None or "mean" for the mean over layers.
    head: one head; the mean over heads if None.
    unit: whether words or tokens are shown. words: text -> character spans of its words.
    expected: per record the (query_index, key_index) pairs to outline, counted as `regard.lens.align` counts words.

    Raises: ConfigError for an ending other than .png and .svg, and for a folder that cannot be written to;
    ObservationError for a record that cannot be drawn.
    """
    path = picture_path(path)
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
    Drawing(lay_out(panels, title)).save(path)


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


def long_chart(record: AttentionRecord, layer: str | None, head: int | None, number: str = "") -> Picture:
    """The chart of a long record; layer and head as in `draw`, number: what its title begins with."""
    names = chosen_layers(record.layers, layer)
    area = mean_area(record, names, head, most=CHART_CELLS)
    counts = {name: len(head_numbers(record.layers[name])) for name in names}
    return chart_of(area, number + choice_in_words(counts, None, head))


def _labelled(record: AttentionRecord, layer: str, area: Area, title: str) -> Panel:
    """A small area with its tokens, or numbers where the axes are not known or those of other layers."""
    sides = []
    axes, ranges = (record.query, record.key), (area.queries, area.keys)
    for axis, (begin, end), length in zip(axes, ranges, lengths(record[layer]), strict=True):
        if axis is not None and len(axis) == length:
            special = [start == stop for start, stop in axis.spans[begin:end]]
            sides.append((list(axis.tokens[begin:end]), special))
        else:
            sides.append(([str(position) for position in range(begin, end)], [True] * (end - begin)))
    (rows, special_rows), (columns, special_columns) = sides
    return Panel(title, rows, columns, special_rows, special_columns, area.shares)


def picture_path(path: str | Path) -> Path:
    """The path, of an ending that is a picture's. Raises: ConfigError."""
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"{path}: ending {path.suffix or 'missing'!r} is not a picture's; known: .png, .svg")
    return path


def _panel(
    record: AttentionRecord,
    layer: str | None,
    head: int | None,
    unit: str,
    links: Sequence[tuple[int, int]],
    words: WordSplitter,
    number: str,
) -> Panel | Picture:
    if unit not in ("words", "tokens"):
        raise ObservationError(f"draw: unit {unit!r} is not known; known: 'words', 'tokens'")
    if is_long(record):
        if links:
            raise ObservationError("draw: expected pairs are pairs of words; this record is drawn without words")
        return long_chart(record, layer, head, number)
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
