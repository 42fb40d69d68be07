"""The demo's phrases: what is said, where it begins, and that held-out phrases are others."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regard.data.clips import Clip
from regard.data.speech_records import SpeechSpec, read_speech
from regard.errors import RegardError
from regard.tasks.transcribe.demo_corpus import DIGITS, MONTHS, Phrase, phrases, write_manifest
from regard.tasks.transcribe.voices import Synthesiser, Voice

pytest.importorskip("espeakng_loader", reason="the extra `voices` is not installed")

_HASHED = """
import hashlib
from regard.tasks.transcribe.demo_corpus import phrases
made = phrases(3, 4, 2, 2)
print(hashlib.sha256(b"".join(one.samples.tobytes() for part in made.values() for one in part)).hexdigest())
"""


@pytest.fixture(scope="module")
def made() -> dict[str, list[Phrase]]:
    return phrases(1, 30, 5, 10)


def test_held_out_phrases_are_others_and_all_is_of_the_vocabulary(made):
    texts = [one.text for part in made.values() for one in part]
    assert len(set(texts)) == len(texts) == 45
    assert {word for text in texts for word in text.split()} <= {*DIGITS, *MONTHS}
    assert all(2 <= len(one.words) <= 5 for part in made.values() for one in part)


def test_words_begin_where_sound_does(made):
    for one in made["train"]:
        rate = one.sample_rate
        assert list(one.begins) == sorted(one.begins) and one.begins[-1] < one.end <= len(one.samples) / rate
        assert np.abs(one.samples).max() <= 1.0
        # Before the first word there is noise alone, a hundredth of the words at most.
        silence = one.samples[: int((one.begins[0] - 0.01) * rate)]
        spoken = one.samples[int(one.begins[0] * rate) : int(one.end * rate)]
        assert np.square(silence).mean() < 0.05 * np.square(spoken).mean()


def test_a_process_says_the_same_every_time():
    runs = [subprocess.run([sys.executable, "-c", _HASHED], capture_output=True, text=True, check=True) for _ in "ab"]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout.strip()) == 64
    assert hashlib.sha256().hexdigest() not in runs[0].stdout


def test_manifests_are_read_back(made, tmp_path: Path):
    manifest = write_manifest(tmp_path, "test", made["test"])
    records = list(read_speech(SpeechSpec(str(manifest))))
    assert [one.fields["target"] for one in records] == [one.text for one in made["test"]]
    assert Path(Clip.of_field(records[0].fields["source"]).path).is_file()
    first = json.loads(manifest.read_text().splitlines()[0])
    assert [begin for _, begin, _ in first["words"]] == pytest.approx(made["test"][0].begins, abs=1e-3)
    assert json.loads(records[0].fields["words"])[-1][2] == pytest.approx(made["test"][0].end, abs=1e-3)


def test_voices_that_are_not_there_and_a_missing_extra(monkeypatch):
    with pytest.raises(RegardError, match="no voice 'xx-nowhere'; expected one as en-us"):
        Synthesiser().say(["one"], Voice("xx-nowhere"))
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(RegardError, match=r"pip install 'regard\[voices\]'"):
        Synthesiser()
