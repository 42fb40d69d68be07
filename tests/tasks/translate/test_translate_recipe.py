"""The translation recipe: what it refuses, and where its data lie."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.data.batches import TokenBudget
from regard.data.readers import DataSpec
from regard.errors import ConfigError, DataError
from regard.tasks.recipe import differences, plain, read_yaml, validated, with_overrides
from regard.tasks.sections import AutoBudget, with_root
from regard.tasks.translate.recipe import TranslateData, TranslateRecipe

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "translate" / "multi30k-en-de.yaml"


def recipe_with(*overrides: str, values: dict[str, Any] | None = None) -> TranslateRecipe:
    return validated(TranslateRecipe, with_overrides(values or read_yaml(RECIPE), overrides), "x.yaml")


def test_the_recipe_on_real_data_is_right_and_survives_being_plain() -> None:
    recipe = recipe_with()
    assert validated(TranslateRecipe, plain(recipe), "x") == recipe
    assert differences(plain(recipe), plain(recipe_with("training.max_steps=7"))) == ["training.max_steps"]


def test_its_checksums_are_those_of_the_corpus(shared_data: Path) -> None:
    downloads = recipe_with().data.downloads
    assert len(downloads) == 6
    for name, download in downloads.items():
        assert hashlib.sha256((shared_data / "multi30k" / name).read_bytes()).hexdigest() == download.sha256
        assert download.url.endswith(f"/data/task1/raw/{name}.gz")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=translation"], 'key `task` is "translation": expected translate'),
        (["model.encoder.num_layer=3"], "unknown key `model.encoder.num_layer`, did you mean `num_layers`?"),
        (["model.encoder.embeding.norm=true"], "unknown key `model.encoder.embeding`, did you mean `embedding`?"),
        (["data.train.paths=a"], "unknown key `data.train.paths`, did you mean `path`?"),
        (
            ["model.copy={attention: own}"],
            "model.copy is given, but only the task summarize trains a model to copy; remove it",
        ),
        (["training.max_steps=0"], "training: max_steps is 0, expected 1 or more"),
        (["decoding.beam_size=0"], "decoding: beam_size is 0, expected at least 1; 1 is greedy search"),
        (
            ["validation.decoding={beam_size: 5, num_best: 9}"],
            "decoding: num_best 9 exceeds beam_size 5; raise beam_size or lower num_best",
        ),
        (
            ["model.encoder.dropout=1", "model.decoder.attention.heads=0", "model.decoder.norm.eps=0"],
            "model.encoder.dropout is 1.0, expected 0 to below 1; model.decoder.attention.heads is 0, expected 1 or"
            " more; model.decoder.norm.eps is 0.0, expected above 0",
        ),
        (
            ["model.encoder.attention.heads=3"],
            "model.encoder: attention: model_dim 128 is no multiple of heads 3; set head_dim",
        ),
        (
            ["model.decoder.attention.heads=3"],
            "model.decoder: attention: model_dim 128 is no multiple of heads 3; set head_dim",
        ),
        (
            ["model.decoder.model_dim=64"],
            "model.tie is all, but model.encoder.model_dim is 128 and model.decoder.model_dim 64; make them equal, or"
            " set model.tie to decoder",
        ),
        (
            ["tokenizers.joint=false"],
            "model.tie is all though tokenizers.joint is false; set tokenizers.joint to true, or model.tie to decoder",
        ),
        (
            ["tokenizers.target={kind: bpe, vocab_size: 300}"],
            "tokenizers.target is given though tokenizers.joint is true; remove it, or set joint to false",
        ),
        (
            ["validation.metric=chrf"],
            "validation.metric is chrf, which scoring moses-lowercase does not give; set validation.scoring to"
            " sacrebleu, or validation.metric to bleu",
        ),
        (
            ["data.downloads={a.en: {url: x, sha256: 1f}}"],
            "key `data.downloads.a.en.sha256`: expected the 64 hexadecimal digits that sha256sum prints",
        ),
        (["seed=-1"], "key `seed` is -1: expected greater than or equal to 0"),
        (["seed=9223372036854775808"], "key `seed` is 9223372036854775808: expected less than 9223372036854775808"),
        (
            ["data.batch.batch_tokens=3"],
            "data.batch.batch_tokens is 3, expected 128 or more, so that a record of data.max_tokens fits into a batch;"
            " raise it, or lower data.max_tokens",
        ),
        (
            ["data.batch.batch_tokens=atuo"],
            'key `data.batch.batch_tokens`: received "atuo", expected a whole number or auto',
        ),
        (["data.batch.batch_tokens=null"], "key `data.batch.batch_tokens` is null: expected a whole number"),
        (["data.batch.batch_token=auto"], "unknown key `data.batch.batch_token`, did you mean `batch_tokens`?"),
        (
            ["data.batch.batch_tokens=auto", "data.batch.max_sentence=3"],
            "unknown key `data.batch.max_sentence`, did you mean `max_sentences`?",
        ),
        (["data.batch={batch_tokens: auto, max_sentences: 0}"], "max_sentences is 0, expected 1 or more, or none"),
        (["data.batch={}"], "key `data.batch.batch_tokens` is missing, add it"),
        (["data.workers=-1"], "key `data.workers` is -1: expected greater than or equal to 0"),
        (["data.max_tokens=0"], "key `data.max_tokens` is 0: expected greater than or equal to 1"),
    ],
)
def test_what_cannot_work_is_refused_before_any_data_is_read(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as failure:
        recipe_with(*overrides)
    assert str(failure.value) == f"x.yaml: {message}"


def test_a_budget_that_is_found_by_trying() -> None:
    recipe = recipe_with("data.batch={batch_tokens: auto, max_sentences: 50, batch_multiple: 8, length_noise: 0.1}")
    assert isinstance(recipe.data.batch, AutoBudget)
    assert recipe.data.batch.of(2048) == TokenBudget(2048, 50, 8, 0.1)
    assert plain(recipe)["data"]["batch"]["batch_tokens"] == "auto"
    assert validated(TranslateRecipe, plain(recipe), "x") == recipe
    given = recipe_with("data.batch={batch_tokens: 2048, max_sentences: 50, batch_multiple: 8, length_noise: 0.1}")
    assert given.data.batch == recipe.data.batch.of(2048)
    assert AutoBudget(batch_tokens="auto").of(99) == TokenBudget(99), "the other fields have the same defaults"
    assert [*AutoBudget.model_fields] == [field.name for field in dataclasses.fields(TokenBudget)]


def test_checking_draws_no_random_numbers() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    recipe_with()
    assert torch.equal(torch.get_rng_state(), before)


# -- where data lie ----------------------------------------------------------------------------------------------------


def paths(data: TranslateData) -> list[str]:
    specs: list[DataSpec] = [spec for spec in (data.train, data.validation, data.test) if spec is not None]
    return [path for spec in specs for path in ([spec.path] if isinstance(spec.path, str) else spec.path.values())]


def test_a_root_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = recipe_with("data.root=../corpus", f"data.validation.path={{source: {tmp_path}/v.en, target: v.de}}")
    data = with_root(recipe.data, Path("recipes/x.yaml"))
    root = tmp_path.resolve() / "corpus"
    assert data.root == root
    assert paths(data)[:4] == [str(root / "train.en"), str(root / "train.de"), f"{tmp_path}/v.en", str(root / "v.de")]

    monkeypatch.chdir(tmp_path)
    resolved = recipe.model_copy(update={"data": data})
    again = with_root(recipe_with("data.root=corpus", values=plain(resolved)).data, Path("x.yaml"))
    assert again == data  # the same run, started from another folder
    assert with_root(resolved.data, Path("y/z.yaml")) == data
    assert validated(TranslateRecipe, plain(resolved), "x") == resolved


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^x\.yaml: `data\.root` is .*none, but there is no such folder; give another$"
    ):
        with_root(recipe_with(f"data.root={tmp_path}/none").data, Path("x.yaml"))


def test_without_root_and_downloads_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = recipe_with("data.downloads={}", "data.test={format: hub, path: some/name, split: test}")
    data = with_root(recipe.data, tmp_path / "sub" / "x.yaml")
    folder = tmp_path.resolve() / "sub"
    assert paths(data) == [*(str(folder / name) for name in ("train.en", "train.de", "val.en", "val.de")), "some/name"]
    assert with_root(recipe.model_copy(update={"data": data}).data, Path("other/x.yaml")) == data


def test_downloads_are_fetched_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    names = ["a.en", "a.de"]
    where = {}
    for name in names:
        (tmp_path / name).write_text(f"{name}\u2028\n", encoding="utf-8")
        digest = hashlib.sha256(f"{name} \n".encode()).hexdigest()
        where[name] = {"url": (tmp_path / name).as_uri(), "sha256": digest}
    where["unused.fr"] = {"url": "http://127.0.0.1:1/unused", "sha256": "0" * 64}
    values = read_yaml(RECIPE)
    values["data"] |= {
        "downloads": where,
        "train": {"path": {"source": "a.en", "target": "a.de"}},
        "validation": {"path": {"source": "own.en", "target": "own.de"}},
        "test": None,
    }
    recipe = recipe_with(values=values)
    told: list[str] = []
    data = with_root(recipe.data, tmp_path / "x.yaml", lambda name, received, size: told.append(name))
    cache = tmp_path / "cache" / "x"
    own = tmp_path.resolve()
    assert paths(data) == [*(str(cache / name) for name in names), str(own / "own.en"), str(own / "own.de")]
    assert sorted(path.name for path in cache.iterdir()) == sorted(names)
    assert (cache / "a.en").read_text(encoding="utf-8") == "a.en \n"
    assert set(told) == set(names)
    for name in names:
        (tmp_path / name).unlink()
    assert with_root(recipe.data, tmp_path / "x.yaml") == data  # a resumed run needs no network, and is the same run
    assert with_root(recipe.model_copy(update={"data": data}).data, Path("y.yaml")) == data


def test_without_network_one_line_says_where_to_get_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))
    values = read_yaml(RECIPE)
    for download in values["data"]["downloads"].values():
        download["url"] = "http://127.0.0.1:1/" + download["url"].rpartition("/")[2]
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError) as failure:
        with_root(recipe_with(values=values).data, RECIPE)
    message = str(failure.value)
    assert message.startswith("train.en: cannot be fetched from http://127.0.0.1:1/train.en.gz (")
    assert message.endswith(
        f"put it, unpacked, at {tmp_path}/multi30k-en-de/train.en (5 more files likewise), or pass data.root=FOLDER"
        " where the files lie"
    )
    assert "\n" not in message
