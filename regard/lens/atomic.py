"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from regard.errors import ConfigError


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes `content` to `path` in one step: a failure leaves what was there before, and nothing beside it.

    Raises: ConfigError when the folder is missing or cannot be written to.
    """
    path = Path(path)
    target = path.resolve()  # a link stays a link: what it points to is replaced
    if not target.parent.is_dir():
        raise ConfigError(f"{path}: no such folder `{path.parent}`; create it or write elsewhere")
    # Opened by name, not with `tempfile`, so that the file has the permissions that the user's umask gives.
    part = target.parent / f".regard-{secrets.token_hex(8)}.part"
    try:
        with open(part, "xb") as file:
            file.write(content)
        os.replace(part, target)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose a folder that can") from None
    finally:
        part.unlink(missing_ok=True)
