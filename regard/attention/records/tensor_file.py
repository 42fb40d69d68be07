"""Safetensors files, mapped into memory and trusted in nothing.

The format is that of the `safetensors` package: the length of a header in 8 bytes, the header as JSON (for each tensor
its type, shape and place), then the tensors. It is read here, and not by that package, for two reasons: each tensor is
a view of the mapped file, of which only what is looked at is ever read, and every claim of a header is held against the
size of the file before anything is allocated. What is written can be read by that package; tensors go to the file one
by one, so that writing needs the memory of the largest of them.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from regard.errors import ConfigError

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
MOST_DIMENSIONS = 8
# A tensor without elements takes no bytes whatever its shape says, so the size of the file does not bound it.
MOST_EMPTY = 2**24  # the product of the other dimensions of an empty tensor


@dataclass(frozen=True)
class Entry:
    """Where a tensor stands: its bytes are [begin, end) of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """An open file. metadata: its texts by name. entries: its tensors by name, in the order of the header."""

    def __init__(self, mapped: mmap.mmap, metadata: dict[str, str], entries: dict[str, Entry]) -> None:
        self._mapped = mapped
        self.metadata = metadata
        self.entries = entries

    def tensor(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file; writing into it changes neither the file nor another process."""
        entry = self.entries[name]
        count = math.prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.begin % entry.dtype.itemsize:
            # Only a foreign writer leaves a tensor where a processor may not be able to load it from.
            copied = bytearray(memoryview(self._mapped)[entry.begin : entry.end])
            return torch.frombuffer(copied, dtype=entry.dtype).view(entry.shape)
        return torch.frombuffer(self._mapped, dtype=entry.dtype, count=count, offset=entry.begin).view(entry.shape)


def open_tensors(path: Path) -> TensorFile:
    """Maps a file and reads its header; no tensor is read.

    Raises: ValueError, on one line, where the file is no sound safetensors file; OSError where it cannot be opened.
    """
    # A pipe would be waited for, and opening a device may already do something: neither is opened.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size < 8:
            raise ValueError(f"it ends after {status.st_size} bytes")
        mapped = _map(descriptor, status.st_size)
    finally:
        os.close(descriptor)
    length = int.from_bytes(mapped[:8], "little")
    if length > min(status.st_size - 8, MOST_HEADER_BYTES):
        raise ValueError(f"its header claims {length} bytes and the file has {status.st_size}")
    metadata, entries = _parsed(mapped[8 : 8 + length], 8 + length, status.st_size)
    return TensorFile(mapped, metadata, entries)


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file: equal tensors and metadata are equal bytes."""
    assert sys.byteorder == "little", "the format is little-endian"
    names = {dtype: name for name, dtype in DTYPES.items()}
    # Wide elements first, as the safetensors package does: then every tensor begins where its type may be loaded from.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        if tensors[name].numel():
            plain = tensors[name].detach().cpu().contiguous()
            file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends.

    A failure leaves what was there before, and nothing beside it. A link stays a link: what it points to is replaced.
    Raises: ConfigError when the folder is missing, full or cannot be written to.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ConfigError(f"{path}: no such folder `{path.parent}`; create it or write elsewhere")
    # Opened by name, not with `tempfile`, so that the file has the permissions that the user's umask gives.
    part = target.parent / f".regard-{secrets.token_hex(8)}.part"
    try:
        with open(part, "xb") as file:
            yield file
        os.replace(part, target)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose a folder that can") from None
    finally:
        part.unlink(missing_ok=True)


def loads(text: str | bytes) -> Any:
    """JSON from an unknown source. Raises: ValueError for anything but plain JSON, however deep, long or odd."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refused)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _map(descriptor: int, size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    # Writable, since torch knows no read-only tensor, but private; and not reserved, so that a file larger than the
    # memory can be mapped.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    return mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _parsed(text: bytes, begin: int, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata and entries of a header; begin: where the tensors begin in the file of `size` bytes."""
    header = loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts by name")
    entries = {name: _entry(name, about, begin, size) for name, about in header.items()}
    reached = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise ValueError(f"tensor {_shown(name)} begins at byte {entry.begin}, expected {reached}")
        reached = entry.end
    if reached != size:
        raise ValueError(f"its tensors end at byte {reached} and the file at {size}")
    return metadata, entries


def _entry(name: str, about: object, begin: int, size: int) -> Entry:
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {_shown(name)} lacks its dtype, shape and data_offsets")
    kind, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise ValueError(f"tensor {_shown(name)} is of type {str(kind)[:20]!r}; known: {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {_shown(name)} has a shape or offsets that are no counts")
    first, last = begin + offsets[0], begin + offsets[1]
    if not begin <= first <= last <= size:
        raise ValueError(f"tensor {_shown(name)} lies outside the file")
    if math.prod(shape) * dtype.itemsize != last - first:
        raise ValueError(f"tensor {_shown(name)} has a shape that does not fit its {last - first} bytes")
    if first == last and math.prod(size for size in shape if size) > MOST_EMPTY:
        raise ValueError(f"tensor {_shown(name)} is empty and of a shape beyond any use")
    return Entry(dtype, tuple(shape), first, last)


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:79] + "\u2026")


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its JSON names a key twice")
    return found


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"its JSON holds {constant}, which is no JSON")


def version_of(text: str) -> int:
    """The number of a format, or -1 where the text is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) else -1
