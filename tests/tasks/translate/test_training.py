"""A translation run in Python: tokenizers, corpora, what is kept, what is undone, both families of models."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import regard
from regard.data.batches import BatchStream, Position, TokenBudget
from regard.data.corpus import Corpus
from regard.data.readers import DataSpec
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, DataError, RegardError
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.tasks import run
from regard.tasks.run import train
from regard.tasks.sections import AutoBudget
from regard.tasks.translate.job import objective
from regard.tasks.translate.recipe import ROLES, Tokenizers, TranslateData, TranslateRecipe, Validation
from regard.training import batch_budget
from regard.training.config import TrainingConfig

TRANSFORMER = EncoderDecoderConfig(
    TransformerEncoderConfig(16, 1, AttentionConfig(heads=2), FeedForwardConfig(width=24)),
    TransformerDecoderConfig(16, 1, AttentionConfig(heads=2), FeedForwardConfig(width=24)),
    tie="all",
)
RECURRENT = EncoderDecoderConfig(
    RecurrentEncoderConfig("recurrent", 11),
    AttentionRNNConfig("attention-rnn", 13, 7),
    tie="decoder",
)
WORDS = "one two three four five six seven eight nine ten".split()  # noqa: SIM905
WORTE = "eins zwei drei vier fünf sechs sieben acht neun zehn".split()  # noqa: SIM905


class Listener:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []

    def started(self, step: int, max_steps: int) -> None: ...

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None:
        self.steps.append(step)

    def said(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Number words, and their German."""
    folder, chosen = tmp_path_factory.mktemp("text"), random.Random(7)
    for name, count in (("train", 211), ("val", 11), ("test", 13)):
        rows = [[chosen.randrange(10) for _ in range(chosen.randint(1, 7))] for _ in range(count)]
        for ending, words in (("en", WORDS), ("de", WORTE)):
            lines = (" ".join(words[number] for number in row) for row in rows)
            (folder / f"{name}.{ending}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def recipe(text: Path, **changes: Any) -> TranslateRecipe:
    values: dict[str, Any] = {
        "task": "translate",
        "seed": 5,
        "data": TranslateData(
            source_language="en",
            target_language="de",
            root=text,
            train=DataSpec({"source": "train.en", "target": "train.de"}),
            validation=DataSpec({"source": "val.en", "target": "val.de"}),
            test=DataSpec({"source": "test.en", "target": "test.de"}),
            max_tokens=64,
            batch=TokenBudget(128),
        ),
        "tokenizers": Tokenizers(source=TokenizerConfig("bpe", 290)),
        "model": TRANSFORMER,
        "training": TrainingConfig(
            max_steps=6, validate_every=3, checkpoint_every=2, log_every=1, precision="float32", final=("last",)
        ),
        "validation": Validation(metric="chrf", decoding=DecodingOptions(max_length=9)),
        "decoding": DecodingOptions(max_length=9),
    }
    return TranslateRecipe(**{**values, **changes})


@pytest.mark.parametrize("model", [TRANSFORMER, RECURRENT], ids=["transformer", "recurrent"])
def test_both_families_train_and_translate(text: Path, tmp_path: Path, model: EncoderDecoderConfig) -> None:
    listener = Listener()
    result = train(recipe(text, model=model), tmp_path / "run", watcher=listener)
    assert listener.steps == [1, 2, 3, 4, 5, 6]
    assert result["steps"] == 6
    translator = regard.load(tmp_path / "run" / "model")
    [translation] = translator.translate(["one two"], beam_size=3)
    assert translation.attention is not None
    rows = translation.attention.rows()
    assert rows.shape == (len(translation.tokens), len(translator.source_tokenizer.encode_ids(["one two"])[0]) + 1)
    torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows)))


