"""The prepared corpus: what is written comes back, and nothing half-written passes for a corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regard.data.columns import Refused, TextColumn
from regard.data.corpus import Corpus, prepare, sha256_of_file, sha256_of_files
from regard.data.readers import BadRecords, DataSpec, read
from regard.data.records import Origin, Record
from regard.errors import ConfigError, DataError
from regard.inputs.text import Tokenizer, TokenizerConfig


def _records(*texts: str) -> list[Record]:
    return [Record({"source": text, "target": text[::-1]}, Origin("made", n)) for n, text in enumerate(texts, start=1)]


def test_sentences_come_back(tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextColumn, "records_at_once", 3)  # several chunks, the last one short
    texts = ["abc", "Hund läuft", "x", "über 😀", "end", "of", "it"]
    columns = dict.fromkeys(("source", "target"), TextColumn(byte_tokenizer))
    corpus = prepare(_records(*texts), columns, tmp_path / "c", fingerprint="f1")
    assert len(corpus) == len(texts)
    assert corpus.roles == ("source", "target")
    assert corpus.fingerprint == "f1"
    for index, text in enumerate(texts):
        assert corpus["source", index].tolist() == [*byte_tokenizer.encode_ids([text])[0], Tokenizer.EOS]
        assert byte_tokenizer.decode(corpus["target", index].tolist()) == text[::-1]
    assert np.array_equal(corpus["source", -1], corpus["source", 6])
    assert corpus["source", 0].dtype == np.int64
    lengths = corpus.lengths("source")
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [len(byte_tokenizer.encode_ids([text])[0]) + 1 for text in texts]
    assert corpus.num_tokens("source") == lengths.sum()
    corpus.verify()
    with pytest.raises(IndexError):
        corpus["source", 7]
    with pytest.raises(DataError, match="no role 'image', the corpus has source, target"):
        corpus.lengths("image")


def test_padded_batch(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    corpus = prepare(_records("abc", "a", "abcde"), {"source": TextColumn(byte_tokenizer)}, tmp_path / "c")
    ids, lengths = corpus.padded("source", np.array([2, 0, 1, 0]))
    assert lengths.tolist() == [7, 5, 3, 5]
    assert ids.shape == (4, 7)
    for row, length, index in zip(ids, lengths, [2, 0, 1, 0], strict=True):
        assert np.array_equal(row[:length], corpus["source", index])
        assert (row[length:] == Tokenizer.PAD).all()


def test_large_vocabularies_take_wide_ids(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    class Large:  # a vocabulary of more than 65,536 would take long to train
        def __len__(self) -> int:
            return 70_001

        def encode_ids(self, texts: list[str]) -> list[list[int]]:
            return [[70_000 - len(text)] for text in texts]

        def fingerprint(self) -> str:
            return "large"

    columns = {"source": TextColumn(Large()), "target": TextColumn(byte_tokenizer)}  # type: ignore[arg-type]
    corpus = prepare(_records("abc", "a"), columns, tmp_path / "c")
    assert corpus["source", 0].tolist() == [69_997, Tokenizer.EOS]
    assert (tmp_path / "c" / "source.tokens").stat().st_size == 4 * 4
    assert (tmp_path / "c" / "target.tokens").stat().st_size == 2 * (5 + 3)


def test_long_records_are_reported(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    columns = dict.fromkeys(("source", "target"), TextColumn(byte_tokenizer))
    report = BadRecords()
    corpus = prepare(_records("abc", "abcd", "ab"), columns, tmp_path / "c", max_tokens=5, on_bad="skip", report=report)
    assert len(corpus) == 2  # "abc" is space, three letters and the end: just 5
    assert report.origins == {"too long source, over 5 tokens": [Origin("made", 2)]}
    assert corpus.description["bad_records"] == report.to_record()
    corpus = prepare(_records("abc", "abcd"), columns, tmp_path / "c", max_tokens={"target": 5}, on_bad="skip")
    assert list(corpus.description["bad_records"]) == ["too long target, over 5 tokens"]
    with pytest.raises(DataError, match="made:2: too long source, over 5 tokens"):
        prepare(_records("abc", "abcd"), columns, tmp_path / "c", max_tokens=5)
    with pytest.raises(DataError, match="no usable record"):
        prepare(_records("abcd"), columns, tmp_path / "c", max_tokens=5, on_bad="skip")
    assert len(Corpus.open(tmp_path / "c")) == 1, "a failed preparation must leave the earlier corpus"


def test_interrupted_preparation_leaves_nothing(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    def broken() -> Iterator[Record]:
        yield from _records("abc")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(broken(), {"source": TextColumn(byte_tokenizer)}, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_appears_only_when_complete(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """As a kill would leave it: whatever stands on the disk before the end does not open as a corpus."""
    seen = []

    def watching() -> Iterator[Record]:
        yield from _records("abc")
        for path in tmp_path.iterdir():
            seen.append(path.name)
            with pytest.raises(DataError, match="no prepared corpus"):
                Corpus.open(path)
        yield from _records("de")

    prepare(watching(), {"source": TextColumn(byte_tokenizer)}, tmp_path / "c")
    assert len(seen) == 1
    assert seen != ["c"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_killed_preparation_is_cleared_away_by_the_next(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    program = """
