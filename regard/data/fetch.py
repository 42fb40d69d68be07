"""Public files, fetched once into a folder and checked.

A file is kept unpacked, with the Unicode line separators inside its lines turned into spaces, so that every tool
counts its lines alike; Parquet files are kept byte for byte. The checksum is that of the file as it is kept: what
lies in the folder can be checked at any time (`sha256sum train.en`), however the file came there and however the
server packed it.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from regard.errors import ConfigError, DataError

# file name, bytes received so far, bytes in all where the server says so
Progress = Callable[[str, int, int | None], None]

CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30.0  # without a single byte
# Everything but "\n" and "\r" at which str.splitlines breaks.
LINE_SEPARATORS = dict.fromkeys(map(ord, "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), " ")
_BROKEN = (OSError, http.client.HTTPException, EOFError, zlib.error, ValueError)  # what reading from a server may raise


def cache_folder(name: str) -> Path:
    """Where the downloads of the recipe `name` are kept: under REGARD_CACHE, else XDG_CACHE_HOME/regard, else
    ~/.cache/regard."""
    own, shared = os.environ.get("REGARD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "regard"
    return root.expanduser().absolute() / name


def fetch(files: Mapping[str, tuple[str, str]], folder: Path, progress: Progress | None = None) -> Path:
    """Sees to it that `folder` holds every one of `files`, and returns it.

    files: name under `folder` -> (address, SHA-256 of the file as it is kept, in hexadecimal). What comes from an
    address that ends in .gz is unpacked, unless the name ends so too. A file that is there and right is left alone,
    without any network; one that is wrong is fetched again. A file appears under its name only when it is complete
    and right.

    Raises: ConfigError for a name outside `folder`; DataError for a file that cannot be fetched, differs from its
    checksum or cannot be written.
    """
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ConfigError(f"downloads: `{name}` lies outside the data folder; give a name inside it, as train.en")
    wrong = {name: where for name, where in files.items() if not _is_right(folder / name, where[1])}
    for done, (name, (url, sha256)) in enumerate(wrong.items()):
        _fetch_one(name, url, sha256.lower(), folder, len(wrong) - done - 1, progress)
    return folder


def kept(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The content of a file as it is kept under `name`."""
    if name.endswith(".parquet") or name.endswith(".gz"):
        yield from chunks
        return
    # What is no UTF-8 passes as it is: the reader names such lines.
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for chunk in chunks:
        yield decoder.decode(chunk).translate(LINE_SEPARATORS).encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _is_right(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            for chunk in kept(iter(lambda: file.read(CHUNK_BYTES), b""), path.name):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == sha256.lower()


def _fetch_one(name: str, url: str, sha256: str, folder: Path, others: int, progress: Progress | None) -> None:
    path = folder / name
    digest = hashlib.sha256()
    unfinished: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that two processes may fetch the same file.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            unfinished = Path(file.name)
            for chunk in kept(_received(name, url, path, others, progress), name):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{name}: what {url} holds has SHA-256 {digest.hexdigest()}, expected {sha256}; the file was changed or"
                " damaged on the way, nothing was kept: try again, or pass data.root=FOLDER with the right one"
            )
        unfinished.chmod(0o644)  # temporary files are private
        os.replace(unfinished, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); make room, set REGARD_CACHE to another folder, or"
            " pass data.root=FOLDER"
        ) from None
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


def _received(name: str, url: str, path: Path, others: int, progress: Progress | None) -> Iterator[bytes]:
    """The content behind `url`, unpacked. Raises: DataError that says where to get the file and where to put it."""
    try:
        with ExitStack() as open_files:
            response = open_files.enter_context(urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS))
            size = response.headers.get("Content-Length")
            counted: Any = _Counted(response, name, int(size) if size else None, progress)
            unpack = url.endswith(".gz") and not name.endswith(".gz")
            source = open_files.enter_context(gzip.GzipFile(fileobj=counted)) if unpack else counted
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
    except _BROKEN as error:
        reason = getattr(error, "reason", None) or error
        code = ""
        if isinstance(error, urllib.error.HTTPError):
            code = f"HTTP {error.code} "
            error.close()  # it holds the connection
        more = f" ({others} more file{'s' if others > 1 else ''} likewise)" if others else ""
        raise DataError(
            f"{name}: cannot be fetched from {url} ({code}{' '.join(str(reason).split())}); get it there by other means"
            f" and put it, unpacked, at {path}{more}, or pass data.root=FOLDER where the files lie"
        ) from None


class _Counted:
    """A response that reports how much of it was read."""

    def __init__(
        self, response: http.client.HTTPResponse, name: str, size: int | None, progress: Progress | None
    ) -> None:
        self._response, self._name, self._size, self._progress = response, name, size, progress
        self._received = 0

    def read(self, size: int = -1) -> bytes:
        chunk = self._response.read(size)
        self._received += len(chunk)
        if self._progress is not None:
            self._progress(self._name, self._received, self._size)
        if not chunk and self._size is not None and self._received < self._size:
            raise http.client.IncompleteRead(b"", self._size - self._received)
        return chunk
