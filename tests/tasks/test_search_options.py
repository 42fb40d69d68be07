"""How a model is asked to search, whatever its task."""

from __future__ import annotations

from typing import Any

import pytest

from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError
from regard.tasks.search_options import search_options

OWN = DecodingOptions(beam_size=4)


def test_its_own_options_unless_others_are_given() -> None:
    assert search_options(None, OWN, {}, "translate") == OWN
    assert search_options(DecodingOptions(), OWN, {"max_length": 7}, "translate") == DecodingOptions(max_length=7)
    assert search_options(None, OWN, {"sample": True}, "translate").beam_size == 1


@pytest.mark.parametrize(
    ("given", "changes", "complaint"),
    [
        ({"beam_size": 2}, {}, "translate: options is dict, expected DecodingOptions; or give fields"),
        ({}, {}, "translate: options is dict"),
        (None, {"beam_sice": 2}, "did you mean `beam_size`"),
        (None, {"beam_size": "many"}, "translate: .*beam_size"),
        (None, {"num_best": 5, "beam_size": 2}, "num_best 5 exceeds beam_size 2"),
    ],
)
def test_what_cannot_be_is_refused(given: Any, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        search_options(given, OWN, changes, "translate")