import sys, time
from regard.data.corpus import prepare
from regard.data.records import Origin, Record
from regard.data.columns import TextColumn
from regard.inputs.text import Tokenizer
def records():
    for number in range(5000):
        yield Record({"source": "abc"}, Origin("made", number))
    print("ready", flush=True)
    time.sleep(60)
prepare(records(), {"source": TextColumn(Tokenizer.load(sys.argv[1]))}, sys.argv[2])
"""
    byte_tokenizer.save(tmp_path / "tokenizer.json")
    place = tmp_path / "place"
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "tokenizer.json"), str(place / "c")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    assert [path.name.startswith(".c.unfinished") for path in place.iterdir()] == [True]
    with pytest.raises(DataError, match="no prepared corpus"):
        Corpus.open(place / "c")
    prepare(_records("abc"), {"source": TextColumn(byte_tokenizer)}, place / "c")
    assert [path.name for path in place.iterdir()] == ["c"]


def test_what_a_killed_process_of_the_same_number_left_is_cleared_away(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that was killed and starts anew; that of another process, alive, is not ours to clear."""

    def killed(folder: str | Path, **_: object) -> None:
        """Nothing is tidied up."""

    columns = {"source": TextColumn(byte_tokenizer)}
    with monkeypatch.context() as patch:
        patch.setattr("regard.data.corpus.shutil.rmtree", killed)
        with pytest.raises(DataError, match="no usable record"):
            prepare([], columns, tmp_path / "c")
    [left] = tmp_path.iterdir()
    assert left.name.endswith(f"-{os.getpid()}")
    others = left.with_name(left.name.replace(f"-{os.getpid()}", f"-{os.getppid()}"))
    others.mkdir()
    assert len(prepare(_records("abc"), columns, tmp_path / "c")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([others.name, "c"])


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="holds other files"):
        prepare(_records("abc"), {"source": TextColumn(byte_tokenizer)}, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(ConfigError, match="no columns"):
        prepare(_records("abc"), {}, tmp_path / "c")


def _break_json(folder: Path) -> None:
    (folder / "corpus.json").write_text("{")


def _newer_format(folder: Path) -> None:
    description = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps(description | {"format_version": 99}))


def _without_roles(folder: Path) -> None:
    description = json.loads((folder / "corpus.json").read_text())
    del description["roles"]
    (folder / "corpus.json").write_text(json.dumps(description))


def _shorten(folder: Path) -> None:
    path = folder / "source.tokens"
    path.write_bytes(path.read_bytes()[:-2])


