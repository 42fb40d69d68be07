"""The container: read and written as the safetensors package does, and no header is believed."""

from __future__ import annotations

import gc
import json
import os
import resource
import stat
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from regard.attention.records.tensor_file import DTYPES, loads, open_tensors, replacing, write_tensors
from regard.errors import ConfigError

TENSORS = {
    "a/wide": torch.randn(3, 5, dtype=torch.float64),
    "b": torch.randn(7, 11).T,
    "half": torch.randn(2, 3).half(),
    "brain": torch.randn(5).bfloat16(),
    "whole": torch.arange(13),
    "short": torch.arange(3, dtype=torch.int32),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "nothing": torch.zeros(2, 0, 3),
    "repeated": torch.randn(1, 3).expand(4, 3),
    "ünïcode \n": torch.ones(1),
}


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    with replacing(path) as file:
        write_tensors(file, tensors, metadata or {})
    return path


def raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file of any header; length: what it claims to be long."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_what_is_written_is_read_here_and_by_safetensors(tmp_path: Path) -> None:
    path = write(tmp_path / "a", TENSORS, {"one": "1 ü"})
    mine = open_tensors(path)
    assert mine.metadata == {"one": "1 ü"}
    with safe_open(path, framework="pt") as theirs:
        assert theirs.metadata() == {"one": "1 ü"}
        assert sorted(theirs.keys()) == sorted(TENSORS) == sorted(mine.entries)
        for name, tensor in TENSORS.items():
            for found in (mine.tensor(name), theirs.get_tensor(name)):
                assert found.dtype == tensor.dtype
                assert torch.equal(found, tensor), name
    assert {tensor.dtype for tensor in TENSORS.values()} == set(DTYPES.values())
    assert all(e.begin % e.dtype.itemsize == 0 for e in mine.entries.values())
    assert path.read_bytes() == write(tmp_path / "b", TENSORS, {"one": "1 ü"}).read_bytes()


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    plain = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(plain, tmp_path / "a", metadata={"x": "y"})
    found = open_tensors(tmp_path / "a")
    assert all(torch.equal(found.tensor(name), tensor) for name, tensor in plain.items())


def test_a_tensor_is_a_private_view_that_outlives_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"x": torch.zeros(1000)})
    file = open_tensors(path)
    one, other = file.tensor("x"), file.tensor("x")
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    del file
    path.unlink()
    gc.collect()
    one[7] = 3.0
    assert other[7] == 3.0
    path = write(tmp_path / "a", {"x": torch.zeros(1000)})
    open_tensors(path).tensor("x").fill_(1.0)
    assert not open_tensors(path).tensor("x").any(), "the file itself is never written to"


def test_tensors_that_a_processor_cannot_load_from_are_copied(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], [0, 1]), "b": entry("F32", [2], [1, 9])}
    values = torch.tensor([1.5, -2.5])
    for pad in range(4):
        text = json.dumps(header).encode() + b" " * pad
        file = open_tensors(raw(tmp_path / "a", text, b"\1" + values.numpy().tobytes()))
        assert torch.equal(file.tensor("b"), values)


