"""Transcribed sound in every layout, and the places of what cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sound_files import broken_files, tone, wav_bytes

from regard.data.clips import Clip, FramesColumn, frames_of_clip
from regard.data.columns import Refused
from regard.data.records import BadRecords
from regard.data.speech_records import SpeechSpec, read_speech
from regard.errors import ConfigError, DataError
from regard.inputs.front_end import FrontEnd, FrontEndConfig

pytest.importorskip("soundfile", reason="the extra `speech` is not installed")

RATE = 16000
WORDS = {"a": "one", "b": "two three", "c": "four"}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder with a.wav (0.4 s), b.wav (0.8 s) and c.wav (1.2 s)."""
    for place, name in enumerate(WORDS, 1):
        (tmp_path / f"{name}.wav").write_bytes(wav_bytes(tone(0.4 * place, RATE), RATE))
    return tmp_path


def told(spec: SpeechSpec, report: BadRecords | None = None) -> list[tuple[str, str]]:
    """(name of the file, transcript) of every record."""
    records = read_speech(spec, on_bad="skip", report=report)
    return [(Path(Clip.of_field(one.fields["source"]).path).name, one.fields["target"]) for one in records]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ALL = [("a.wav", "one"), ("b.wav", "two three"), ("c.wav", "four")]


def test_json_lines(sounds):
    manifest = lines(
        sounds / "m.jsonl", [{"audio": f"{name}.wav", "text": text, "duration": None} for name, text in WORDS.items()]
    )
    assert told(SpeechSpec(str(manifest))) == ALL


def test_a_table_with_columns_of_its_own_and_chosen_rows(sounds):
    rows = [
        f"{name}.wav\t{text}\t{take}\t{who}"
        for take, (name, text, who) in enumerate([("a", "one", "x"), ("b", "two three", "y"), ("c", "four", "x")])
    ]
    (sounds / "m.tsv").write_text("file\twords\ttake\tspeaker\n" + "\n".join(rows) + "\n")
    spec = SpeechSpec(str(sounds / "m.tsv"), columns={"audio": "file", "text": "words"})
    assert told(spec) == ALL
    where = SpeechSpec(spec.path, columns=spec.columns, where={"take": ["1-9"]})
    assert told(where) == ALL[1:]
    assert told(SpeechSpec(spec.path, columns=spec.columns, where={"take": [0, 2]}, where_not={"speaker": ["y"]})) == [
        ALL[0],
        ALL[2],
    ]
    with pytest.raises(DataError, match=r"no column for =room \(room\)"):
        told(SpeechSpec(spec.path, columns=spec.columns, where={"room": ["1"]}))


def test_a_kaldi_folder_with_segments(sounds):
    (sounds / "wav.scp").write_text("r1 b.wav\nr2 c.wav\nr3 cat x.sph |\n")
    (sounds / "text").write_text("u1 two\nu2 three\nu3 four\nu9 nobody\nu5 piped\nu7 nothing\n")
    (sounds / "segments").write_text(
        "u1 r1 0.0 0.35\nu2 r1 0.35 0.8\nu3 r2 0.1 1.1\nu4 r2 0.0 1.0\nu5 r3 0 1\nu6 r2 1\nu7 r2 0.5 0.5\n"
    )
    report = BadRecords()
    records = list(read_speech(SpeechSpec(str(sounds)), on_bad="skip", report=report))
    assert [one.fields["target"] for one in records] == ["two", "three", "four"]
    second = Clip.of_field(records[1].fields["source"])
    assert (second.begin_seconds, second.seconds) == (0.35, pytest.approx(0.45))
    assert report.counts == {
        "missing target": 1,
        "a command in place of source": 1,
        "a segment of other than four words": 1,
        "empty source": 1,
        "missing source": 1,
    }
    assert str(report.origins["missing source"][0]) == f"{sounds}/text:4"
    (sounds / "segments").unlink()
    (sounds / "text").write_text("r1 two three\nr2 four\nr3 x\n")
    assert told(SpeechSpec(str(sounds), format="kaldi")) == ALL[1:]


def test_folders_with_transcripts(sounds):
    (sounds / "a.txt").write_text("one\n")
    (sounds / "sub").mkdir()
    for name in "bc":
        (sounds / f"{name}.wav").rename(sounds / "sub" / f"{name}.wav")
    (sounds / "sub" / "1.trans.txt").write_text("b two three\nc four\n")
    assert told(SpeechSpec(str(sounds))) == ALL
    (sounds / "a.txt").unlink()
    report = BadRecords()
    assert told(SpeechSpec(str(sounds)), report) == ALL[1:]
    assert str(report.origins["missing target"][0]).endswith("a.wav:1")


