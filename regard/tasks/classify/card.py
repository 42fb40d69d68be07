"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.classify.labeller import LabellerConfig
from regard.tasks.classify.scoring import Scores


def model_card(config: LabellerConfig, evaluations: Sequence[Scores] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    data = config.training.get("data", {})
    what = "pairs of texts" if config.pairs else "texts"
    lines = [
        f"# Classifier of {what}: {', '.join(config.labels[:12])}{', ...' if len(config.labels) > 12 else ''}",
        "",
        f"A {config.model.encoder.type} encoder pooled by {config.model.pooling.kind} with "
        f"{config.training.get('parameters', 0):,} parameters, trained with regard on {data.get('records', 0):,} "
        f"records (prepared corpus sha256 `{data.get('train', 'unknown')}`).",
        "",
        "## Use",
        "",
        "```",
        'regard classify PATH/TO/model "..."',
        "```",
        "",
        "## Scores",
        "",
    ]
    if evaluations is None:
        lines.append("Still in training: these are the weights of the best validation so far.")
    elif not evaluations:
        lines.append("The recipe names no test set.")
    for evaluation in evaluations or ():
        lines += [*(f"    {line}" for line in evaluation.lines()), ""]
    if not evaluations:
        lines.append("")
    lines += [
        "## Limits",
        "",
        "It tells one of these labels of any text, also of one that has none of them. The complete recipe stands in "
        "`config.json` under `training`.",
        "",
    ]
    return "\n".join(lines)
