"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

from regard.attention.records.tensor_file import replacing


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes `content` to `path` in one step: a failure leaves what was there before, and nothing beside it.

    Raises: ConfigError when the folder is missing or cannot be written to.
    """
    with replacing(path) as file:
        file.write(content)
