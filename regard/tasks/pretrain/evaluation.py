"""`regard evaluate` of a pre-trained encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regard.tasks.evaluation_data import evaluation_records, refuse_options
from regard.tasks.pretrain.filler import Filler
from regard.tasks.pretrain.recipe import ROLE
from regard.tasks.pretrain.scoring import Scores, score

BATCH_TOKENS = 4096


def evaluate_directory(
    model: Filler, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
) -> tuple[Scores, tuple[str, ...]]:
    """As `regard.tasks.jobs.Evaluate`; there are no outputs and no options."""
    refuse_options(options, "pretrain")
    records = evaluation_records(model.config.training, data, (ROLE,))
    said(f"filling in {len(records):,} texts")
    return score(model.model, model.tokenizer, [one.fields[ROLE] for one in records], BATCH_TOKENS), ()
