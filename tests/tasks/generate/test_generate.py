"""A language model's run from recipe to text: what is learnt, written, streamed, scored, kept and refused."""

from __future__ import annotations

import io
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_text import WORDS, recipe, sentences

import regard
from regard.attention.observation import Observe
from regard.cli.main import run as command_line
from regard.data.windows import WindowBudget
from regard.decoding.force import force
from regard.decoding.search import decode
from regard.errors import ConfigError, DataError, Interrupted, ModelFileError
from regard.inputs.text import Tokenizer
from regard.tasks.generate.generator import Generator
from regard.tasks.generate.recipe import GenerateRecipe
from regard.tasks.generate.scoring import score
from regard.tasks.recipe import read_yaml, validated
from regard.tasks.run import train
from regard.training.monitor import Silent

Call = Callable[..., tuple[int, str, str]]


def trained_by(path: Path, folder: Path, watcher: Silent | None = None) -> Path:
    train(validated(GenerateRecipe, read_yaml(path), str(path)), folder, origin=str(path), watcher=watcher)
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    return trained_by(recipe(folder / "data"), folder / "run")


@pytest.fixture(scope="module")
def generator(model: Path) -> Generator:
    loaded = regard.load(model)
    assert isinstance(loaded, Generator)
    return loaded


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    def called(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        status = command_line([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return called


def follows_the_rule(text: str) -> bool:
    words = text.rstrip(".").split(" ")
    places = [WORDS.index(word) for word in words if word in WORDS]
    steps = [(b - a) % len(WORDS) for a, b in itertools.pairwise(places)]
    return len(places) == len(words) and set(steps) <= {1}


# -- writing -----------------------------------------------------------------------------------------------------------


def test_it_writes_what_it_has_learnt(generator: Generator) -> None:
    found = generator.generate(["ada b", "cyd", ""], sample=False)
    assert [one.prompt for one in found] == ["ada b", "cyd", ""]
    assert all(follows_the_rule(one.prompt + one.text) for one in found), [one.text for one in found]
    assert all(one.finished and one.tokens[-1] == "</s>" for one in found)
    samples = generator.generate(["bob"], num_best=4, sample=True, temperature=0.5, seed=3)[0]
    assert len(samples.alternatives) == 3
    assert samples.to_json()["alternatives"][0]["score"] <= samples.score


@pytest.mark.parametrize("options", [{"sample": False}, {"sample": True, "seed": 5}], ids=str)
def test_a_stream_is_what_generate_returns(generator: Generator, options: dict[str, object]) -> None:
    for number, prompt in enumerate(["ada bo", "", "dot ada"]):
        pieces = list(generator.stream(prompt, number=number, **options))
        [whole] = generator.generate([prompt], first_number=number, **options)
        assert "".join(pieces) == whole.text
        assert len(pieces) >= len(whole.tokens) - 1
    first, second = generator.generate(["ada", "ada"], sample=True, temperature=1.5, seed=2)
    assert first.text != second.text  # samples of one prompt differ by their number


def test_characters_of_several_bytes_come_whole(generator: Generator) -> None:
    [ids] = generator.tokenizer.encode_ids(["é–x"])
    assert len(ids) == 6
    assert list(generator._pieces([], iter([*ids, Tokenizer.EOS]))) == ["é", "–", "x"]
    assert "".join(generator._pieces([], iter(ids[:1]))) == "\ufffd"  # what ends in the middle is shown as it is


def test_a_text_may_outgrow_the_context(generator: Generator) -> None:
    assert generator.config.context == 64
    [long] = generator.generate(["ada bob"], sample=False, min_length=150, max_length=160)
    assert len(long.tokens) > 150
    [behind] = generator.generate(["ada bob " * 40 + "cy"], sample=False)
    assert behind.text.startswith("d dot")


def test_attention_is_that_of_the_tokens_written(generator: Generator) -> None:
    [found] = generator.generate(["ada b"], sample=False, attention=True)
    record = found.attention
    assert record is not None
    assert list(record.layers) == ["layers.0.self", "layers.1.self"]
    rows = record["layers.0.self"].rows
    assert record.query is not None
    assert record.key is not None
    assert rows.shape == (1, 4, len(found.tokens), len("ada b") + len(found.tokens))  # the begin token is read as well
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:3]))
    assert record.query.tokens == found.tokens
    assert record.key.text == "ada b" + found.text
    assert rows[0, :, 0, 7:].eq(0).all()