def test_separate_vocabularies(text: Path, tmp_path: Path) -> None:
    separate = Tokenizers(joint=False, source=TokenizerConfig("bpe", 270), target=TokenizerConfig("unigram", 280))
    untied = EncoderDecoderConfig(TRANSFORMER.encoder, TRANSFORMER.decoder, tie="decoder")
    train(recipe(text, tokenizers=separate, model=untied), tmp_path / "run")
    translator = regard.load(tmp_path / "run" / "model")
    assert (len(translator.source_tokenizer), len(translator.target_tokenizer)) == (270, 280)
    names = sorted(path.name for path in (tmp_path / "run" / "model").glob("tokenizer*"))
    assert names == ["tokenizer.source.json", "tokenizer.target.json"]
    too_large = Tokenizers(joint=False, source=TokenizerConfig("bpe", 270), target=TokenizerConfig("bpe", 5_000))
    with pytest.raises(ConfigError, match=r"tokenizers\.target\.vocab_size is 5000"):
        train(recipe(text, tokenizers=too_large, model=untied), tmp_path / "other")


def test_the_corpus_is_prepared_once(text: Path, tmp_path: Path) -> None:
    short = TrainingConfig(max_steps=2, validate_every=2, precision="float32", final=("last",))
    chosen = recipe(text, training=short)
    train(chosen, tmp_path / "run")
    corpus = tmp_path / "run" / "data" / "train"
    times = {path: path.stat().st_mtime_ns for path in corpus.iterdir()}
    (tmp_path / "run" / "result.json").unlink()
    listener = Listener()
    train(chosen, tmp_path / "run", watcher=listener)
    assert {path: path.stat().st_mtime_ns for path in corpus.iterdir()} == times
    assert not [line for line in listener.lines if "learning" in line or "training records" in line]
    assert listener.steps == []  # the last checkpoint is at the last step
    (tmp_path / "run" / "result.json").unlink()
    original = (text / "train.en").read_text(encoding="utf-8")
    try:
        (text / "train.en").write_text(original.replace("one", "two"), encoding="utf-8")
        with pytest.raises(DataError, match="prepared from other data"):
            train(chosen, tmp_path / "run")
    finally:
        (text / "train.en").write_text(original, encoding="utf-8")


def test_a_budget_is_found_once_and_changes_nothing_else(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_budget, "FEWEST_BATCHES", 3)  # the corpus is small
    monkeypatch.setattr(batch_budget, "SECONDS", 0.01)
    auto = recipe(text).data.model_copy(update={"batch": AutoBudget(batch_tokens="auto")})
    listener = Listener()
    result = train(recipe(text, data=auto), tmp_path / "auto", watcher=listener)
    [told] = [line for line in listener.lines if line.startswith("batch_tokens: ")]
    written = json.loads((tmp_path / "auto" / "data" / "batch_tokens.json").read_text(encoding="utf-8"))
    assert told == f"batch_tokens: {written['batch_tokens']:,} found by trying; {written['why']}"
    assert written["trials"][0]["batch_tokens"] == 64
    given = recipe(text).data.model_copy(update={"batch": TokenBudget(written["batch_tokens"])})
    train(recipe(text, data=given), tmp_path / "given")
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "given" / name).read_bytes(), name
    # The run goes on with what it found, whatever would be found now.
    for name in ("result.json", "checkpoints", "metrics.jsonl"):
        path = tmp_path / "auto" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(run, "find_batch_tokens", lambda *values, **named: pytest.fail("searched again"))
    again = train(recipe(text, data=auto), tmp_path / "auto")
    assert {**again, "seconds_of_last_part": 0} == {**result, "seconds_of_last_part": 0}
    assert (tmp_path / "auto" / "metrics.jsonl").read_bytes() == (tmp_path / "given" / "metrics.jsonl").read_bytes()


