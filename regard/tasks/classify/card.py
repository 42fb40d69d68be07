"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence

from regard.tasks.card import card, origin
from regard.tasks.classify.labeller import LabellerConfig
from regard.tasks.classify.picture_labeller import PictureLabellerConfig
from regard.tasks.classify.scoring import Scores


def model_card(config: LabellerConfig, evaluations: Sequence[Scores] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    return card(
        _title("pairs of texts" if config.pairs else "texts", config.labels),
        _origin(config, "records"),
        'regard classify PATH/TO/model "..."',
        evaluations,
        "It tells one of these labels of any text, also of one that has none of them.",
    )


def picture_card(config: PictureLabellerConfig, evaluations: Sequence[Scores] | None) -> str:
    """The same of a classifier of pictures."""
    size = config.picture
    return card(
        _title("pictures", config.labels),
        _origin(config, "pictures"),
        "regard classify PATH/TO/model photo.png",
        evaluations,
        f"It knows pictures like those of its training data, brought to {size.height} x {size.width} pixels (fit: "
        f"{size.fit}).",
    )


def _title(what: str, labels: Sequence[str]) -> str:
    return f"Classifier of {what}: {', '.join(labels[:12])}{', ...' if len(labels) > 12 else ''}"


def _origin(config: LabellerConfig | PictureLabellerConfig, records: str) -> str:
    model = config.model
    return origin(f"A {model.encoder.type} encoder pooled by {model.pooling.kind}", config.training, records)
