"""Readers: every layout gives the same records, and nothing bad passes or disappears unreported."""

from __future__ import annotations

import builtins
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regard.data.readers import BadRecords, DataSpec, Origin, read
from regard.errors import ConfigError, DataError

PAIRS = [
    ("A dog runs.", "Ein Hund läuft."),
    ('He said "go", twice', "Er sagte „geh“\u2028zweimal"),  # quotes, comma, line separator
    ("tail\x85end", "e\u0301té"),  # next line, combining mark
    ("emoji 😀", "'apostrophe"),
]


def _write_lines(path: Path, lines: list[str], end: str = "\n") -> str:
    path.write_bytes("".join(line + end for line in lines).encode())
    return str(path)


def _every_layout(folder: Path, pairs: list[tuple[str, str]]) -> dict[str, DataSpec]:
    """The same pairs in each layout."""
    import pyarrow
    import pyarrow.parquet

    sources, targets = [a for a, _ in pairs], [b for _, b in pairs]
    parallel = {
        "source": _write_lines(folder / "a.en", sources),
        "target": _write_lines(folder / "a.de", targets, end="\r\n"),
    }
    tsv = _write_lines(folder / "a.tsv", ["source\ttarget", *(f"{a}\t{b}" for a, b in pairs)])
    bare = _write_lines(folder / "bare.tsv", [f"7\t{b}\t{a}" for a, b in pairs])
    zipped = folder / "a.tsv.gz"
    zipped.write_bytes(gzip.compress(Path(tsv).read_bytes()))
    with (folder / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("id", "target", "source"), *((5, b, a) for a, b in pairs)])
    jsonl = _write_lines(
        folder / "a.jsonl",
        [json.dumps({"translation": {"en": a, "de": b}}, ensure_ascii=n % 2 == 0) for n, (a, b) in enumerate(pairs)],
    )
    table = pyarrow.table({"source": sources, "n": list(range(len(pairs))), "target": targets})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=3)
    return {
        "parallel": DataSpec(parallel),
        "tsv": DataSpec(tsv),
        "headerless": DataSpec(bare, columns={"source": 2, "target": 1}, header=False),
        "gzip": DataSpec(str(zipped)),
        "csv": DataSpec(str(folder / "a.csv")),
        "jsonl": DataSpec(jsonl, columns={"source": "translation.en", "target": "translation.de"}),
        "parquet": DataSpec(str(folder / "a.parquet")),
    }


def _pairs(spec: DataSpec, **options: Any) -> list[tuple[str, str]]:
    return [(record.fields["source"], record.fields["target"]) for record in read(spec, **options)]


def test_every_layout_gives_the_same_records(tmp_path: Path) -> None:
    for name, spec in _every_layout(tmp_path, PAIRS).items():
        assert _pairs(spec) == PAIRS, name


