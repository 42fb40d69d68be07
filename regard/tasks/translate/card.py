"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.translate.evaluation import Evaluation
from regard.tasks.translate.translator import TranslatorConfig


def model_card(config: TranslatorConfig, evaluations: Sequence[Evaluation] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    data = config.training.get("data", {})
    lines = [
        f"# Translation {config.source_language} to {config.target_language}",
        "",
        f"A {config.model.encoder.type} encoder and a {config.model.decoder.type} decoder with "
        f"{config.training.get('parameters', 0):,} parameters, trained with regard on "
        f"{data.get('records', 0):,} sentence pairs (prepared corpus sha256 `{data.get('train', 'unknown')}`).",
        "",
        "## Use",
        "",
        "```",
        'regard translate PATH/TO/model "..."',
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
        f"It knows the language of its training data. A text longer than {config.longest_source} tokens is translated "
        "sentence by sentence. The complete recipe stands in `config.json` under `training`.",
        "",
    ]
    return "\n".join(lines)
