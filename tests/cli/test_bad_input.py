"""What is wrong is told in one line that names the thing and the remedy, with status 2, and nothing is written over."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, Trained, files_in, run_process
from tiny_language import TRAIN, recipe, write_parallel, write_recipe

from regard.tasks.model_directory import FORMAT_VERSION

QUICK = {"training__max_steps": 7, "training__validate_every": 7}


# -- recipes and data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training.max_step=3", ["unknown key `training.max_step`", "did you mean `max_steps`"]),
        ("lables=3", ["unknown key `lables`", "known here"]),
        ("training.max_steps=many", ["`training.max_steps`", '"many"', "whole number"]),
        ("training.max_steps", ["override `training.max_steps`", "key=value"]),
        ("seed.deep=3", ["override `seed.deep=3`", "`seed` is 3"]),
        ("training.schedule.peak=-1", ["schedule.peak is -1", "above 0"]),
        ("task=summarise", ["`task` is 'summarise'", "did you mean `summarize`"]),
        ("task=vanish", ["`task` is 'vanish'", "known: translate"]),
        ("task=translat", ["`task` is 'translat'", "did you mean `translate`"]),
        ("data.root=/no/such/folder", ["data.root", "/no/such/folder"]),
        ("data.train.path.source=gone.en", ["gone.en", "no such file"]),
        ("data.test.path.target=gone.de", ["gone.de", "no such file"]),
        ("data.validation.path={source: val.en, target: test.de}", ["val.en has 23", "test.de has 41", "line by line"]),
        ("tokenizers.source.vocab_size=9000", ["tokenizers.source.vocab_size is 9000", "or less"]),
        ("data.max_tokens=2", ["no usable record", "too long", "train.en:1"]),
        ("model.encoder.attention.heads=5", ["model.encoder: attention", "32", "5"]),
        ("model.decoder.attention.heads=5", ["model.decoder: attention", "32", "5"]),
        ("seed=-1", ["`seed` is -1"]),
        ("data.batch.batch_tokens=3", ["data.batch.batch_tokens is 3", "40 or more", "data.max_tokens"]),
    ],
)
def test_a_recipe_that_cannot_be(
    command: Command, trained: Trained, tmp_path: Path, change: str, expected: list[str]
) -> None:
    before = files_in(trained.data)
    done = command("train", trained.recipe, change, "--run", tmp_path / "run")
    line = done.refused(*expected)
    if not change.startswith(("task", "tokenizers", "training.max_steps", "seed.", "data.")):
        assert str(trained.recipe) in line or "model" in line
    assert files_in(trained.data) == before
    assert not (tmp_path / "run").exists()
    assert ("learning" in done.err) == change.startswith(("tokenizers", "data.max_tokens"))
    # The mistake mended, the same run directory serves.
    if "vocab_size" in change:
        mended = write_recipe(tmp_path / "mended.yaml", trained.data, **QUICK)
        assert command("train", mended, "--run", tmp_path / "run").status == 0


def test_a_recipe_that_is_missing(command: Command, tmp_path: Path) -> None:
    command("train", tmp_path / "none.yaml").refused("none.yaml", "no such recipe", "recipes/")


def test_a_recipe_without_sense(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("task: translate\n  seed: [1\n", encoding="utf-8")
    command("train", path).refused("bad.yaml")
    path.write_text("- 1\n", encoding="utf-8")
    command("train", path).refused("bad.yaml", "expected keys and values")


def bad_corpus(folder: Path, data: Path, source: bytes, target: bytes) -> Path:
    shutil.copytree(data, folder)
    (folder / "train.en").write_bytes(source)
    (folder / "train.de").write_bytes(target)
    return folder


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (b"", b"", ["train.en", "empty"]),
        (b"\n\n\n", b"a\nb\nc\n", ["no usable record", "empty source 3", "train.en:1"]),
        (b"a\n\xff\n", b"\n\xfe\n", ["no usable record", "undecodable", "train.en:2", "empty target"]),
        (b"a\nb\n", b"a\n", ["train.en has 2", "train.de has 1"]),
    ],
)
def test_a_corpus_that_cannot_be(
    command: Command, trained: Trained, tmp_path: Path, source: bytes, target: bytes, expected: list[str]
) -> None:
    data = bad_corpus(tmp_path / "data", trained.data, source, target)
    command("train", trained.recipe, f"data.root={data}", "--run", tmp_path / "run").refused(*expected)
    assert (data / "train.en").read_bytes() == source


def test_bad_records_are_named_and_skipped_or_stop_the_run(command: Command, trained: Trained, tmp_path: Path) -> None:
    sources = [source.encode() for source, _ in TRAIN]
    targets = [target.encode() for _, target in TRAIN]
    sources[6], targets[12], sources[16] = b"The d\xffg sees.", b"  ", b"the dog " * 40
    data = bad_corpus(tmp_path / "data", trained.data, b"\n".join(sources), b"\n".join(targets))
    path = write_recipe(tmp_path / "r.yaml", data, **QUICK)
    done = command("train", path, "--run", tmp_path / "skips", "--json")
    assert done.status == 0, done.err
    [told] = [line for line in done.err.splitlines() if "training records" in line]
    assert "698 training records; 3 bad records" in told
    assert f"undecodable source 1 ({data / 'train.en'}:7)" in told
    assert "empty target 1" in told
    assert f"over 40 tokens 1 ({data / 'train.en'}:17)" in told
    bad = json.loads(done.out)["data"]["bad_records"]
    assert sum(one["count"] for one in bad["train"].values()) == 3
    assert bad["validation"] == bad["test"] == {}
    command("train", path, "data.on_bad=stop", "--run", tmp_path / "stops").refused("train.en:7", "undecodable source")


def test_a_bad_test_record_is_named_before_training(command: Command, trained: Trained, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    write_parallel(data, "test", [("A.", "B."), ("", "C.")])
    path = write_recipe(tmp_path / "r.yaml", data, **QUICK)
    done = command("train", path, "--run", tmp_path / "skips", "--json")
    assert "test data: 1 bad record: empty source 1" in done.err
    assert json.loads(done.out)["data"]["bad_records"]["test"]["empty source"]["count"] == 1
    command("train", path, "data.on_bad=stop", "--run", tmp_path / "stops").refused("test.en:2", "empty source")


# -- run directories ---------------------------------------------------------------------------------------------------


def test_resuming_with_a_changed_recipe_names_the_keys(command: Command, trained: Trained) -> None:
    before = files_in(trained.run)
    done = command("train", trained.recipe, "seed=4", "training.schedule.peak=0.1", "--run", trained.run)
    done.refused("`seed`", "`training.schedule.peak`", str(trained.run), "--run")
    assert files_in(trained.run) == before


def test_a_folder_that_is_no_run_is_left_alone(command: Command, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("precious", encoding="utf-8")
    before = files_in(tmp_path)
    command("train", trained.recipe, "--run", tmp_path).refused(str(tmp_path), "holds model", "--run")
    command("train", trained.recipe, "--run", trained.recipe).refused(str(trained.recipe), "--run")
    assert files_in(tmp_path) == before


def test_a_damaged_corpus_stops_a_resumed_run(command: Command, trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    (run / "result.json").unlink()
    path = run / "data" / "train" / "target.tokens"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = files_in(run)
    command("train", trained.recipe, "--run", run).refused(f"{path}: the content is not", f"delete {path.parent}")
    assert files_in(run) == before


def test_two_processes_cannot_train_in_one_place(command: Command, trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command("train", trained.recipe, "--run", folder).refused("another process is training here", "--run")


def test_a_full_disk_leaves_a_usable_checkpoint(
    command: Command, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    path = write_recipe(
        tmp_path / "r.yaml", trained.data, training__max_steps=12, training__validate_every=6,
        training__checkpoint_every=4,
    )  # fmt: skip
    write = torch.save

    def full(state: Any, file: Any) -> None:
        """Full after the checkpoint of step 4 and the best one of step 6, before that of step 8."""
        if (tmp_path / "run" / "checkpoints" / "best").is_dir():
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(state, file)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        done = command("train", path, "--run", tmp_path / "run")
    done.refused("step-000000008: not written, the disk is full", "step-000000004;", "run the same command again")
    assert command("train", path, "--run", tmp_path / "run").status == 0
    assert command("train", path, "--run", tmp_path / "whole").status == 0
    same = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("run", "whole")]
    assert same[0] == same[1]


# -- model directories -------------------------------------------------------------------------------------------------


@pytest.fixture
def model(trained: Trained, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(trained.model, tmp_path / "model"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_with_a_missing_file(command: Command, model: Path, name: str) -> None:
    (model / name).unlink()
    command("translate", model, "x").refused(name, "missing")
    command("evaluate", model).refused(name, "missing")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("how", ["flipped", "shorter", "empty"])
def test_a_model_with_a_damaged_file(command: Command, model: Path, name: str, how: str) -> None:
    content = (model / name).read_bytes()
    place = len(content) // 2
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    (model / name).write_bytes({"flipped": flipped, "shorter": content[:-7], "empty": b""}[how])
    command("translate", model, "x").refused(name, "damaged", "copy")


def test_a_model_of_a_newer_version(command: Command, model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["format_version"] = FORMAT_VERSION + 1
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command("translate", model, "x").refused(f"format {FORMAT_VERSION + 1}", f"up to {FORMAT_VERSION}", "upgrade")


def test_a_model_that_is_not_there(command: Command, trained: Trained, tmp_path: Path) -> None:
    command("translate", tmp_path / "none", "x").refused(str(tmp_path / "none"), "no such model directory")
    command("translate", trained.run, "x").refused("config.json", f"did you mean {trained.model}?")
    command("translate", trained.recipe, "x").refused(str(trained.recipe))


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--beam-size", "0"], ["beam_size is 0", "at least 1"]),
        (["--beam-size", "2", "--num-best", "3"], ["num_best 3 exceeds beam_size 2"]),
        (["--sample", "--temperature", "0"], ["temperature is 0"]),
        (["--temperature", "0.5"], ["temperature 0.5", "without sample"]),
        (["--sample", "--beam-size", "3"], ["sample with beam_size 3"]),
        (["--sample", "--top-p", "1.5"], ["top_p is 1.5"]),
        (["--max-length", "0"], ["max_length is 0"]),
        (["--max-length", "many"], ["--max-length", "valid integer", "regard translate --help"]),
        (["--no-repeat-ngram", "-1"], ["no_repeat_ngram is -1"]),
        (["--beam", "3"], ["--beam", "--beam-size", "--help"]),
        (["--device", "abacus"], ["device `abacus`"]),
        (["--dtype", "float3"], ["dtype `float3`", "float32"]),
        (["--attention", "x.pdf"], ["x.pdf", ".html, .png, .svg, .jsonl"]),
        (["--attention", "/no/such/x.png"], ["/no/such/x.png", "no folder /no/such"]),
    ],
)
def test_options_that_cannot_be(command: Command, trained: Trained, arguments: list[str], expected: list[str]) -> None:
    command("translate", trained.model, "The dog.", *arguments).refused(*expected)


def test_attention_over_a_folder(command: Command, trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "x.html"
    folder.mkdir()
    command("translate", trained.model, "x", "--attention", folder).refused("x.html", "is a folder")


def test_nothing_to_translate(command: Command, trained: Trained, tmp_path: Path) -> None:
    command("translate", trained.model).refused("nothing to do", "--file")
    path = tmp_path / "a.png"
    done = command("translate", trained.model, "", "--attention", path)
    assert (done.status, done.errors) == (
        2,
        [f"--attention {path}: not written, there was no text to translate; give one"],
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ["trian", "train"]),
        (["--versoin"], ["--versoin", "--version"]),
        (["translate"], ["Missing argument", "model"]),
        (["demo", "summarise"], ["demo `summarise`", "did you mean `summarize`"]),
        (["demo", "vanish"], ["demo `vanish`", "known: translate"]),
        (["demo", "--steps", "0"], ["--steps is 0"]),
    ],
)
def test_commands_that_cannot_be(command: Command, arguments: list[str], expected: list[str]) -> None:
    command(*arguments).refused(*expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--scoring", "bleurt"], ["--scoring bleurt", "moses-lowercase"]),
        (["--beam-size", "0"], ["beam_size is 0"]),
        (["--data", "gone.tsv"], ["gone.tsv", "no such file"]),
        (["--data", "a.en,b.de,c.fr"], ["a.en,b.de,c.fr", "SOURCE,TARGET"]),
        (["--data", "{path: x.csv, colums: {}}"], ["unknown key `colums`", "did you mean `columns`"]),
        (["--data", "{path: x.csv"], ["not valid YAML"]),
        (["--output", "/no/such/file"], ["/no/such/file", "no folder /no/such"]),
    ],
)
def test_evaluations_that_cannot_be(
    command: Command, trained: Trained, arguments: list[str], expected: list[str]
) -> None:
    command("evaluate", trained.model, *arguments).refused(*expected)


def test_a_test_set_that_has_moved(command: Command, trained: Trained, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    path = write_recipe(tmp_path / "r.yaml", data, **QUICK)
    assert command("train", path, "--run", tmp_path / "run").status == 0
    shutil.rmtree(data)
    command("evaluate", tmp_path / "run" / "model").refused("test.en", "--data SOURCE,TARGET")


# -- of several inputs, one bad ----------------------------------------------------------------------------------------


def test_a_bad_line_is_named_and_the_rest_is_done(command: Command, trained: Trained, tmp_path: Path) -> None:
    good = command("translate", trained.model, "The old cat sees the dog.", "The man likes the bird.")
    first, second = good.out.splitlines()
    stdin = b"The old cat sees the dog.\n\xc3\x28 dog\nThe man likes the bird.\n"
    done = command("translate", trained.model, "-", stdin=stdin)
    assert (done.status, done.out.splitlines()) == (2, [first, "", second])
    assert done.errors == [
        "standard input:2: not UTF-8 (byte 0xc3, number 1 of the line); convert it first, for example with iconv"
    ]
    path = tmp_path / "in.txt"
    path.write_bytes(stdin)
    done = command("translate", trained.model, "--json", "--file", path)
    assert done.status == 2
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [one.get("text") for one in found] == [first, None, second]
    assert found[1] == {"error": done.errors[0]}
    assert done.errors[0].startswith(f"{path}:2: not UTF-8")
    done = command("translate", trained.model, "--num-best", "2", "-", stdin=stdin)
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["1", "1", "2", "3", "3"]
    assert done.out.splitlines()[2] == "2\t\t"


def test_a_missing_file_is_named_and_the_rest_is_done(command: Command, trained: Trained, tmp_path: Path) -> None:
    for name, text in (("a", "The dog sees the cat.\n"), ("c", "The cat hears the man.")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [part for name in "abc" for part in ("--file", tmp_path / name)]
    done = command("translate", trained.model, *files)
    assert (done.status, len(done.out.splitlines())) == (2, 2)
    [line] = done.errors
    assert f"{tmp_path / 'b'}: cannot be read (No such file or directory)" in line
    done = command("translate", trained.model, "--json", *files)
    assert [sorted(json.loads(line)) == ["error"] for line in done.out.splitlines()] == [False, True, False]


def test_text_in_another_encoding(command: Command, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "wide.txt").write_bytes("The dog.\nThe cat.\n".encode("utf-16"))
    done = command("translate", trained.model, "--file", tmp_path / "wide.txt")
    done.refused("wide.txt", "UTF-16", "iconv")
    done = command("translate", trained.model, "The dog sees the cat.", "\udcff dog")
    assert (done.status, len(done.out.splitlines()), done.out.splitlines()[1]) == (2, 2, "")
    assert done.errors == ["text 2: not UTF-8; write it in a UTF-8 terminal, or give it with --file"]


def test_the_process_ends_with_the_status(trained: Trained) -> None:
    done = run_process("translate", trained.model, "-", stdin=b"\xff\n")
    assert (done.status, done.out, len(done.errors)) == (2, "\n", 1)
    assert "Traceback" not in done.err


def test_the_recipe_of_these_tests_is_sound(trained: Trained, command: Command, tmp_path: Path) -> None:
    """Each case above differs from a recipe that works."""
    assert recipe(trained.data)["training"]["max_steps"] > 0
    assert (
        command("train", write_recipe(tmp_path / "r.yaml", trained.data, **QUICK), "--run", tmp_path / "x").status == 0
    )
