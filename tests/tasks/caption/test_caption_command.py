"""`regard caption`, `regard train` and `regard evaluate` on pictures, and everything that can be wrong with those."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_commands import Done, Trained
from PIL import Image
from tiny_pictures import two_colours, write_recipe

import regard
from regard.data.corpus import Corpus
from regard.errors import ConfigError, DataError, ModelFileError
from regard.tasks.caption.captioner import Captioner

Command = Callable[..., Done]


def test_a_line_in_a_line_out(trained: Trained, command: Command) -> None:
    pictures = [trained.data / "images" / name for name in ("red-blue.png", "green-red.png")]
    done = command("caption", trained.model, *pictures)
    assert done.status == 0
    assert [line.removeprefix("there is ") for line in done.out.splitlines()] == ["red beside blue", "green beside red"]
    from_input = command("caption", trained.model, "-", stdin=pictures[0].read_bytes())
    assert from_input.out == done.out.splitlines()[0] + "\n"


def test_several_captions_and_json(trained: Trained, command: Command) -> None:
    picture = trained.data / "images" / "blue-blue.png"
    lines = command("caption", trained.model, picture, "--num-best", 2).out.splitlines()
    assert {line.split("\t")[2] for line in lines} == {"blue beside blue", "there is blue beside blue"}
    assert all(line.startswith("1\t-") for line in lines)
    longer = command("caption", trained.model, picture, "--min-length", 6, "--coverage-penalty", 0.1).out
    assert longer == "there is blue beside blue\n"
    found = json.loads(command("caption", trained.model, picture, "--num-best", 2, "--json").out)
    assert found["picture"] == str(picture) and found["finished"] and len(found["alternatives"]) == 1


@pytest.mark.parametrize("ending", ["html", "png", "svg", "jsonl", "safetensors"])
def test_where_it_looked_is_written(trained: Trained, command: Command, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"gaze.{ending}"
    assert command("caption", trained.model, trained.data / "images" / "red-green.png", "--attention", path).status == 0
    assert path.stat().st_size > 500
    if ending == "safetensors":
        record = regard.AttentionRecord.load(path)
        assert record.key is not None and record.key.picture is not None and record.key.picture.rows == 4


def test_regard_look_draws_it_too(trained: Trained, command: Command, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    picture = trained.data / "images" / "red-green.png"
    done = command("look", trained.model, picture, tmp_path / "text.png", "--out", tmp_path / "gaze.png")
    assert done.status == 2 and "text.png: text, expected a picture" in done.err
    with Image.open(tmp_path / "gaze.png") as drawn:
        assert drawn.width > 300


def test_every_kind_of_file_at_once(trained: Trained, command: Command, tmp_path: Path) -> None:
    """Bad ones are named, each in a line, and the others described."""
    good = two_colours("red", "green", 64)
    good.save(tmp_path / "good.jpg", quality=95)
    good.save(tmp_path / "good.webp", lossless=True)
    good.convert("CMYK").save(tmp_path / "cmyk.tif")
    good.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    good.convert("RGBA").save(tmp_path / "alpha.png")
    good.save(tmp_path / "moving.gif", save_all=True, append_images=[two_colours("blue", "blue", 64)])
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down and mirrored sides
    two_colours("green", "red", 64).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    Image.new("RGB", (1, 1), (220, 30, 30)).save(tmp_path / "dot.png")
    Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.jpg").write_text("no picture")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    names = [
        "good.jpg", "text.jpg", "good.webp", "cut.jpg", "cmyk.tif", "palette.png", "gone.png", "alpha.png",
        "moving.gif", "turned.jpg", "dot.png", "deep.png",
    ]  # fmt: skip
    done = command("caption", trained.model, *(tmp_path / name for name in names))
    assert done.status == 2
    lines = dict(zip(names, done.out.splitlines(), strict=True))
    for name in ("good.jpg", "good.webp", "cmyk.tif", "palette.png", "alpha.png", "moving.gif", "turned.jpg"):
        assert lines[name].removeprefix("there is ") == "red beside green", name
    assert lines["dot.png"].removeprefix("there is ") == "red beside red"
    assert lines["deep.png"], "a grey picture is described, if badly"
    errors = done.err.splitlines()
    assert len(errors) == 3 and all(line.startswith("regard: error: ") for line in errors)
    for name, error in zip(("text.jpg", "cut.jpg", "gone.png"), errors, strict=True):
        assert lines[name] == "" and name in error
    as_json = command("caption", trained.model, tmp_path / "text.jpg", tmp_path / "good.jpg", "--json")
    first, second = (json.loads(line) for line in as_json.out.splitlines())
    assert "text, expected a picture" in first["error"] and "text" in second


def test_in_python(trained: Trained) -> None:
    captioner = regard.load(trained.model)
    assert isinstance(captioner, Captioner)
    path = trained.data / "images" / "green-blue.png"
    from_path, from_bytes = captioner.caption([path, path.read_bytes()])
    assert from_path.text == from_bytes.text and from_path.score == pytest.approx(from_bytes.score, abs=1e-5)
    record = from_path.attention
    assert record is not None and record.key is not None
    torch.testing.assert_close(record.rows().sum(-1), torch.ones(len(from_path.tokens)))
    assert record.key.tokens[:5] == ("1:1", "1:2", "1:3", "1:4", "2:1")
    [greedy] = captioner.caption([path], attention=False, beam_size=1)
    assert greedy.attention is None and greedy.text
    with pytest.raises(DataError, match="no such file"):
        captioner.caption([trained.data / "gone.png"])
    with pytest.raises(DataError, match="expected a list of pictures"):
        captioner.caption(str(path))
    with pytest.raises(DataError, match="picture 1 is int"):
        captioner.caption([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="beam_sizes"):
        captioner.caption([path], beam_sizes=3)


def test_evaluation_and_its_model_card(trained: Trained, command: Command, tmp_path: Path) -> None:
    done = command("evaluate", trained.model, "--json", "--output", tmp_path / "out.txt")
    found = json.loads(done.out)
    assert found["num_pictures"] == 9 and found["num_distinct"] == 9
    assert found["metrics"]["bleu-4"]["value"] == pytest.approx(100.0) or found["metrics"]["bleu-1"]["value"] > 99
    assert found["metrics"] == trained.result["test"][0]["metrics"]
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 9
    assert "cider-d" in (trained.model / "README.md").read_text()
    data = f"{{path: {trained.data / 'captions.tsv'}, where: {{class: red}}}}"
    assert json.loads(command("evaluate", trained.model, "--json", "--data", data).out)["num_pictures"] == 3
    assert command("evaluate", _listing(trained.model, tmp_path / "listing"), "--beam-size", 1).status == 0
    refused = command("evaluate", trained.model, "--scoring", "sacrebleu")
    assert refused.status == 2 and "captions are scored in one way" in refused.err


def test_a_picture_is_kept_once_with_all_its_captions(trained: Trained) -> None:
    corpus = Corpus.open(trained.run / "data" / "train")
    assert len(corpus) == 9
    assert corpus["source", 0].shape == (16, 16, 3)
    assert (corpus["target", 0] == 2).sum() == 2, "two captions, each with its end"


def test_bad_pictures_of_a_data_set_are_counted_and_the_others_learnt(
    trained: Trained, command: Command, tmp_path: Path
) -> None:
    shutil.copytree(trained.data, tmp_path / "data")
    (tmp_path / "data" / "images" / "red-red.png").write_text("no picture")
    (tmp_path / "data" / "images" / "blue-red.png").unlink()
    recipe = write_recipe(
        tmp_path / "tiny.yaml", tmp_path / "data", training__max_steps=1, data__decode_workers=2, data__test=None
    )
    done = command("train", recipe, "--run", tmp_path / "run")
    assert done.status == 0, done.err
    bad = json.loads((tmp_path / "run" / "result.json").read_text())["data"]["bad_records"]
    assert bad["train"]["no picture in source"]["count"] == 1
    assert bad["train"]["no such picture file"]["count"] == 2
    stopped = command("train", recipe, "data.on_bad=stop", "--run", tmp_path / "stopped")
    assert stopped.status == 2 and "captions.tsv:" in stopped.err and "skip bad records" in stopped.err


def test_an_encoder_can_begin_from_another_run_s(trained: Trained, command: Command, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", trained.data, training__max_steps=1, training__schedule__peak=1e-9)
    done = command("train", recipe, f"init_from={trained.model}", "--run", tmp_path / "run")
    assert done.status == 0 and "of its" in done.err
    theirs, ours = (regard.load(path).model.state_dict() for path in (trained.model, tmp_path / "run" / "model"))
    encoder = [name for name in ours if name.startswith("encoder.")]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in encoder)
    assert not torch.allclose(ours["decoder.query.weight"], theirs["decoder.query.weight"], atol=1e-3)
    other = command(
        "train", recipe, f"init_from={trained.model}", "model.encoder.embedding.channels=[8]",
        "model.encoder.model_dim=20", "--run", tmp_path / "other",
    )  # fmt: skip
    assert other.status == 2 and "none of its encoder fits" in other.err
    nowhere = command("train", recipe, "init_from=nowhere", "--run", tmp_path / "nowhere")
    assert nowhere.status == 2 and "no such model directory" in nowhere.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.encoder.embedding={}", "reads no pictures; give it type: convolution or type: patches"),
        ("model.tie=all", "wants text on both sides"),
        ("model.encoder.embedding.channels=[12]", "expected multiples of 8"),
        ("data.picture.height=2", "expected 4 or more a side"),
        ("data.picture.height=0", "height is 0, expected 1 to 4096"),
        ("data.train.path=gone.tsv", "gone.tsv: no such file"),
        ("data.train.where={split: none}", "no usable picture"),
        ("data.train.images=nowhere", "no such folder of pictures"),
        ("model.encoder.embedding.augmentation={flop: true}", "unknown key"),
        ("model.decoder.state_dim=0", "state_dim is 0"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(
    trained: Trained, command: Command, tmp_path: Path, change: str, words: str
) -> None:
    done = command("train", write_recipe(tmp_path / "tiny.yaml", trained.data), change, "--run", tmp_path / "run")
    assert done.status == 2
    errors = [line for line in done.err.splitlines() if line.startswith("regard: error: ")]
    assert len(errors) == 1 and words in errors[0], done.err


def test_other_mistakes(trained: Trained, command: Command, tmp_path: Path) -> None:
    picture = trained.data / "images" / "red-red.png"
    for arguments, words in (
        (("--attention", tmp_path / "gaze.pdf"), "the ending says the kind of file"),
        (("--attention", tmp_path / "none" / "gaze.png"), "no folder"),
        ((picture, "--attention", tmp_path / "gaze.safetensors"), "holds one record, received 2 inputs"),
        (("-", "-"), '"-" stands twice; standard input holds one file'),
        (("--beam-size", 0), "beam_size is 0"),
    ):
        done = command("caption", trained.model, picture, *arguments)
        assert done.status == 2 and words in done.err and done.out == "", words
    shutil.copytree(trained.model, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        regard.load(tmp_path / "model")


def _listing(model: Path, copy: Path) -> Path:
    """The same model of a recipe that asks for several captions."""
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text())
    config.pop("config_sha256")
    config["decoding"] |= {"beam_size": 3, "num_best": 3}
    (copy / "config.json").write_text(json.dumps(config))
    return copy
