"""`regard evaluate` of a language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regard.data.windows import WindowBudget
from regard.tasks.evaluation_data import evaluation_records, refuse_options
from regard.tasks.generate.generator import Generator
from regard.tasks.generate.recipe import ROLE
from regard.tasks.generate.scoring import Scores, score

WINDOWS_AT_ONCE = 16


def evaluate_directory(
    model: Generator, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
) -> tuple[Scores, tuple[str, ...]]:
    """As `regard.tasks.jobs.Evaluate`; there are no outputs and no options."""
    refuse_options(options, "generate")
    records = evaluation_records(model.config.training, data, (ROLE,))
    said(f"scoring {len(records):,} documents")
    budget = WindowBudget(model.config.context, WINDOWS_AT_ONCE)
    return score(model.model, model.tokenizer, [one.fields[ROLE] for one in records], budget), ()
