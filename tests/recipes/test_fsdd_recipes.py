"""The recipes of spoken digits: right as they stand, and strings made as their list says."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sound_files import tone, wav_bytes

from regard.data.clips import Clip
from regard.data.speech_records import SpeechSpec, read_speech
from regard.tasks.recipe import differences, plain, read_yaml, validated, with_overrides
from regard.tasks.transcribe.recipe import TranscribeRecipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "transcribe"


def recipe_of(name: str, *overrides: str) -> TranscribeRecipe:
    return validated(TranscribeRecipe, with_overrides(read_yaml(FOLDER / f"{name}.yaml"), overrides), f"{name}.yaml")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("soxr", reason="the extra `speech` is not installed")
    spec = importlib.util.spec_from_file_location("fsdd_strings", FOLDER / "fsdd_strings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers, ten digits, takes 0, 5 and 10: tones of half a second with silence around them."""
    folder = tmp_path_factory.mktemp("fsdd")
    (folder / "wav").mkdir()
    rows = []
    for speaker in ("ann", "bob"):
        for digit in range(10):
            for take in (0, 5, 10):
                sound = np.concatenate(
                    [np.zeros(400, dtype=np.float32), tone(0.3, 8000, 300 + 50 * digit), np.zeros(800)]
                )
                name = f"wav/{digit}_{speaker}_{take}.wav"
                (folder / name).write_bytes(wav_bytes(sound, 8000))
                rows.append(f"{name}\t{digit}\t{speaker}\t{take}\n")
    (folder / "index.tsv").write_text("file\tdigit\tspeaker\ttake\n" + "".join(rows))
    return folder


def test_the_full_size_is_a_line_of_overrides() -> None:
    [line] = [line for line in (FOLDER / "fsdd-strings.yaml").read_text().splitlines() if line.startswith("# full: ")]
    overrides = line.removeprefix("# full: ").split()
    cpu, full = recipe_of("fsdd-strings"), recipe_of("fsdd-strings", *overrides)
    assert sorted(differences(plain(cpu), plain(full))) == sorted(override.partition("=")[0] for override in overrides)
    assert full.training.max_steps > cpu.training.max_steps


def test_single_digits_share_no_take(shared_data: Path) -> None:
    data = recipe_of("fsdd-digits").data
    table = list(csv.DictReader((shared_data / "fsdd" / "index.tsv").read_text().splitlines(), delimiter="\t"))
    takes = []
    for spec, count in ((data.train, 2400), (data.validation, 300), (data.test, 300)):
        assert spec is not None
        first, _, last = str(spec.where["take"][0]).partition("-")
        chosen = [int(row["take"]) for row in table if int(first) <= int(row["take"]) <= int(last)]
        assert len(chosen) == count
        takes.append(set(chosen))
    assert not (takes[0] & takes[1]) | (takes[0] & takes[2]) | (takes[1] & takes[2])


def test_strings_are_made_as_they_are_listed(script, clips, tmp_path, monkeypatch):
    made = script.Clips(clips)
    assert made.speakers == ["ann", "bob"]
    _, sound, begin, end = made.sounds["ann", 3, 0]
    assert begin == pytest.approx(0.05, abs=0.011) and end == pytest.approx(0.35, abs=0.011) and len(sound) == 7200
    listed = script.make(made, tmp_path, "test", 6, ["ann"], [0], 7)
    assert script.make(made, tmp_path / "again", "test", 6, ["ann"], [0], 7) == listed
    records = list(read_speech(SpeechSpec(str(tmp_path / "test.jsonl"))))
    for record, line in zip(records, listed.splitlines(), strict=True):
        _, _, names, gaps = line.split("\t")
        words = json.loads(record.fields["words"])
        assert [script.WORDS[int(name[0])] for name in names.split()] == record.fields["target"].split()
        assert 3 <= len(words) <= 7 and all("_ann_0" in name for name in names.split())
        seconds = [float(gap) for gap in gaps.split()]
        assert len(seconds) == len(words) + 1 and max(seconds) <= 0.2
        assert words[0][1] == pytest.approx(seconds[0] + begin, abs=0.02)
        assert words[1][1] == pytest.approx(seconds[0] + 0.45 + seconds[1] + 0.05, abs=0.02)
        assert Path(Clip.of_field(record.fields["source"]).path).suffix == ".flac"


def test_the_published_list_is_of_the_official_split():
    lines = (FOLDER / "lists" / "fsdd-strings.tsv").read_text().splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t"))
    parts = {part: [row for row in rows if row["part"] == part] for part in ("test", "validation")}
    assert (len(parts["test"]), len(parts["validation"])) == (200, 120)
    for part, takes in (("test", range(5)), ("validation", range(5, 10))):
        for row in parts[part]:
            clips = [name.split("_") for name in row["clips"].split()]
            assert 3 <= len(clips) <= 7 and len({speaker for _, speaker, _ in clips}) == 1
            assert all(int(take) in takes for _, _, take in clips)