def test_every_layout_reads_multi30k_alike(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "multi30k"
    original = DataSpec({"source": str(folder / "train.en"), "target": str(folder / "train.de")})
    pairs = _pairs(original)
    assert len(pairs) == 29000
    assert pairs[0] == (
        "Two young, White males are outside near many bushes.",
        "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    )
    pairs = [
        (a.replace("\t", " "), b.replace("\t", " ")) for a, b in pairs
    ]  # one sentence has a tab, which ends a cell
    for name, spec in _every_layout(tmp_path, pairs).items():
        assert _pairs(spec) == pairs, name


def test_real_tables_are_read_whole(shared_data: Path) -> None:
    """Columns of the corpora at hand, whose cells hold quotes that mean nothing."""
    for folder in ("aeslc", "scitldr"):
        path = shared_data / folder / "dev.tsv"
        lines = path.read_bytes().split(b"\n")
        header = lines[0].decode().split("\t")
        spec = DataSpec(str(path), columns={"source": header[-2], "target": header[-1]})
        report = BadRecords()
        num_good = sum(1 for _ in read(spec, on_bad="skip", report=report))
        assert num_good + len(report) == sum(1 for line in lines[1:] if line)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t\0"), min_size=1).filter(
    lambda value: value.strip() == value
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(text, text), min_size=1, max_size=5))
def test_any_text_survives_every_layout(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    if pairs[0][0].startswith("\ufeff"):
        return  # a byte-order mark at the start of a file is no text
    for name, spec in _every_layout(tmp_path, pairs).items():
        assert _pairs(spec) == pairs, name


def test_origins_count_lines_from_one_with_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('source,target\n"one\ntwo",x\nthree,y\n', encoding="utf-8")
    records = list(read(DataSpec(str(path))))
    assert [record.origin for record in records] == [Origin(str(path), 2), Origin(str(path), 4)]
    assert records[0].fields["source"] == "one\ntwo"


# Each case: file name, content, the reason it must report, and the line it must name.
BAD = {
    "tsv column": ("a.tsv", b"source\ttarget\nx\ty\nx\n", "1 column instead of 2", 3),
    "tsv extra column": ("a.tsv", b"source\ttarget\nx\ty\tz\na\tb", "3 columns instead of 2", 2),
    "tsv byte": ("a.tsv", b"source\ttarget\nx\t\xffy\na\tb\n", "undecodable target", 2),
    "tsv empty": ("a.tsv", b"source\ttarget\n \ty\na\tb\n", "empty source", 2),
    "csv byte": ("a.csv", b'source,target\n"x\n\xc3",y\na,b\n', "undecodable source", 2),
    "csv quote": ("a.csv", b'source,target\na,b\n"x"y,z\n', "invalid CSV", 3),
    "csv open quote": ("a.csv", b'source,target\na,b\nx,"y\n', "invalid CSV", 3),
    "json": ("a.jsonl", b'{"source": "a", "target": "b"}\n{"source": "a", "tar\n', "invalid JSON", 2),
    "json empty line": ("a.jsonl", b'{"source": "a", "target": "b"}\n\n', "empty line", 2),
    "json byte": (
        "a.jsonl",
        b'{"source": "\xe4", "target": "b"}\n{"source": "a", "target": "b"}',
        "undecodable line",
        1,
    ),
    "json field": ("a.jsonl", b'{"source": "a"}\n{"source": "a", "target": "b"}', "missing target", 1),
    "json type": ("a.jsonl", b'{"source": 5, "target": "b"}\n{"source": "a", "target": "b"}', "int instead of text", 1),
    "json list": ("a.jsonl", b'["source"]\n{"source": "a", "target": "b"}', "no object", 1),
    "json surrogate": (
        "a.jsonl",
        b'{"source": "\\ud800", "target": "b"}\n{"source": "a", "target": "b"}',
        "undecodable source",
        1,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_counted_or_stop(tmp_path: Path, case: str) -> None:
    name, content, reason, line = BAD[case]
    path = tmp_path / name
    path.write_bytes(content)
    report = BadRecords()
    assert len(list(read(DataSpec(str(path)), on_bad="skip", report=report))) == 1
    assert len(report) == 1
    [(found, origins)] = report.origins.items()
    assert reason in found
    assert origins == [Origin(str(path), line)]
    with pytest.raises(DataError, match=f"{name}:{line}: .*{reason}.*on_bad") as caught:
        list(read(DataSpec(str(path)), on_bad="stop"))
    assert "\n" not in str(caught.value)


def test_bad_bytes_in_parquet_are_found(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    source = pyarrow.array([b"a", b"\xff", None], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"source": source, "target": ["x", "y", "z"]}), tmp_path / "a.parquet")
    report = BadRecords()
    assert _pairs(DataSpec(str(tmp_path / "a.parquet")), on_bad="skip", report=report) == [("a", "x")]
    assert report.counts == {"undecodable source": 1, "missing source": 1}


def test_bad_lines_of_parallel_files_name_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"one\ntwo\n \nfour\n")
    (tmp_path / "a.de").write_bytes(b"eins\n\xe4\ndrei\nvier")
    report = BadRecords()
    spec = DataSpec({"source": str(tmp_path / "a.en"), "target": str(tmp_path / "a.de")})
    assert _pairs(spec, on_bad="skip", report=report) == [("one", "eins"), ("four", "vier")]
    assert report.origins == {
        "undecodable target": [Origin(str(tmp_path / "a.de"), 2)],
        "empty source": [Origin(str(tmp_path / "a.en"), 3)],
    }


def test_unequal_parallel_files_are_refused_before_any_record(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"one\ntwo\nthree\n")
    (tmp_path / "a.de").write_bytes(b"eins\nzwei")
    spec = DataSpec({"source": str(tmp_path / "a.en"), "target": str(tmp_path / "a.de")})
    with pytest.raises(DataError, match=r"a\.en has 3, .*a\.de has 2; align"):
        read(spec, on_bad="skip")  # not even asked for a record


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (DataSpec("none.tsv"), DataError, "none.tsv: no such file.*check the path"),
        (DataSpec("folder.tsv"), DataError, "folder.tsv: is a folder"),
        (DataSpec("empty.tsv"), DataError, "empty.tsv: the file is empty"),
        (DataSpec("header.tsv"), DataError, "header.tsv: no usable record"),
        (
            DataSpec("a.dat"),
            DataError,
            "a.dat: cannot tell the format.*parallel, text, document, tsv, csv, jsonl, parquet, hub",
        ),
        (DataSpec("a.tsv", format="tvs"), ConfigError, "'tvs' is unknown, did you mean `tsv`"),  # type: ignore[arg-type]
        (
            DataSpec("header.tsv", columns={"source": "en", "target": "de"}),
            DataError,
            "header.tsv:1: .*source \\(en\\)",
        ),
        (DataSpec("header.tsv", columns={"source": "source"}), ConfigError, "expected also target"),
        (DataSpec("header.tsv", columns={"source": "a", "target": "b"}, header=False), ConfigError, "no column number"),
        (DataSpec({"source": "header.tsv"}), ConfigError, "expected also target"),
        (DataSpec({"source": "header.tsv"}, format="csv"), ConfigError, "reads one path"),
        (DataSpec("header.tsv", format="parallel"), ConfigError, "mapping of role to file"),
        (DataSpec("header.tsv", format="text"), ConfigError, "holds one role"),
        (DataSpec("header.tsv", format="parquet"), DataError, "no readable Parquet"),
        (DataSpec("header.tsv", format="hub"), ConfigError, "split: train"),
        (DataSpec("utf16.tsv"), DataError, "UTF-16.*iconv"),
        (DataSpec("broken.tsv.gz"), DataError, "damaged gzip"),
    ],
)
def test_what_cannot_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: DataSpec, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.tsv").mkdir()
    Path("empty.tsv").touch()
    Path("header.tsv").write_text("source\ttarget\n")
    Path("utf16.tsv").write_bytes("source\ttarget\na\tb\n".encode("utf-16"))
    Path("broken.tsv.gz").write_bytes(gzip.compress(b"source\ttarget\n" * 999)[:-9])
    with pytest.raises(error, match=message) as caught:
        list(read(spec, on_bad="skip"))
    assert "\n" not in str(caught.value)