def _wrong_offsets(folder: Path) -> None:
    path = folder / "source.offsets"
    path.write_bytes(path.read_bytes()[:-8] + b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "corpus.json").unlink(), "no prepared corpus"),
        (_break_json, "corpus.json: unreadable"),
        (_newer_format, "format 99, this regard reads 1"),
        (_without_roles, "corpus.json: damaged"),
        (lambda folder: (folder / "source.tokens").unlink(), "source.tokens: missing"),
        (_shorten, "source.tokens: 8 bytes, expected 10"),
        (_wrong_offsets, "source.offsets: begins at 0 and ends at 1"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, byte_tokenizer: Tokenizer, damage: Callable[[Path], object], message: str
) -> None:
    prepare(_records("abc"), {"source": TextColumn(byte_tokenizer)}, tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(DataError, match=f"{message}.*prepare") as caught:
        Corpus.open(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_verify_finds_a_changed_byte(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    corpus = prepare(_records("abc"), {"source": TextColumn(byte_tokenizer)}, tmp_path / "c")
    before = corpus.sha256
    path = tmp_path / "c" / "source.tokens"
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"source\.tokens: the content is not what was written"):
        Corpus.open(tmp_path / "c").verify()
    other = prepare(_records("abd"), {"source": TextColumn(byte_tokenizer)}, tmp_path / "d")
    assert other.sha256 != before


def test_preparing_needs_memory_for_chunks_only(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextColumn, "records_at_once", 64)

    def peak(num_records: int) -> int:
        records = (Record({"source": "word " * 40}, Origin("made", n)) for n in range(num_records))
        tracemalloc.start()
        prepare(records, {"source": TextColumn(byte_tokenizer)}, tmp_path / "c")
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(64)
    assert peak(64 * 30) < 1.5 * peak(64 * 3)


def test_hashes_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"de")
    # printf abc | sha256sum
    assert sha256_of_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    both = sha256_of_files([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"cde")
    assert sha256_of_files([tmp_path / "a", tmp_path / "b"]) != both
    with pytest.raises(DataError, match="nothing: cannot be read"):
        sha256_of_file(tmp_path / "nothing")


def test_multi30k_end_to_end(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "multi30k"
    spec = DataSpec({"source": str(folder / "val.en"), "target": str(folder / "val.de")})
    tokenizer = Tokenizer.train(
        (text for record in read(spec) for text in record.fields.values()), TokenizerConfig("bpe", 1500)
    )
    corpus = prepare(read(spec), dict.fromkeys(("source", "target"), TextColumn(tokenizer)), tmp_path / "c")
    assert len(corpus) == 1014
    for index, record in enumerate(read(spec)):
        assert tokenizer.decode(corpus["source", index].tolist()) == record.fields["source"]
        assert tokenizer.decode(corpus["target", index].tolist()) == record.fields["target"]


class Frames:
    """Two numbers a letter, and no array of an empty field or of "?"."""

    dtype = np.dtype("<f4")
    position_shape = (2,)
    records_at_once = 2

    def arrays(self, fields: Sequence[str]) -> list[np.ndarray | Refused]:
        return [
            Refused("unheard") if field == "?" else np.array([[ord(letter), 0.5] for letter in field], self.dtype)
            for field in fields
        ]

    def fingerprint(self) -> str:
        return "frames"

    def about(self) -> dict[str, Any]:
        return {"made_by": "letters"}


def test_any_shape_of_position_is_kept(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    report = BadRecords()
    columns = {"source": Frames(), "target": TextColumn(byte_tokenizer)}
    corpus = prepare(_records("abc", "?", "de", "f"), columns, tmp_path / "c", on_bad="skip", report=report)
    assert report.origins == {"unheard source": [Origin("made", 2)]}
    assert corpus.lengths("source").tolist() == [3, 2, 1]
    assert corpus.description["roles"]["source"]["made_by"] == "letters"
    frames = corpus["source", 1]
    assert frames.dtype == np.float32
    assert frames.tolist() == [[100.0, 0.5], [101.0, 0.5]]
    values, lengths = corpus.padded("source", np.array([2, 0]))
    assert values.shape == (2, 3, 2)
    assert lengths.tolist() == [1, 3]
    assert values[0].tolist() == [[102.0, 0.5], [0.0, 0.0], [0.0, 0.0]]
    corpus.verify()
