"""The model card: what a person who finds a model directory needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regard.models.ctc_model import CTCModelConfig

if TYPE_CHECKING:
    from regard.tasks.transcribe.evaluation import Evaluation
    from regard.tasks.transcribe.transcriber import TranscriberConfig


def model_card(config: TranscriberConfig, evaluations: Sequence[Evaluation] | None) -> str:
    """Markdown. evaluations: of the finished model, empty without a test set; None while it is in training."""
    data, model = config.training.get("data", {}), config.model
    parts = f"A {model.encoder.type} encoder"
    if isinstance(model, CTCModelConfig):
        parts += " under a CTC head"
    else:
        parts += f" and a {model.decoder.type} decoder" + (" beside a CTC head" if model.ctc is not None else "")
    lines = [
        "# Transcription",
        "",
        f"{parts} with {config.training.get('parameters', 0):,} parameters, trained with regard on "
        f"{data.get('records', 0):,} utterances (prepared corpus sha256 `{data.get('train', 'unknown')}`). It hears "
        f"{config.front_end.sample_rate} Hz; sound at any other rate is resampled.",
        "",
        "## Use",
        "",
        "```",
        "regard transcribe PATH/TO/model recording.wav",
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
        "It knows the words, voices and microphones of its training data. A sound longer than "
        f"{config.window_seconds:.1f} s is heard in windows that overlap. Times of words come from "
        f"{config.timing}. The complete recipe stands in `config.json` under `training`.",
        "",
    ]
    return "\n".join(lines)
