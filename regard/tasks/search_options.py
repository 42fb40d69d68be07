"""How a trained model is asked to search: its own recipe's options, others, or single fields of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError
from regard.tasks.recipe import plain, validated


def search_options(
    given: DecodingOptions | None, own: DecodingOptions, changes: Mapping[str, Any], operation: str
) -> DecodingOptions:
    """`given`, or the model's own, with some fields changed, checked. operation: what was called, for errors.

    Raises: ConfigError for something else than options, for a field that is none or of the wrong kind, and for options
    that cannot work.
    """
    options = own if given is None else given
    if not isinstance(options, DecodingOptions):
        raise ConfigError(f"{operation}: options is {type(options).__name__}, expected DecodingOptions; or give fields")
    if changes:
        validated(DecodingOptions, {**plain(options), **changes}, operation)  # names and kinds
    return options.changed(**changes)
