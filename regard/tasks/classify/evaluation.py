"""`regard evaluate` of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regard.tasks.classify.job import check_labels, check_lengths, outputs
from regard.tasks.classify.labeller import Labeller
from regard.tasks.classify.recipe import LABEL, SECOND, SOURCE
from regard.tasks.classify.scoring import Scores, score
from regard.tasks.evaluation_data import evaluation_records, refuse_options

BATCH_TOKENS = 4096


def evaluate_directory(
    model: Labeller, data: str | None, options: Mapping[str, Any], said: Callable[[str], None]
) -> tuple[Scores, tuple[str, ...]]:
    """As `regard.tasks.jobs.Evaluate`; the outputs are labels, and there are no options."""
    refuse_options(options, "classify")
    roles = (SOURCE, SECOND, LABEL) if model.config.pairs else (SOURCE, LABEL)
    records = evaluation_records(model.config.training, data, roles)
    labels = model.config.labels
    check_labels(records, labels)
    check_lengths(records, model.tokenizer, model.config.longest)
    said(f"classifying {len(records):,} records")
    probabilities, wanted = outputs(model, records, BATCH_TOKENS)
    known = model.config.training.get("result", {}).get("test", [])
    baselines = known[0].get("baselines", {}) if data is None and known else {}
    told = tuple(labels[place] for place in probabilities.argmax(1))
    return score(probabilities, wanted, labels, baselines=baselines), told