def test_batches_loaded_ahead_change_nothing(text: Path, tmp_path: Path) -> None:
    train(recipe(text), tmp_path / "0")
    ahead = recipe(text).data.model_copy(update={"workers": 2})
    train(recipe(text, data=ahead), tmp_path / "2")
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tokenizers": Tokenizers(source=TokenizerConfig("bpe", 5_000))}, "tokenizers.source.vocab_size is 5000"),
        ({"data": "test"}, "no such file"),
        ({"data": "train"}, "no such file"),
    ],
)
def test_a_mistake_before_the_first_step_leaves_the_folder_free(
    text: Path, tmp_path: Path, change: dict[str, Any], error: str
) -> None:
    listener = Listener()
    if "data" in change:
        gone = DataSpec({"source": "gone.en", "target": "gone.de"})
        change = {"data": recipe(text).data.model_copy(update={change["data"]: gone})}
    with pytest.raises(RegardError, match=error):
        train(recipe(text, **change), tmp_path / "run", watcher=listener)
    assert bool(listener.lines) == ("tokenizers" in change), "a file that is missing is told before anything begins"
    assert not (tmp_path / "run").exists()
    assert train(recipe(text), tmp_path / "run")["steps"] == 6


@pytest.mark.parametrize("name", ["target.tokens", "source.offsets"])
def test_a_corpus_with_another_byte_is_not_trained_on(text: Path, tmp_path: Path, name: str) -> None:
    result = train(recipe(text), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    folder = tmp_path / "run" / "data" / "train"
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        train(recipe(text), tmp_path / "run")
    assert str(refused.value) == (
        f"{folder / name}: the content is not what was written; prepare the corpus again: delete {folder} and run the"
        " same command"
    )
    shutil.rmtree(folder)
    assert train(recipe(text), tmp_path / "run")["data"] == result["data"]


def test_a_mistake_on_resuming_keeps_the_run(text: Path, tmp_path: Path) -> None:
    train(recipe(text), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    before = {path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    moved = text / "test.en"
    moved.rename(text / "elsewhere")
    try:
        with pytest.raises(DataError, match=r"test\.en"):
            train(recipe(text), tmp_path / "run")
    finally:
        (text / "elsewhere").rename(moved)
    assert {path for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert train(recipe(text), tmp_path / "run")["steps"] == 6


def test_a_run_without_a_test_set(text: Path, tmp_path: Path) -> None:
    data = recipe(text).data.model_copy(update={"test": None})
    result = train(recipe(text, data=data), tmp_path / "run")
    assert result["test"] == []
    assert "names no test set" in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")


def test_the_loss_is_the_smoothed_cross_entropy_of_real_tokens(text: Path, tmp_path: Path) -> None:
    """Against torch's own over padded logits; padding counts for nothing."""
    train(recipe(text), tmp_path / "run")
    corpus = Corpus.open(tmp_path / "run" / "data" / "train")
    tokenizer = Tokenizer.load(tmp_path / "run" / "data" / "tokenizer.json")
    stream = BatchStream(corpus, TokenBudget(97, length_noise=1.0), seed=3, roles=ROLES)
    model = EncoderDecoder(len(tokenizer), len(tokenizer), TRANSFORMER).eval()
    batches = [stream.at(Position(0, index)) for index in range(5)]
    assert any(bool((batch.target_outputs == Tokenizer.PAD).any()) for batch in batches)
    for batch in batches:
        found = objective(0.1)(model, batch, torch.float32)
        hidden = model(batch.source.values, batch.source.lengths, batch.target_inputs)
        logits = model.decoder.head(hidden)
        options = {"reduction": "sum", "ignore_index": Tokenizer.PAD}
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.target_outputs.flatten(), label_smoothing=0.1, **options
        )
        torch.testing.assert_close(found.objective, expected, rtol=1e-5, atol=1e-3)
        plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_outputs.flatten(), **options)
        assert found.nll.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_result_is_what_is_kept(text: Path, tmp_path: Path) -> None:
    result = train(recipe(text), tmp_path / "run")
    assert result == json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["data"]["bad_records"] == {"train": {}, "validation": {}, "test": {}}
    assert train(recipe(text), tmp_path / "run") == result
