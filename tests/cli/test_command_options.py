"""The options that commands share: every search has all of its own, and what is given is what is looked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from regard.cli import caption, generate, options, summarize, transcribe, translate
from regard.cli.options import SEARCHING, given, load_as
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError
from regard.tasks.transcribe.search import SpeechDecoding

COMMANDS: dict[str, Callable[..., None]] = {
    "translate": translate.translate,
    "summarize": summarize.summarize,
    "caption": caption.caption,
    "transcribe": transcribe.transcribe,
    "generate": generate.generate,
}
# Fields of DecodingOptions that are options of no command, and of some commands not, with the reason.
OF_RECIPES = {
    "max_length_ratio": "it follows from the data; --max-length is for a single call",
    "max_length_offset": "it goes with max_length_ratio",
}
LEFT_OUT: dict[str, dict[str, str]] = {
    "translate": {},
    "summarize": {},
    "caption": {},
    "transcribe": {
        "num_best": "a window of sound has one transcript, which is joined with its neighbours'",
        **dict.fromkeys(("sample", "temperature", "top_k", "top_p", "seed"), "a transcript is not drawn at random"),
    },
    "generate": {"coverage_penalty": "a language model reads no source whose coverage could be counted"},
}
NAMES = {field.name for field in fields(DecodingOptions)}


def test_what_is_looked_for_is_what_a_search_has() -> None:
    assert set(SEARCHING) == NAMES - OF_RECIPES.keys()
    of_speech = {field.name for field in fields(SpeechDecoding)} - {"search"}
    assert set(transcribe.SPEECH) == of_speech <= set(inspect.signature(transcribe.transcribe).parameters)


@pytest.mark.parametrize("task", COMMANDS)
def test_every_choice_of_a_search_is_an_option_or_left_out_for_a_reason(task: str) -> None:
    parameters = set(inspect.signature(COMMANDS[task]).parameters)
    assert parameters & NAMES == NAMES - OF_RECIPES.keys() - LEFT_OUT[task].keys()


@pytest.mark.parametrize("task", COMMANDS)
def test_an_option_means_the_same_in_every_command(task: str) -> None:
    """A name is annotated by the shared one; generate alone has a --no-sample."""
    for name, parameter in inspect.signature(COMMANDS[task]).parameters.items():
        shared = "".join(part.capitalize() for part in name.split("_"))
        if hasattr(options, shared) and (task, name) != ("generate", "sample"):
            assert parameter.annotation == f"opt.{shared}", name


def test_what_was_given() -> None:
    arguments: dict[str, Any] = {"beam_size": 0, "sample": False, "top_k": None, "seed": 3, "model": Path("m")}
    assert given(arguments) == {"beam_size": 0, "seed": 3}
    assert given({**arguments, "sample": True}, ("sample", "gone")) == {"sample": True}


def test_a_model_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.tasks.load.load", lambda path, device, dtype: f"{device} {dtype}")
    assert load_as(str, Path("m"), "poem", "poetry", device="cpu", dtype="float64") == "cpu float64"
    with pytest.raises(ConfigError, match=r"^m: not a poem; train one with a recipe whose task is poetry$"):
        load_as(int, Path("m"), "poem", "poetry", device="cpu", dtype="float32")
