"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.caption.captioner import CaptionerConfig
from regard.tasks.caption.evaluation import Evaluation
from regard.tasks.card import card, origin


def model_card(config: CaptionerConfig, evaluations: Sequence[Evaluation] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    model, size = config.model, config.picture
    return card(
        "Captions of pictures",
        origin(f"A {model.encoder.type} encoder and a {model.decoder.type} decoder", config.training, "pictures"),
        "regard caption PATH/TO/model photo.jpg",
        evaluations,
        f"It knows pictures like those of its training data, brought to {size.height} x {size.width} pixels (fit: "
        f"{size.fit}), and their language.",
    )
