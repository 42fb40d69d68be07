"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.card import card, origin
from regard.tasks.translate.evaluation import Evaluation
from regard.tasks.translate.translator import TranslatorConfig


def model_card(config: TranslatorConfig, evaluations: Sequence[Evaluation] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    model = config.model
    return card(
        f"Translation {config.source_language} to {config.target_language}",
        origin(f"A {model.encoder.type} encoder and a {model.decoder.type} decoder", config.training, "sentence pairs"),
        'regard translate PATH/TO/model "..."',
        evaluations,
        f"It knows the language of its training data. A text longer than {config.longest_source} tokens is translated "
        "sentence by sentence.",
    )
