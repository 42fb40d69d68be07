"""A tokenizer as one JSON object, by which it is kept, compared and sent to other processes, whatever its kind."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from regard.errors import ModelFileError

FORMAT_VERSION = 1


class JsonTokenizer(ABC):
    """What tokenizers of all kinds share: all that they are is `content`, and two of equal content are equal."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Everything needed to build this tokenizer again, as plain values."""

    @classmethod
    @abstractmethod
    def of_content(cls, content: dict[str, Any]) -> Self:
        """The tokenizer of which `content` told. Raises: any exception where it is not as `content` makes it."""

    def to_json(self) -> str:
        """Everything needed to build this tokenizer again, as one JSON object.

        Runs are resumed by its very bytes: equal tokenizers give equal ones, from one version of regard to the next.
        """
        content = {"format_version": FORMAT_VERSION, **self.content()}
        return json.dumps(content, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, content: str, *, name: str = "tokenizer") -> Self:
        """The tokenizer that `to_json` described; `name` is what error messages call it.

        Raises: ModelFileError when `content` is damaged or of a newer format.
        """
        try:
            parsed = json.loads(content)
            version = parsed["format_version"]
            if version == FORMAT_VERSION:
                return cls.of_content(parsed)
        except Exception as error:  # whatever is not as it should be; tokenizers raises plain Exception
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(
                f"{name}: damaged tokenizer ({type(error).__name__}: {reason}), expected a file regard wrote;"
                " copy it again or train anew"
            ) from error
        raise ModelFileError(
            f"{name}: tokenizer format {version!r}, this regard reads up to {FORMAT_VERSION}; update regard"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to `path`, whole or not at all."""
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(self.to_json(), encoding="utf-8")
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The tokenizer saved at `path`. Raises: ModelFileError when it is missing or damaged."""
        try:
            content = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{path}: damaged tokenizer ({error}), expected UTF-8 text; copy it again or train anew"
            ) from error
        except OSError as error:
            raise ModelFileError(
                f"{path}: cannot read the tokenizer ({error.strerror}); give the path of a file that"
                f" {cls.__name__}.save wrote"
            ) from error
        return cls.from_json(content, name=str(path))

    def fingerprint(self) -> str:
        """SHA-256 of `to_json`, in hexadecimal: equal exactly when two tokenizers are."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).from_json, (self.to_json(),))
