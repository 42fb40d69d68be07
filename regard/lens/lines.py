"""Records as JSON lines, for programs that read attention without reading regard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regard.attention.records.map_parts import head_numbers
from regard.attention.records.record import AttentionRecord, Axis
from regard.lens.areas import area_of, check_cost, very
from regard.lens.atomic import write_whole
from regard.lens.maps import Maps, is_long, maps_of

DIGITS = 4  # decimals kept of a weight; half a unit of the last one is 5e-5, less than any picture shows
LONG_CELLS = 256  # a side, of a map that is too long to be written weight by weight


def as_plain(maps: Maps) -> dict[str, Any]:
    """Maps as what JSON knows: texts, tokens, spans [begin, end) in characters, and weights [heads][target][source]."""
    plain: dict[str, Any] = {
        **_sides(maps.source, maps.target),
        # Rounded in float64: in float32 a rounded weight would still print with eight digits.
        "layers": {name: weights.double().numpy().round(DIGITS).tolist() for name, weights in maps.layers.items()},
    }
    return plain | ({"heads": {name: list(heads) for name, heads in maps.heads.items()}} if maps.heads else {})


def long_as_plain(record: AttentionRecord) -> dict[str, Any]:
    """A long record in the same way, with maps pooled to at most 256 cells a side in place of weights.

    "pooled" holds per layer its "queries" and "keys", the numbers of its "heads", and "shares" [heads][row][column]: of
    the attention of a cell's queries, to four digits.
    """
    check_cost(record, list(record.layers), None, LONG_CELLS)
    pooled = {}
    for name, observation in record.layers.items():
        heads = head_numbers(observation)
        areas = [area_of(record, very(name), head, most=LONG_CELLS) for head in heads]
        pooled[name] = {
            "queries": areas[0].queries[1] if areas else 0,
            "keys": areas[0].keys[1] if areas else 0,
            "heads": heads,
            "shares": [[[float(f"{share:.4g}") for share in row] for row in area.shares.tolist()] for area in areas],
        }
    return {**_sides(record.key, record.query), "pooled": pooled}


def _sides(source: Axis | None, target: Axis | None) -> dict[str, Any]:
    nothing = Axis("", (), ())
    source, target = (nothing if axis is None else axis for axis in (source, target))
    return {
        "source": source.text,
        "target": target.text,
        "source_tokens": list(source.tokens),
        "source_spans": [list(span) for span in source.spans],
        "target_tokens": list(target.tokens),
        "target_spans": [list(span) for span in target.spans],
    }


def write_lines(records: Sequence[AttentionRecord], path: str | Path) -> None:
    """Writes one JSON object a record and line, in ASCII; see `as_plain` and `long_as_plain` for its keys."""
    plain = [long_as_plain(record) if is_long(record) else as_plain(maps_of(record)) for record in records]
    text = "".join(json.dumps(one, separators=(",", ":"), allow_nan=False) + "\n" for one in plain)
    write_whole(path, text.encode("ascii"))
