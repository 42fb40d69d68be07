"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.caption.captioner import CaptionerConfig
from regard.tasks.caption.evaluation import Evaluation


def model_card(config: CaptionerConfig, evaluations: Sequence[Evaluation] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    data, size = config.training.get("data", {}), config.picture
    lines = [
        "# Captions of pictures",
        "",
        f"A {config.model.encoder.type} encoder and a {config.model.decoder.type} decoder with "
        f"{config.training.get('parameters', 0):,} parameters, trained with regard on "
        f"{data.get('records', 0):,} pictures (prepared corpus sha256 `{data.get('train', 'unknown')}`).",
        "",
        "## Use",
        "",
        "```",
        "regard caption PATH/TO/model photo.jpg",
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
        f"It knows pictures like those of its training data, brought to {size.height} x {size.width} pixels (fit: "
        f"{size.fit}), and their language. The complete recipe stands in `config.json` under `training`.",
        "",
    ]
    return "\n".join(lines)
