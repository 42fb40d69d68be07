"""Attention over a sound: pictures, pages and files of records that are about one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from regard.attention.observation import Observation
from regard.attention.records.axis import Axis, SoundFrames
from regard.attention.records.record import AttentionRecord
from regard.attention.records.tensor_file import loads
from regard.errors import ModelFileError, ObservationError
from regard.lens import draw, draw_hearing, shows_sound, write_hearing_page
from regard.lens.hearing import listened

TEXT = "one <two>"


def record(begin_seconds: float = 0.0) -> AttentionRecord:
    """Two words and the end over a sound of 0.83 s, of which a position stands for 40 ms; the last one is cut."""
    torch.manual_seed(1)
    sound = SoundFrames.of(torch.randn(83, 12) - 5, begin_seconds, 0.01, 4)
    query = Axis(TEXT, ("▁one", "▁<", "two", ">", "</s>"), ((0, 3), (4, 5), (5, 8), (8, 9), (9, 9)))
    weights = torch.zeros(1, 2, 5, 21)
    weights[0, :, 0, 3], weights[0, :, 1:4, 12], weights[0, :, 4, 20] = 1.0, 1.0, 1.0
    layers = {"decoder.layers.0.cross": Observation(rows=weights, row_index=torch.arange(5))}
    return AttentionRecord(layers, query, Axis.of_sound("a.wav", sound, 21))


def test_words_listened_where_their_rows_say():
    words = listened(record())
    assert [one.word for one in words[:1]] == ["one"] and words[0].weights.argmax() == 3
    assert all(one.weights.shape == (21,) for one in words) and float(words[-1].weights.sum()) == pytest.approx(1.0)
    assert record().key.tokens[:3] == ("0.00", "0.04", "0.08")
    assert record(2.0).key.tokens[0] == "2.00"


def test_levels_are_those_near_the_loudest():
    frames = torch.tensor([[0.0, -4.0], [-8.0, -30.0]])
    assert SoundFrames.of(frames, 0.0, 0.01, 1).frames.tolist() == [[255, 128], [0, 0]]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_picture_is_drawn_by_itself_and_by_saving(tmp_path: Path, ending: str):
    draw_hearing([record(), record(2.0)], tmp_path / f"a.{ending}", title="Two sounds")
    record().save(tmp_path / f"b.{ending}")
    assert all((tmp_path / f"{name}.{ending}").stat().st_size > 1000 for name in "ab")


def test_the_drawing_says_words_and_seconds(tmp_path: Path):
    record(2.0).save(tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert ">one<" in drawn and "&lt;two&gt;" in drawn and ">2.4 s<" in drawn
    assert drawn.count("<image") >= 3 and "a stretch" not in drawn
    again = tmp_path / "again.svg"
    record(2.0).save(again)
    assert again.read_text() == drawn


def test_a_page_holds_a_spectrogram_for_each_word(tmp_path: Path):
    write_hearing_page([record(), record()], tmp_path / "a.html", notes="a note")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<article") == 2 and "a note" in page and "&lt;two&gt;" in page
    assert not re.findall(r"https?://(?!www\.w3\.org)", page)
    record().save(tmp_path / "b.html")
    assert "<article" in (tmp_path / "b.html").read_text()


def test_a_file_keeps_the_sound(tmp_path: Path):
    given = record(1.5)
    given.save(tmp_path / "a.safetensors")
    read = AttentionRecord.load(tmp_path / "a.safetensors")
    assert read.key is not None and read.key.sound is not None and shows_sound(read)
    assert torch.equal(read.key.sound.frames, given.key.sound.frames)
    assert (read.key.sound.begin_seconds, read.key.sound.frame_seconds, read.key.sound.frames_a_position) == (
        1.5,
        0.01,
        4,
    )
    assert torch.equal(read.rows(), given.rows())
    read.save(tmp_path / "again.svg")


def test_a_damaged_sound_is_told(tmp_path: Path):
    from safetensors.torch import save_file

    record().save(tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("rb") as file:
        metadata = loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "a.safetensors")
    missing = {name: tensor for name, tensor in tensors.items() if name != "key/seconds"}
    save_file(missing, tmp_path / "b.safetensors", metadata)
    with pytest.raises(ModelFileError, match="has of a sound only frames, frames_a_position"):
        AttentionRecord.load(tmp_path / "b.safetensors")
    save_file(
        {**tensors, "key/seconds": torch.tensor([0.0, -1.0], dtype=torch.float64)}, tmp_path / "c.safetensors", metadata
    )
    with pytest.raises(ModelFileError, match="a sound without frames, or of"):
        _ = AttentionRecord.load(tmp_path / "c.safetensors").key


def test_what_is_no_sound_is_refused(tmp_path: Path):
    plain = record().about(key=Axis("", ("x",) * 21, ((0, 0),) * 21))
    assert not shows_sound(plain)
    with pytest.raises(ObservationError, match="about no sound"):
        draw_hearing(plain, tmp_path / "a.svg")
    with pytest.raises(ObservationError, match="no record"):
        draw_hearing([], tmp_path / "a.svg")
    draw(plain, tmp_path / "b.svg")
