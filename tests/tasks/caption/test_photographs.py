"""Real photographs with real captions: read, learnt by heart, described, looked at. Skipped where they are absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from picture_commands import Done
from PIL import Image
from tiny_pictures import write_recipe

import regard
from regard.data.picture_records import PictureSpec, read_pictures
from regard.inputs.pictures import PictureError, PictureSize, load_pictures
from regard.lens import looks_of

Command = Callable[..., Done]
NUM_LEARNT = 4


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> Path:
    folder = shared_data / "coco-mini"
    if not folder.is_dir():
        pytest.skip(f"the photographs are absent: no folder {folder}")
    return folder


def test_every_photograph_is_read(photographs: Path) -> None:
    records = read_pictures(PictureSpec(str(photographs / "captions.tsv")))
    assert len(records) == 187 and all(record.fields["target"].count("\n") == 4 for record in records)
    paths = [Path(record.fields["source"]) for record in records]
    found = list(load_pictures(paths, PictureSize(64, 64), workers=2))
    assert not [one for one in found if isinstance(one, PictureError)]
    assert len({one.pixels.tobytes() for one in found if not isinstance(one, PictureError)}) == 187


def test_a_few_are_learnt_by_heart_from_coco_s_json(photographs: Path, command: Command, tmp_path: Path) -> None:
    records = read_pictures(PictureSpec(str(photographs / "captions.tsv")), limit=NUM_LEARNT)
    images, annotations = [], []
    for number, record in enumerate(records):
        images.append({"id": number, "file_name": record.fields["source"]})
        annotations.append({"image_id": number, "caption": record.fields["target"].split("\n")[0]})
    (tmp_path / "few.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    spec = {"path": "few.json"}
    recipe = write_recipe(
        tmp_path / "few.yaml",
        tmp_path,
        data__train=spec,
        data__validation=spec,
        data__test=None,
        data__picture={"height": 32, "width": 32, "fit": "pad"},
        tokenizer={"kind": "bpe", "vocab_size": 300, "min_frequency": 1},
        training__max_steps=200,
        training__schedule={"kind": "cosine", "peak": 1e-2, "warmup_steps": 10},
        training__label_smoothing=0.0,
        training__validate_every=200,
        training__checkpoint_every=200,
        validation__decoding={"max_length": 60},
        model__decoder__model_dim=48,
        model__decoder__state_dim=64,
        attention_penalty=0.0,
        decoding={"beam_size": 1, "max_length": 60},
    )
    done = command("train", recipe, "--run", tmp_path / "run")
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["validation"]["candidates"]["last"] == 1.0
    model = regard.load(tmp_path / "run" / "model")
    [out] = model.caption([records[0].fields["source"]])
    assert out.text == annotations[0]["caption"]
    looks = looks_of(out.attention)
    assert [look.word for look in looks][:2] == out.text.replace(".", " .").split()[:2]
    picture = out.attention.key.picture
    with Image.open(records[0].fields["source"]) as photograph:
        assert picture.pixels.shape[:2] == (photograph.height, photograph.width)
    for ending in ("html", "png", "svg"):
        out.attention.save(tmp_path / f"gaze.{ending}")
