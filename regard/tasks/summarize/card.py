"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.card import card, origin
from regard.tasks.summarize.evaluation import Evaluation
from regard.tasks.summarize.summarizer import SummarizerConfig


def model_card(config: SummarizerConfig, evaluations: Sequence[Evaluation] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    model = config.model
    copying = ", which copies words of the document," if model.copy is not None else ""
    return card(
        "Summarization",
        origin(
            f"A {model.encoder.type} encoder and a {model.decoder.type} decoder{copying}",
            config.training,
            "documents and their summaries",
        ),
        "regard summarize PATH/TO/model --file article.txt",
        evaluations,
        f"It knows the kind of text it was trained on, and reads the first {config.longest_source} tokens of a "
        "document. What it writes may be wrong: `--attention` shows which words were copied, and from where.",
    )
