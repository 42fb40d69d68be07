"""`regard.load`: what it accepts, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import regard
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, ModelFileError
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.tasks.jobs import TASKS
from regard.tasks.translate.translator import Translator, TranslatorConfig


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained translation model."""
    folder = tmp_path_factory.mktemp("run") / "model"
    tokenizer = Tokenizer.train(["a dog", "ein Hund"], TokenizerConfig("bpe", 261, min_frequency=1))
    parts = (AttentionConfig(heads=2), FeedForwardConfig(width=10))
    config = EncoderDecoderConfig(TransformerEncoderConfig(6, 1, *parts), TransformerDecoderConfig(6, 1, *parts))
    torch.manual_seed(5)
    model = EncoderDecoder(len(tokenizer), len(tokenizer), config)
    about = TranslatorConfig("en", "de", config, DecodingOptions(max_length=3), 7, {})
    Translator(model, tokenizer, tokenizer, about).save(folder)
    return folder


def test_a_model_is_loaded_by_path_alone(model_folder: Path) -> None:
    for path in (model_folder, str(model_folder)):
        model = regard.load(path)
        assert isinstance(model, Translator)
        [out] = model.translate(["a dog"])
        assert out.source == "a dog"
        assert out.attention is not None


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float64", torch.float64),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_device_and_dtype_go_by_name_or_by_torch_s_object(
    model_folder: Path, device: str | torch.device, dtype: str | torch.dtype, expected: torch.dtype
) -> None:
    model = regard.load(model_folder, device=device, dtype=dtype)
    assert {parameter.dtype for parameter in model.model.parameters()} == {expected}
    assert {parameter.device.type for parameter in model.model.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "load: device `gpu` is none that torch knows; expected cpu"),
        ("", "load: device `` is none that torch knows; expected cpu"),
        (3.5, "load: device `3.5` is none that torch knows; expected cpu"),
        ("meta", "load: device `meta` cannot be used ("),
        ("cuda:99", "load: device `cuda:99` cannot be used ("),
    ],
)
def test_a_device_that_is_not_there_is_named(model_folder: Path, device: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        regard.load(model_folder, device=device)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (
            "float23",
            "load: dtype `float23` cannot be used, did you mean `float32`? expected float32, bfloat16, float64",
        ),
        ("eight bits", "load: dtype `eight bits` cannot be used, expected float32, bfloat16, float64"),
        (torch.int64, "load: dtype `int64` cannot be used"),
    ],
)
def test_a_dtype_that_no_model_computes_in_is_named(model_folder: Path, dtype: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        regard.load(model_folder, dtype=dtype)
    assert str(error.value).startswith(message)


def test_what_is_no_path_is_told() -> None:
    with pytest.raises(ModelFileError) as error:
        regard.load(None)  # type: ignore[arg-type]
    assert str(error.value) == "load: None is no path; give the `model` folder inside a run directory"


def test_a_model_of_another_job_is_refused(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("config_sha256", None)  # as somebody would who changed the file on purpose
    path.write_text(json.dumps({**config, "task": "sing"}), encoding="utf-8")
    with pytest.raises(ModelFileError) as error:
        regard.load(tmp_path)
    assert (
        str(error.value)
        == f"{path}: task 'sing' is not known to this regard, which knows {', '.join(TASKS)}; upgrade regard"
    )


def test_a_run_given_in_place_of_its_model_is_answered_with_the_model(model_folder: Path) -> None:
    with pytest.raises(ModelFileError, match=f"did you mean {model_folder}"):
        regard.load(model_folder.parent)
