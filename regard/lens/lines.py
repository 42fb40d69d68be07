"""Records as JSON lines, for programs that read attention without reading regard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regard.attention.record import AttentionRecord
from regard.lens.atomic import write_whole
from regard.lens.maps import Maps, maps_of

DIGITS = 4  # decimals kept of a weight; half a unit of the last one is 5e-5, less than any picture shows


def as_plain(maps: Maps) -> dict[str, Any]:
    """Maps as what JSON knows: texts, tokens, spans [begin, end) in characters, and weights [heads][target][source]."""
    return {
        "source": maps.source.text,
        "target": maps.target.text,
        "source_tokens": list(maps.source.tokens),
        "source_spans": [list(span) for span in maps.source.spans],
        "target_tokens": list(maps.target.tokens),
        "target_spans": [list(span) for span in maps.target.spans],
        # Rounded in float64: in float32 a rounded weight would still print with eight digits.
        "layers": {name: weights.double().numpy().round(DIGITS).tolist() for name, weights in maps.layers.items()},
    }


def write_lines(records: Sequence[AttentionRecord], path: str | Path) -> None:
    """Writes one JSON object a record and line, in ASCII; see `as_plain` for its keys."""
    plain = [as_plain(maps_of(record)) for record in records]
    text = "".join(json.dumps(one, separators=(",", ":"), allow_nan=False) + "\n" for one in plain)
    write_whole(path, text.encode("ascii"))
