"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.card import card, origin
from regard.tasks.generate.generator import GeneratorConfig
from regard.tasks.generate.scoring import Scores


def model_card(config: GeneratorConfig, evaluations: Sequence[Scores] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    return card(
        "Language model",
        origin("A decoder-only Transformer", config.training, "documents"),
        'regard generate PATH/TO/model "..."',
        evaluations,
        f"It writes what its training text makes likely, true or not, and sees at most {config.context} tokens of what "
        "stands before.",
    )