@pytest.mark.parametrize("prompt", ["ada bob", "", "ada bob " * 40 + "cy"], ids=["short", "none", "longer than that"])
@pytest.mark.parametrize("length", [30, 67, 160])
def test_past_the_context_attention_is_what_chose_the_tokens(generator: Generator, prompt: str, length: int) -> None:
    """The last `context` rows, as the search itself would have shown them step by step."""
    [found] = generator.generate([prompt], sample=False, min_length=length - 1, max_length=length, attention=True)
    record = found.attention
    assert record is not None and record.query is not None and record.key is not None
    rows = record["layers.1.self"].rows
    _, bos, prefix = generator._read(prompt)
    [[again]] = decode(
        generator._decoder(),
        {},
        generator.config.decoding.changed(sample=False, min_length=length - 1, max_length=length),
        bos=bos,
        eos=Tokenizer.EOS,
        prefix=prefix,
    )
    tokens = [*([] if prefix is None else prefix[0].tolist()), *again.tokens]
    decoder, wanted = generator._decoder(), []
    state, fed = decoder.start({}), torch.tensor([[bos, *tokens[: len(tokens) - len(again.tokens)]]])
    for token in again.tokens:
        step, state = decoder.advance(state, fed, Observe(rows="all"))
        wanted.append(step.attention["layers.1.self"].rows[0, :, -1].detach())
        fed = torch.tensor([[token]])
    count = min(len(again.tokens), generator.config.context)
    assert record.query.tokens == found.tokens[-count:]
    assert rows.shape[2] == count
    for place, one in enumerate(wanted[-count:]):
        end = rows.shape[3] - (count - 1 - place)  # a row ends with the token read last
        torch.testing.assert_close(rows[0, :, place, end - one.shape[1] : end], one)
        assert not rows[0, :, place, : end - one.shape[1]].any()
        assert not rows[0, :, place, end:].any()
    assert (prompt + found.text).endswith(record.key.text[-20:])


def test_a_prompt_in_the_middle_of_a_text_is_read_as_such(tmp_path: Path) -> None:
    """Where documents are longer than windows the begin token is rare, and left out."""
    path = recipe(tmp_path, data__train={"path": "train.txt", "format": "document"}, training__max_steps=2)
    generator = regard.load(trained_by(path, tmp_path / "run"))
    assert not generator.config.begins
    assert generator._read("ada")[1:][0] == generator.tokenizer.encode_ids(["a"])[0][0]
    assert generator._read("")[1] == Tokenizer.BOS
    assert isinstance(generator.generate(["a"], max_length=3)[0].text, str)


def test_a_coverage_penalty_has_no_source_to_count(generator: Generator) -> None:
    for call in (generator.generate, generator.stream):
        with pytest.raises(ConfigError, match=r"coverage_penalty is 0\.5, but a language model reads no source"):
            call("ada", coverage_penalty=0.5)


# -- scores ------------------------------------------------------------------------------------------------------------


def test_scores_are_the_forced_log_probabilities(generator: Generator) -> None:
    texts = [*sentences(5, seed=9), "x ada é."]
    found = score(generator.model, generator.tokenizer, texts, WindowBudget(64, 3))
    wanted, tokens = 0.0, 0
    for ids in generator.tokenizer.encode_ids(texts):
        forced = force(generator.model, {}, torch.tensor([[*ids, Tokenizer.EOS]]), bos=Tokenizer.BOS)
        wanted -= float(forced.log_prob.detach())
        tokens += len(ids) + 1
    # Windows cut some texts, whose later tokens then see less; one window for all cuts none.
    whole = score(generator.model, generator.tokenizer, texts, WindowBudget(1000, 1))
    assert whole.nats == pytest.approx(wanted, rel=1e-4)
    assert found.num_tokens == whole.num_tokens == tokens
    assert whole.num_words == sum(len(text.split()) for text in texts)
    assert whole.num_bytes == sum(len(text.encode()) for text in texts)
    assert whole.token_perplexity == pytest.approx(math.exp(wanted / tokens), rel=1e-4)
    assert whole.word_perplexity == pytest.approx(math.exp(wanted / whole.num_words), rel=1e-4)
    assert whole.bits_per_byte == pytest.approx(wanted / math.log(2) / whole.num_bytes, rel=1e-4)
    low, high = found.interval()
    assert low <= found.nats_per_token <= high