def test_features_with_an_index(tmp_path):
    array = np.random.default_rng(0).normal(size=(30, 13)).astype(np.float32)
    np.save(tmp_path / "mfcc.npy", array)
    (tmp_path / "index.tsv").write_text(
        "id\tsplit\tstart\tnframes\ttranscript\n"
        "u1\ttrain\t0\t10\tYES\nu2\ttrain\t10\t15\tNO\nu3\ttest\t25\t5\tGO\nu4\ttrain\t25\t6\tLIES\nu5\ttrain\t0\t0\tNONE\n"
    )
    spec = SpeechSpec(
        str(tmp_path / "index.tsv"),
        features="mfcc.npy",
        columns={"frames": "nframes", "text": "transcript"},
        where={"split": ["train"]},
    )
    report = BadRecords()
    records = list(read_speech(spec, on_bad="skip", report=report))
    assert [one.fields["target"] for one in records] == ["YES", "NO"]
    assert report.counts == {"frames that the array does not hold in source": 1, "empty source": 1}
    column = FramesColumn(FrontEndConfig("mfcc", num_mels=40))
    [first, second] = column.arrays([one.fields["source"] for one in records])
    np.testing.assert_array_equal(first, array[:10])
    np.testing.assert_array_equal(second, array[10:25])
    assert column.position_shape == (13,) and column.dtype == np.float32
    bands = FramesColumn(FrontEndConfig("cepstral-bands", num_mels=40))
    assert bands.arrays([records[0].fields["source"]])[0].shape == (10, 40)
    wrong = FramesColumn(FrontEndConfig(num_mels=40))
    assert wrong.arrays([records[0].fields["source"]]) == [Refused("unfit")]


def test_every_bad_line_is_named_and_the_rest_is_read(sounds):
    broken = broken_files(sounds)
    rows = [
        {"audio": "a.wav", "text": "one", "duration": 0.4},
        {"audio": "nowhere.wav", "text": "x"},
        {"audio": "b.wav", "text": "lies", "duration": 9.0},
        {"audio": "b.wav", "text": "behind", "begin": 0.5, "duration": 1.0},
        {"audio": "b.wav", "text": "  "},
        {"audio": "b.wav"},
        {"text": "no sound"},
        {"audio": "b.wav", "text": "x", "duration": "long"},
        {"audio": "b.wav", "text": "x", "begin": 0.5, "duration": 0},
        *({"audio": path.name, "text": "x"} for path in broken.values()),
        {"audio": "c.wav", "text": "four", "duration": 1.21},
    ]
    report = BadRecords()
    manifest = lines(sounds / "m.jsonl", rows)
    assert told(SpeechSpec(str(manifest)), report) == [ALL[0], ALL[2]]
    assert len(report) == len(rows) - 2
    assert {reason: [origin.line for origin in origins] for reason, origins in report.origins.items()}.items() >= {
        "missing source": [2, 7],
        "duration that is not the sound's in source": [3],
        "times behind the end of source": [4],
        "empty target": [5],
        "missing target": [6],
        "no number as duration of source": [8],
        "empty source": [9, 10, 14],  # no length, no bytes, no samples
    }.items()
    with pytest.raises(DataError, match=re.escape(f"{manifest}:2: missing source; mend the record")):
        list(read_speech(SpeechSpec(str(manifest))))


def test_a_header_that_is_right_and_sound_that_is_not(sounds):
    column = FramesColumn(FrontEndConfig())
    fields = [Clip(str(sounds / "a.wav")).to_field(), Clip(str(sounds / "gone.wav")).to_field()]
    short = sounds / "short.wav"
    short.write_bytes(wav_bytes(tone(0.01, RATE), RATE))
    parts = [Clip(str(sounds / "a.wav"), 0.1, seconds).to_field() for seconds in (0.01, 1e-6, 0.0)]
    found = column.arrays([*fields, Clip(str(short)).to_field(), *parts])
    assert found[0].shape == (38, 80)
    assert found[1:] == [Refused("missing"), *[Refused("shorter than a frame of")] * 4]


def test_speeds_and_parts(sounds):
    manifest = lines(sounds / "m.jsonl", [{"audio": "c.wav", "text": "four", "begin": 0.2, "duration": 0.8}])
    records = list(read_speech(SpeechSpec(str(manifest), speeds=(0.8, 1.0, 1.25))))
    frames = FramesColumn(FrontEndConfig()).arrays([one.fields["source"] for one in records])
    assert [len(one) for one in frames] == pytest.approx([98, 78, 62], abs=1)
    clip = Clip.of_field(records[1].fields["source"])
    np.testing.assert_array_equal(frames_of_clip(clip, FrontEnd(FrontEndConfig())), frames[1])
    assert list(read_speech(SpeechSpec(str(manifest), speeds=(0.8, 1.0)), limit=1)) == records[:1]


def test_specifications_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="columns names sound, known are audio"):
        SpeechSpec("m.tsv", columns={"sound": "file"})
    with pytest.raises(ConfigError, match="features needs the array"):
        SpeechSpec("m.tsv", format="features")
    with pytest.raises(ConfigError, match="speeds changes sound, not features"):
        SpeechSpec("m.tsv", format="features", features="x.npy", speeds=(0.9,))
    with pytest.raises(DataError, match="no such file or folder"):
        read_speech(SpeechSpec(str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="no sound file"):
        read_speech(SpeechSpec(str(tmp_path)))
    (tmp_path / "m.xyz").write_text("x")
    with pytest.raises(DataError, match="cannot tell the format"):
        read_speech(SpeechSpec(str(tmp_path / "m.xyz")))
    (tmp_path / "x.npy").write_text("no array")
    with pytest.raises(DataError, match="no readable array of features"):
        frames_of_clip(Clip(str(tmp_path / "x.npy")), FrontEnd(FrontEndConfig()))