def test_headerless_columns_default_to_the_roles_in_order(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.tsv", ["a\tb", "c\td"])
    assert _pairs(DataSpec(path, header=False)) == [("a", "b"), ("c", "d")]


def test_one_role_of_a_text_file(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.txt", ["one ", " two"])
    assert [record.fields for record in read(DataSpec(path), ("target",))] == [{"target": "one"}, {"target": "two"}]


def test_a_limit_counts_good_records(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.tsv", ["source\ttarget", " \tx", "1234\tx", "1\ty", "2\tz"])
    report = BadRecords()
    assert _pairs(DataSpec(path), on_bad="skip", report=report, limit=2) == [("1234", "x"), ("1", "y")]
    assert report.counts == {"empty source": 1}


def test_reading_streams(tmp_path: Path) -> None:
    """A bad line far down is met only when the reading gets there."""
    lines = ["source\ttarget", *(["a\tb"] * 5000), "broken"]
    records = read(DataSpec(_write_lines(tmp_path / "a.tsv", lines)), on_bad="stop")
    for _ in range(5000):
        next(records)
    with pytest.raises(DataError, match=r"a\.tsv:5002: 1 column"):
        next(records)


def test_summary_is_one_line_and_keeps_the_first_places() -> None:
    report = BadRecords()
    assert report.summary() == "no bad records"
    for line in range(1, 8):
        report.add("empty target", Origin("a.tsv", line), on_bad="skip")
    report.add("invalid JSON", Origin("b", 3), on_bad="skip")
    assert report.summary() == (
        "8 bad records: empty target 7 (a.tsv:1, a.tsv:2, a.tsv:3, a.tsv:4, a.tsv:5, ...); invalid JSON 1 (b:3)"
    )
    assert report.to_record()["invalid JSON"] == {"count": 1, "first": ["b:3"]}


def test_a_local_dataset_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "pairs"
    folder.mkdir()
    _write_lines(folder / "train.jsonl", [json.dumps({"translation": {"en": a, "de": b}}) for a, b in PAIRS])
    spec = DataSpec(str(folder), "hub", columns={"source": "translation.en", "target": "translation.de"}, split="train")
    assert _pairs(spec) == PAIRS
    with pytest.raises(DataError, match="no column fr, it has translation"):
        read(DataSpec(str(folder), "hub", columns={"source": "translation", "target": "fr"}, split="train"))
    with pytest.raises(DataError, match="could not load split 'nowhere'"):
        read(DataSpec(str(folder), "hub", split="nowhere"))


@pytest.mark.parametrize(
    ("package", "spec"), [("pyarrow", DataSpec("a.parquet")), ("datasets", DataSpec("a", "hub", split="b"))]
)
def test_a_missing_package_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, spec: DataSpec
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=f"needs .*{package}.*pip install {package}"):
        read(spec)


def test_relative_paths_are_taken_from_a_folder() -> None:
    folder = Path("recipes")
    assert DataSpec("a.tsv").resolved(folder).path == "recipes/a.tsv"
    assert DataSpec({"source": "a", "target": "/b"}).resolved(folder).path == {"source": "recipes/a", "target": "/b"}
    assert DataSpec("wmt14", "hub", split="train").resolved(folder).path == "wmt14"


# -- documents ---------------------------------------------------------------------------------------------------------


def test_a_document_is_one_record_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    path.write_bytes("\ufeff\nAct I\r\n  é\n\n".encode())
    [record] = read(DataSpec(str(path), "document"), ["text"])
    assert record.fields["text"] == "\nAct I\r\n  é\n\n"
    assert record.origin == Origin(str(path), 1)


def test_parts_of_a_document_join_to_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    text = "".join(f"line {number}\n" for number in range(100))
    path.write_text(text)
    shares = [(0.0, 0.9), (0.9, 0.95), (0.95, 1.0)]
    parts = [next(read(DataSpec(str(path), "document", part=part), ["text"])) for part in shares]
    assert "".join(part.fields["text"] for part in parts) == text
    assert len(parts[1].fields["text"]) == pytest.approx(0.05 * len(text), abs=1)
    assert parts[1].origin.line == parts[0].fields["text"].count("\n") + 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x7fELF\x00\x01", "binary data \\(byte 5 is 0\\), expected text in UTF-8"),
        (b"caf\xe9 au lait", "not UTF-8 \\(byte 0xe9, number 4\\); convert it first"),
        (b"", "the file is empty"),
        (b" \n\t\n", "no usable record \\(1 bad record: empty text 1"),
    ],
)
def test_what_is_no_document_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "play.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        list(read(DataSpec(str(path), "document"), ["text"], on_bad="skip"))


def test_parts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"part is \[0.9, 0.5\], expected two shares in order"):
        DataSpec("play.txt", "document", part=(0.9, 0.5))
    with pytest.raises(ConfigError, match="only a document has parts; set format to document"):
        DataSpec("play.txt", part=(0.0, 0.9))