def test_evaluate_prints_the_recipes_test(model: Path, call: Call) -> None:
    status, out, _ = call("evaluate", model, "--json")
    assert status == 0
    values = json.loads(out)
    result = json.loads((model.parent / "result.json").read_text())
    assert values["metrics"]["nats_per_token"]["value"] == pytest.approx(
        result["test"][0]["metrics"]["nats_per_token"]["value"]
    )
    assert values["metrics"]["nats_per_token"]["value"] < 0.3
    assert "perplexity per token" in call("evaluate", model)[1]
    status, _, err = call("evaluate", model, "--beam-size", "3")
    assert (status, "--beam-size has no effect on the task generate" in err) == (2, True)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_prompts_with_what_follows(model: Path, call: Call, tmp_path: Path) -> None:
    status, out, _ = call("generate", model, "ada b", "-", "--no-sample", stdin=b"cyd\n")
    assert status == 0
    assert [follows_the_rule(line) for line in out.splitlines()] == [True, True]
    assert out.startswith("ada bob")
    status, out, _ = call("generate", model, "ada b", "--json", "--beam-size", "3", "--num-best", "2")
    assert len(json.loads(out)["alternatives"]) == 1
    picture = tmp_path / "why.html"
    status, out, _ = call("generate", model, "ada b", "--no-sample", "--attention", picture)
    assert status == 0
    assert "ada" in picture.read_text()
    whole = tmp_path / "why.safetensors"
    status, out, _ = call("generate", model, "ada b", "--no-sample", "--attention", whole)
    assert status == 0
    assert regard.AttentionRecord.load(whole).key.text == out.removesuffix("\n")
    status, out, _ = call("generate", model, "ada", "--sample", "--num-best", "2", "--seed", "1", "--top-k", "4")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["1", "1"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to do: give a text in quotes"),
        (["a", "--no-sample", "--top-k", "3"], "top_k 3 without sample would have no effect"),
        (["a", "--max-length", "0"], "max_length is 0, expected at least 1"),
        (["a", "--attention", "why.txt"], "the ending says the kind of file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(model: Path, call: Call, arguments: list[str], complaint: str) -> None:
    status, out, err = call("generate", model, *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("regard: error") == 1


def test_a_bad_prompt_stops_no_other(model: Path, call: Call) -> None:
    status, out, err = call("generate", model, "-", "--no-sample", stdin=b"caf\xe9\nada b\n")
    assert status == 2
    assert "standard input:1: not UTF-8" in err
    assert out.startswith("ada bob")


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, model: Path) -> None:
    class Impatient(Silent):
        def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None:
            if step == 73:
                raise KeyboardInterrupt

    path = recipe(tmp_path / "data")
    with pytest.raises(Interrupted, match="stopped at once at step 73"):
        trained_by(path, tmp_path / "run", Impatient())
    again = trained_by(path, tmp_path / "run")
    assert (again.parent / "metrics.jsonl").read_bytes() == (model.parent / "metrics.jsonl").read_bytes()
    assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_subwords_learn_as_well(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        tokenizer={"kind": "bpe", "vocab_size": 268},
        model__tie=False,
        model__norm={"kind": "layer"},
        training__max_steps=60,
    )
    generator = regard.load(trained_by(path, tmp_path / "run"))
    [found] = generator.generate(["ada bob"], sample=False)
    assert found.text.startswith(" cyd dot")
    assert "".join(generator.stream("ada bob", sample=False)) == found.text


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data__batch": {"window_tokens": 1, "num_windows": 2}}, "data.batch.window_tokens is 1, expected 2 or more"),
        (
            {"model__embedding": {"positions": "learned", "max_positions": 9}},
            "max_positions is 9, but data.batch.window_tokens is 64",
        ),
        ({"model__attention": {"heads": 5}}, "model_dim 32 is no multiple of heads 5"),
        ({"model__num_layers": 0}, "model.num_layers is 0, expected 1 or more"),
        ({"model__widht": 3}, "unknown key `model.widht`"),
        ({"validation": {"metric": "bleu"}}, "log_likelihood"),
        ({"decoding": {"coverage_penalty": 0.7}}, "coverage_penalty is 0.7, but a language model reads no source"),
    ],
)
def test_recipes_that_cannot_work_are_refused(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    path = recipe(tmp_path, **changes)
    with pytest.raises(ConfigError, match=complaint):
        validated(GenerateRecipe, read_yaml(path), str(path))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\x00\x01", "binary data"), (b"\n\n", "no usable record"), (b"caf\xe9", "not UTF-8")],
)
def test_documents_that_are_none_are_named_before_training(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = recipe(tmp_path, data__test={"path": "bad.txt", "format": "document"})
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        trained_by(path, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_damaged_directory_is_named(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config.pop("config_sha256")
    config["model"]["model_dim"] = 64
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match=r"weights do not fit the configuration, e.g. embedding"):
        regard.load(copy)
