"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.generate.generator import GeneratorConfig
from regard.tasks.generate.scoring import Scores


def model_card(config: GeneratorConfig, evaluations: Sequence[Scores] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    data = config.training.get("data", {})
    lines = [
        "# Language model",
        "",
        f"A decoder-only Transformer with {config.training.get('parameters', 0):,} parameters, trained with regard on "
        f"{data.get('records', 0):,} documents (prepared corpus sha256 `{data.get('train', 'unknown')}`).",
        "",
        "## Use",
        "",
        "```",
        'regard generate PATH/TO/model "..."',
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
        f"It writes what its training text makes likely, true or not, and sees at most {config.context} tokens of what "
        "stands before. The complete recipe stands in `config.json` under `training`.",
        "",
    ]
    return "\n".join(lines)
