"""Downloads: from a server on this machine, right and wrong, present and absent."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.data.fetch import LINE_SEPARATORS, cache_folder, fetch, kept
from regard.errors import ConfigError, DataError

TEXT = "Ein Hund läuft.\nZwei\u2028Hunde\x0b und 😀\x85\r\n\tdrei\n"
KEPT = "Ein Hund läuft.\nZwei Hunde  und 😀 \r\n\tdrei\n".encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, contents: dict[str, bytes], asked: list[str], *args: object) -> None:
        self.contents, self.asked = contents, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = self.contents.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        short = self.path.startswith("/short")
        self.send_header("Content-Length", str(len(content) + (100 if short else 0)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server:
    def __init__(self, address: str, contents: dict[str, bytes], asked: list[str]) -> None:
        self.address, self.contents, self.asked = address, contents, asked


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    contents: dict[str, bytes] = {"/a.txt": TEXT.encode(), "/b.gz": gzip.compress(TEXT.encode())}
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, contents, asked)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{running.server_port}", contents, asked)
        running.shutdown()
        thread.join(60)


def test_fetches_unpacks_and_evens_out_line_separators(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    files = {
        "a.en": (f"{server.address}/a.txt", sha256(KEPT)),
        "sub/b.de": (f"{server.address}/b.gz", sha256(KEPT).upper()),
    }
    folder = fetch(files, tmp_path / "new", lambda *progress: told.append(progress))
    assert folder == tmp_path / "new"
    assert (folder / "a.en").read_bytes() == (folder / "sub/b.de").read_bytes() == KEPT
    assert {name for name, _, _ in told} == set(files)
    assert told[-1][1] == told[-1][2] == len(server.contents["/b.gz"])
    assert sorted(path.name for path in folder.rglob("*")) == ["a.en", "b.de", "sub"]


def test_a_right_file_is_kept_without_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(KEPT)
    (tmp_path / "raw.en").write_bytes(TEXT.encode())  # put there by hand, as the server has it
    nowhere = "http://127.0.0.1:1/nothing"
    fetch({"a.en": (nowhere, sha256(KEPT)), "raw.en": (nowhere, sha256(KEPT))}, tmp_path)
    assert (tmp_path / "raw.en").read_bytes() == TEXT.encode()
    (tmp_path / "a.en").write_bytes(KEPT + b"x")
    fetch({"a.en": (f"{server.address}/a.txt", sha256(KEPT))}, tmp_path)
    assert (tmp_path / "a.en").read_bytes() == KEPT
    assert server.asked == ["/a.txt"]


def test_binary_files_are_kept_byte_for_byte(server: Server, tmp_path: Path) -> None:
    content = b"PAR1\x0b\x0c\xff\xe2\x80\xa8PAR1"
    server.contents["/c.parquet"] = content
    server.contents["/packed.gz"] = gzip.compress(content)
    packed = server.contents["/packed.gz"]
    fetch(
        {
            "c.parquet": (f"{server.address}/c.parquet", sha256(content)),
            "packed.gz": (f"{server.address}/packed.gz", sha256(packed)),
        },
        tmp_path,
    )
    assert (tmp_path / "c.parquet").read_bytes() == content
    assert (tmp_path / "packed.gz").read_bytes() == packed


def test_a_wrong_checksum_keeps_nothing(server: Server, tmp_path: Path) -> None:
    url = f"{server.address}/a.txt"
    with pytest.raises(DataError) as failure:
        fetch({"a.en": (url, "0" * 64)}, tmp_path)
    assert str(failure.value) == (
        f"a.en: what {url} holds has SHA-256 {sha256(KEPT)}, expected {'0' * 64}; the file was changed or damaged on"
        " the way, nothing was kept: try again, or pass data.root=FOLDER with the right one"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/absent.gz", "HTTP 404 Not Found"),
        ("/short.txt", "IncompleteRead"),
        ("/cut.gz", "Compressed file ended"),
        ("/plain.gz", "Not a gzipped file"),
    ],
)
def test_what_cannot_be_fetched_is_one_line_with_both_places(
    server: Server, tmp_path: Path, path: str, reason: str
) -> None:
    packed = gzip.compress(TEXT.encode())
    server.contents |= {"/short.txt": b"few", "/cut.gz": packed[:-9], "/plain.gz": b"not packed"}
    url = f"{server.address}{path}"
    with pytest.raises(DataError) as failure:
        fetch({"a.en": (url, sha256(KEPT)), "b.en": (url, sha256(KEPT))}, tmp_path / "x")
    message = str(failure.value)
    assert message.startswith(f"a.en: cannot be fetched from {url} ({reason}")
    assert message.endswith(
        f"); get it there by other means and put it, unpacked, at {tmp_path / 'x' / 'a.en'} (1 more file likewise), or"
        " pass data.root=FOLDER where the files lie"
    )
    assert "\n" not in message
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a", "no address", "ftp2://x/y", "http://[broken/"])
def test_no_server_and_no_address(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError, match=r"^a\.en: cannot be fetched from .* \(.+\); get it there [^\n]*$"):
        fetch({"a.en": (url, "0" * 64)}, tmp_path)


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\); make room, set REGARD_CACHE"):
        fetch({"a.en": (f"{server.address}/a.txt", sha256(KEPT))}, tmp_path / "file" / "folder")


@pytest.mark.parametrize("name", ["../a.en", "/a.en", "sub/../../a.en"])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"lies outside the data folder"):
        fetch({name: ("http://127.0.0.1:1/a", "0" * 64)}, tmp_path)


@given(st.text(alphabet="aé😀\n\r\t \x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), st.integers(1, 7))
def test_chunks_do_not_matter_and_lines_stay(text: str, size: int) -> None:
    content = text.encode()
    chunks = [content[begin : begin + size] for begin in range(0, len(content), size)]
    found = b"".join(kept(chunks, "a.en")).decode()
    assert found == text.translate(LINE_SEPARATORS)
    assert len(found) == len(text)
    assert found.count("\n") == text.count("\n")


@given(st.binary(), st.integers(1, 5))
def test_keeping_twice_is_keeping_once_and_bad_bytes_pass(content: bytes, size: int) -> None:
    once = b"".join(kept([content[begin : begin + size] for begin in range(0, len(content), size)], "a.en"))
    assert b"".join(kept([once], "a.en")) == once
    assert b"".join(kept([b"\xff\xc3a\n"], "a.en")) == b"\xff\xc3a\n"


def test_where_downloads_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REGARD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("one") == Path.home() / ".cache" / "regard" / "one"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("one") == tmp_path / "regard" / "one"
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "mine"))
    assert cache_folder("one") == tmp_path / "mine" / "one"
