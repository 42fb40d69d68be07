"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.summarize.evaluation import Evaluation
from regard.tasks.summarize.summarizer import SummarizerConfig


def model_card(config: SummarizerConfig, evaluations: Sequence[Evaluation] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    data = config.training.get("data", {})
    copying = ", which copies words of the document," if config.model.copy is not None else ""
    lines = [
        "# Summarization",
        "",
        f"A {config.model.encoder.type} encoder and a {config.model.decoder.type} decoder{copying} with "
        f"{config.training.get('parameters', 0):,} parameters, trained with regard on "
        f"{data.get('records', 0):,} documents and their summaries (prepared corpus sha256 "
        f"`{data.get('train', 'unknown')}`).",
        "",
        "## Use",
        "",
        "```",
        "regard summarize PATH/TO/model --file article.txt",
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
        f"It knows the kind of text it was trained on, and reads the first {config.longest_source} tokens of a "
        "document. What it writes may be wrong: `--attention` shows which words were copied, and from where. The "
        "complete recipe stands in `config.json` under `training`.",
        "",
    ]
    return "\n".join(lines)
