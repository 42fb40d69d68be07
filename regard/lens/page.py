"""Records as one self-contained page of HTML: it needs no network, no server and no other file.

Its size grows with the number of weights kept: about 7 bytes for each head, target token and source token. The page's
own script puts tokens together to words, so that nothing is stored twice. A record too long for that is shown as charts
of its layers, at most about half a megabyte each.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from regard.attention.records.record import AttentionRecord
from regard.errors import ObservationError
from regard.lens.areas import check_cost
from regard.lens.atomic import write_whole
from regard.lens.colour import STEPS, scale, text_colour
from regard.lens.layout import lay_out
from regard.lens.lines import as_plain
from regard.lens.maps import is_long, maps_of
from regard.lens.plot import CHART_CELLS, Expected, check_expected, expected_places, long_chart
from regard.lens.vector import to_svg
from regard.lens.words import Grouping, WordSplitter, axis_words, group, words_of

LEAD_WORDS = (
    "Each target word was produced while attending to the source: the stronger the colour between two words, the more "
    "of the attention weight lay there."
)
LEAD_CHARTS = (
    "In a chart, each row of cells is a stretch of queries and each column a stretch of keys: the stronger the colour, "
    "the larger the share of these queries' attention that lay on these keys."
)
LEAD = "Attention shows from where a model routed information; it does not explain why the model chose a word."


def write_page(
    records: AttentionRecord | Sequence[AttentionRecord],
    path: str | Path,
    *,
    title: str = "Attention",
    notes: str | Sequence[str] = (),
    expected: Expected | None = None,
    words: WordSplitter = words_of,
) -> None:
    """Writes the page: for each record both texts, whose words show what they attended to, and a heat map.

    title: heads the page. notes: paragraphs of plain text under it.
    expected: per record the (query_index, key_index) pairs to outline, counted as `regard.lens.align` counts words.
    words: text -> character spans of its words.

    Raises: ObservationError for a record that cannot be drawn; ConfigError for a folder that cannot be written to.
    """
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    if not records:
        raise ObservationError(f"{path}: there is no record to show; give one or more")
    if expected is not None and len(expected) != len(records):
        raise ObservationError(f"expected: {len(expected)} alignments for {len(records)} records; give one each")
    article, chart = Template(asset("page_article.html")), Template(asset("page_chart.html"))
    plain, articles = [], []
    for place, record in enumerate(records):
        links = expected[place] if expected is not None else ()
        if is_long(record):
            if links:
                raise ObservationError("expected pairs are pairs of words; a record this long is shown without words")
            name = f"Map {place + 1}" if len(records) > 1 else "Map"
            articles.append(chart.substitute(place=place, name=name, figures="".join(_figures(record))))
            continue
        one = _for_script(record, links, words) | {"place": place}
        name = f"Sentence {place + 1}" if len(records) > 1 else "Sentence"
        texts = {side: escape(one[side]) for side in ("source", "target")}
        articles.append(article.substitute(place=place, name=name, **texts))
        plain.append(one)
    lead = [LEAD_WORDS] if plain else []
    lead += [LEAD_CHARTS] if len(plain) < len(records) else []
    paragraphs = [notes] if isinstance(notes, str) else list(notes)
    style, script = _style(), asset("page.js")
    page = Template(asset("page.html")).substitute(
        title=escape(title),
        lead=" ".join([*lead, LEAD]),
        notes="".join(f'<p class="note">{escape(note)}</p>\n' for note in paragraphs if note),
        articles="".join(articles),
        data=embedded({"steps": STEPS, "records": plain}),
        style=style,
        script=script,
        style_hash=digest(style),
        script_hash=digest(script),
        image_source=" data:" if len(plain) < len(records) else " 'none'",
    )
    # A text may hold half of a surrogate pair, which UTF-8 cannot: it becomes a question mark.
    write_whole(path, page.encode("utf-8", "replace"))


def _figures(record: AttentionRecord) -> Iterator[str]:
    """A chart for each layer of a long record."""
    check_cost(record, list(record.layers), None, CHART_CELLS)
    for layer in record.layers:
        drawn = to_svg(lay_out([long_chart(record, layer, None)]))
        yield f'<figure class="chart">{drawn}</figure>\n'


def _for_script(record: AttentionRecord, links: Sequence[tuple[int, int]], words: WordSplitter) -> dict[str, Any]:
    """What page.js reads of a record: `as_plain`; per side its words as [label, begin, end], and each token's word."""
    maps = maps_of(record)
    target_words, source_words = axis_words(maps.target, words), axis_words(maps.source, words)
    check_expected(links, len(target_words), len(source_words))
    target, source = group(maps.target, target_words), group(maps.source, source_words)
    return as_plain(maps) | {
        "target_units": _units(target),
        "target_owner": target.owner,
        "source_units": _units(source),
        "source_owner": source.owner,
        "expected": expected_places(links, target.number, source.number),
    }


def _units(grouping: Grouping) -> list[list[Any]]:
    return [[label, *span] for label, span in zip(grouping.axis.tokens, grouping.axis.spans, strict=True)]


def embedded(data: dict[str, Any]) -> str:
    """JSON that stays data inside a script element: no "<" in it, hence neither "</script>" nor "<!--"."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def asset(name: str) -> str:
    """The text of a file that comes with this package."""
    return files("regard.lens").joinpath(name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    """The style sheet with a class for each step of the colour scale, s0 to s64."""
    bright, dark = (
        "".join(
            f".s{step}{{background:{colour};color:{text_colour(colour)}}}"
            for step, colour in enumerate(scale(dark=is_dark))
        )
        for is_dark in (False, True)
    )
    return f"{asset('page.css')}{bright}\n@media screen and (prefers-color-scheme: dark) {{{dark}}}\n"


def digest(text: str) -> str:
    """The name under which the page's content security policy allows this one script or style and nothing else."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
