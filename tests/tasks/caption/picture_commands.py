"""What commands on pictures come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Done(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


class Trained(NamedTuple):
    """A finished run over the pictures in `data`."""

    data: Path
    run: Path

    @property
    def model(self) -> Path:
        return self.run / "model"

    @property
    def result(self) -> dict:
        return json.loads((self.run / "result.json").read_text())