HEADERS: dict[str, tuple[Any, bytes, str]] = {
    "no object": ([], b"", "no JSON object"),
    "no JSON": (b"{", b"", "Expecting"),
    "no UTF-8": (b'{"\xff": 1}', b"", "utf-8"),
    "nested": (b"[" * 200_000, b"", "nested too deeply"),
    "nested objects": (b'{"a":' * 100_000, b"", "nested too deeply"),
    "a key twice": (b'{"a": 1, "a": 2}', b"", "names a key twice"),
    "no number": (b'{"a": NaN}', b"", "NaN, which is no JSON"),
    "an endless number": (b'{"a": ' + b"9" * 10_000 + b"}", b"", "integer string"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "no texts by name"),
    "metadata a list": ({"__metadata__": []}, b"", "no texts by name"),
    "an entry a list": ({"a": []}, b"", "lacks its dtype"),
    "an entry without offsets": ({"a": {"dtype": "F32", "shape": []}}, b"", "lacks its dtype"),
    "an entry with more": ({"a": entry(more=1)}, b"\0" * 4, "lacks its dtype"),
    "an unknown type": ({"a": entry("F31")}, b"\0" * 4, "of type 'F31'; known: F64"),
    "a type that is none": ({"a": entry(["F32"])}, b"\0" * 4, "is of type"),  # type: ignore[arg-type]
    "a shape that is none": ({"a": entry(shape=4)}, b"\0" * 4, "no counts"),
    "a negative shape": ({"a": entry(shape=[-1, -1])}, b"\0" * 4, "no counts"),
    "a shape of truths": ({"a": entry(shape=[True])}, b"\0" * 4, "no counts"),
    "a shape of fractions": ({"a": entry(shape=[1.0])}, b"\0" * 4, "no counts"),
    "a huge shape": ({"a": entry(shape=[2**62])}, b"\0" * 4, "does not fit its 4 bytes"),
    "a shape beyond integers": ({"a": entry(shape=[2**70, 0])}, b"", "no counts"),
    "too many axes": ({"a": entry(shape=[1] * 9)}, b"\0" * 4, "no counts"),
    "a huge empty shape": ({"a": entry(shape=[0, 2**40], offsets=[0, 0])}, b"", "empty and of a shape beyond any use"),
    "an overflowing shape": ({"a": entry(shape=[2**32, 2**32, 4])}, b"\0" * 4, "does not fit its 4 bytes"),
    "three offsets": ({"a": entry(offsets=[0, 4, 4])}, b"\0" * 4, "no counts"),
    "negative offsets": ({"a": entry(offsets=[-4, 0])}, b"\0" * 4, "no counts"),
    "offsets backwards": ({"a": entry(offsets=[4, 0])}, b"\0" * 4, "lies outside"),
    "offsets beyond the end": ({"a": entry(offsets=[0, 8], shape=[2])}, b"\0" * 4, "lies outside"),
    "huge offsets": ({"a": entry(offsets=[2**62, 2**62 + 4])}, b"\0" * 4, "lies outside"),
    "overlap": ({"a": entry(), "b": entry()}, b"\0" * 4, "'b' begins at byte"),
    "a hole": ({"a": entry(), "b": entry(offsets=[8, 12])}, b"\0" * 12, "'b' begins at byte"),
    "more data": ({"a": entry()}, b"\0" * 5, "its tensors end at byte"),
    "a long name": ({"x" * 10_000 + "\n": []}, b"", "…"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_no_header_is_believed(case: str, tmp_path: Path) -> None:
    header, data, message = HEADERS[case]
    path = raw(tmp_path / "a", header, data)
    with pytest.raises(ValueError, match=message) as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8 + 1, 100, 3])
def test_a_claimed_length_allocates_nothing(length: int, tmp_path: Path) -> None:
    path = raw(tmp_path / "a", {"a": entry()}, b"\0" * 4, length=length)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"its header claims|Unterminated"):
            open_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(b"1234567")
    (tmp_path / "empty").touch()
    errors: list[Exception] = []

    def attempt(name: str) -> None:
        try:
            open_tensors(Path(name) if name.startswith("/") else tmp_path / name)
        except (ValueError, OSError) as error:
            errors.append(error)

    for name in ("pipe", "to pipe", "loop", ".", "short", "empty", "none", "/dev/zero"):
        thread = threading.Thread(target=attempt, args=(name,), daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive(), f"{name}: hangs"
    assert len(errors) == 8


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write(tmp_path / "a", {"x": torch.ones(3)}))
    assert open_tensors(tmp_path / "link").tensor("x").sum() == 3


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"x": torch.ones(3)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written \(File too large\); choose a folder that can$"):
            write(path, {"x": torch.ones(10**6)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"x": torch.ones(3)})
    before = path.read_bytes()

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def test_a_link_stays_a_link_unless_it_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", {"x": torch.ones(3)})
    assert (tmp_path / "link").is_symlink()
    assert open_tensors(tmp_path / "real").entries.keys() == {"x"}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    write(tmp_path / "loop", {"x": torch.ones(3)})
    assert open_tensors(tmp_path / "loop").entries.keys() == {"x"}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_plain_json_is_read() -> None:
    assert loads('{"a": [1, 2.5, null, true, "x"]}') == {"a": [1, 2.5, None, True, "x"]}
