"""Every impossible option is refused, each with a line of its own."""

from __future__ import annotations

import math

import pytest
import torch

from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"beam_size": 0}, "decoding: beam_size is 0, expected at least 1; 1 is greedy search"),
        ({"num_best": 0}, "decoding: num_best is 0, expected at least 1; 1 returns the best output"),
        (
            {"beam_size": 3, "num_best": 5},
            "decoding: num_best 5 exceeds beam_size 3; raise beam_size or lower num_best",
        ),
        (
            {"sample": True, "beam_size": 5},
            "decoding: sample with beam_size 5: a sample has no beam; set beam_size to 1, num_best to the number of"
            " samples",
        ),
        (
            {"temperature": 0.7, "top_k": 5},
            "decoding: temperature 0.7, top_k 5 without sample would have no effect; set sample to true or drop it",
        ),
        (
            {"sample": True, "temperature": 0.0},
            "decoding: temperature is 0.0, expected a finite number above 0; for the likeliest drop sample",
        ),
        (
            {"sample": True, "temperature": math.nan},
            "decoding: temperature is nan, expected a finite number above 0; for the likeliest drop sample",
        ),
        (
            {"sample": True, "top_k": 0},
            "decoding: top_k is 0, expected at least 1; drop it to draw from all tokens",
        ),
        (
            {"sample": True, "top_p": 0.0},
            "decoding: top_p is 0.0, expected above 0 and at most 1; 1 draws from all tokens",
        ),
        (
            {"sample": True, "top_p": 1.1},
            "decoding: top_p is 1.1, expected above 0 and at most 1; 1 draws from all tokens",
        ),
        (
            {"length_penalty": math.inf},
            "decoding: length_penalty is inf, expected a finite number; 1 ranks by the average a token",
        ),
        ({"max_length": 0}, "decoding: max_length is 0, expected at least 1 token; raise it"),
        (
            {"max_length_ratio": -1.5},
            "decoding: max_length_ratio is -1.5, expected a finite number of at least 0; drop it to use max_length"
            " alone",
        ),
        (
            {"max_length_offset": -3},
            "decoding: max_length_offset is -3, expected at least 0; lower max_length_ratio instead",
        ),
        ({"min_length": -1}, "decoding: min_length is -1, expected at least 0; 0 allows empty outputs"),
        (
            {"min_length": 7, "max_length": 7},
            "decoding: min_length 7 leaves no room for EOS in max_length 7; raise max_length",
        ),
        ({"no_repeat_ngram": -1}, "decoding: no_repeat_ngram is -1, expected at least 0; 0 allows repetition"),
    ],
)
def test_a_fault_is_one_line(choices: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DecodingOptions(**choices).check()  # type: ignore[arg-type]
    assert str(caught.value) == line


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        DecodingOptions(beam_size=0, max_length=0, no_repeat_ngram=-2).check()
    lines = str(caught.value).splitlines()
    assert [line.split()[1] for line in lines] == ["beam_size", "max_length", "no_repeat_ngram"]


@pytest.mark.parametrize(
    "options",
    [
        DecodingOptions(),
        DecodingOptions(beam_size=5, num_best=5, length_penalty=0.6, no_repeat_ngram=3, min_length=3),
        DecodingOptions(sample=True, num_best=7, temperature=0.3, top_k=11, top_p=0.9, seed=13),
    ],
)
def test_what_can_work_is_allowed(options: DecodingOptions) -> None:
    options.check()


def test_lengths_relative_to_the_source() -> None:
    lengths = torch.tensor([0, 1, 7, 100])
    assert DecodingOptions(max_length=50).max_lengths(lengths).tolist() == [50] * 4
    relative = DecodingOptions(max_length=50, max_length_ratio=1.5, max_length_offset=10)
    assert relative.max_lengths(lengths).tolist() == [10, 11, 20, 50]
    assert DecodingOptions(max_length_ratio=0.5, max_length_offset=0).max_lengths(lengths).tolist() == [1, 1, 3, 50]


def test_changed_takes_along_what_follows() -> None:
    beam = DecodingOptions(beam_size=4)
    assert beam.changed(sample=True, top_k=3) == DecodingOptions(sample=True, top_k=3)
    assert beam.changed(num_best=8) == DecodingOptions(beam_size=8, num_best=8)
    assert beam.changed(num_best=2) == DecodingOptions(beam_size=4, num_best=2)
    assert beam.changed() == beam
    with pytest.raises(ConfigError, match=r"num_best 8 exceeds beam_size 4"):
        beam.changed(num_best=8, beam_size=4)
    with pytest.raises(ConfigError, match=r"unknown option `beam_sise`, did you mean `beam_size`\?"):
        beam.changed(beam_sise=3)


def test_more_outputs_widen_the_beam_of_options_that_sampled_before_but_not_of_samples() -> None:
    samples = DecodingOptions(sample=True, num_best=2)
    assert samples.changed(num_best=5) == DecodingOptions(sample=True, num_best=5)
    assert samples.changed(sample=False, num_best=5) == DecodingOptions(beam_size=5, num_best=5)
