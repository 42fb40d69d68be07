"""Recipes that cannot work are told before any data is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tone_language

from regard.errors import ConfigError, DataError
from regard.tasks.recipe import validated
from regard.tasks.run import train
from regard.tasks.transcribe.recipe import TranscribeRecipe


def changed(folder: Path, place: str, value: Any) -> dict[str, Any]:
    recipe = tone_language.recipe(folder)
    section: Any = recipe
    *keys, last = place.split(".")
    for key in keys:
        section = section.setdefault(key, {})
    section[last] = value
    return recipe


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("front_end.num_mels", 200, "200 mel filters from 20 to 4000 Hz are narrower"),
        ("front_end.num_mells", 40, "unknown key `front_end.num_mells`, did you mean `num_mels`"),
        ("model.encoder.embedding.stride", 3, "stride is 3, expected 1, 2, 4 or 8"),
        ("model.encoder.embedding", {"positions": "none"}, "a speech model's has `type: speech`"),
        ("model.encoder.attention.heads", 5, "model.encoder: .*model_dim 24 is no multiple of heads 5"),
        ("model.decoder.attention.heads", 7, "model.decoder: .*model_dim 24 is no multiple of heads 7"),
        ("model.tie", "all", "speech shares no vocabulary with text"),
        ("model.ctc.weight", 2.0, "weight is 2.0"),
        ("model.encoder.embedding.augment", {"vocal_tract": [0.9, 1.1]}, "low_hz 20 and high_hz 8000, but front_end"),
        ("data.batch.batch_tokens", 100, "batch_tokens is 100, expected 400 or more"),
        ("decoding.ctc_weight", -1.0, "ctc_weight is -1.0"),
        ("validation.metric", "wer", "expected word_accuracy, character_accuracy or exact_match"),
        ("data.train", {"path": "x.tsv", "format": "features"}, "format features needs the array"),
        ("tokenizer.kind", "word", "expected bpe, unigram, characters or whole-words"),
    ],
)
def test_mistakes_are_told_with_their_key(tmp_path, place, value, message):
    with pytest.raises(ConfigError, match=message):
        validated(TranscribeRecipe, changed(tmp_path, place, value), "x.yaml")


def test_vocal_tracts_want_bands(tmp_path):
    recipe = changed(tmp_path, "front_end.kind", "mfcc")
    recipe["model"]["encoder"]["embedding"]["augment"] = {"vocal_tract": [0.9, 1.1], "high_hz": 4000}
    with pytest.raises(ConfigError, match=r"set front_end\.kind to cepstral-bands"):
        validated(TranscribeRecipe, recipe, "x.yaml")


def test_ctc_alone_and_other_encoders_are_recipes(tmp_path):
    source = {"type": "speech", "channels": 4}
    for encoder in (
        {"type": "pyramid", "model_dim": 8, "num_layers": 2, "embedding": {**source, "stride": 2}},
        {"type": "recurrent", "model_dim": 8, "embedding": source},
    ):
        alone = changed(tmp_path, "model", {"type": "ctc", "encoder": encoder})
        assert validated(TranscribeRecipe, alone, "x").model.encoder.type == encoder["type"]
    spelled = changed(tmp_path, "model.encoder", encoder)
    spelled["model"]["decoder"] = {"type": "attention-rnn", "model_dim": 8, "attention_dim": 8, "score": "location"}
    del spelled["model"]["ctc"]
    assert validated(TranscribeRecipe, spelled, "x").model.decoder.score == "location"


def test_bad_data_is_told_before_training(tmp_path):
    pytest.importorskip("soundfile", reason="the extra `speech` is not installed")
    for name in ("train", "validation", "test"):
        tone_language.write(tmp_path, name, 4, 1)
    (tmp_path / "wav" / "validation-001.wav").write_bytes(b"no sound")
    recipe = tone_language.recipe(tmp_path)
    recipe["data"]["on_bad"] = "stop"
    with pytest.raises(DataError, match=r"validation.jsonl:2: unreadable source; mend the record"):
        train(validated(TranscribeRecipe, recipe, "x"), tmp_path / "run")
    recipe["data"]["test"] = {"path": "none.jsonl"}
    with pytest.raises(DataError, match=r"none.jsonl: no such file"):
        train(
            validated(TranscribeRecipe, {**recipe, "data": {**recipe["data"], "on_bad": "skip"}}, "x"), tmp_path / "r"
        )
