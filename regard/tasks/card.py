"""The model card: what a person who finds a model directory needs to know, whatever the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Printable(Protocol):
    """An evaluation, as far as a card shows it."""

    def lines(self) -> list[str]: ...


def card(title: str, about: str, use: str, evaluations: Sequence[Printable] | None, limits: str) -> str:
    """Markdown.

    about: what the model is, see `origin`. use: a command. evaluations: of the finished model, empty without a test
    set; None while it is in training. limits: what it cannot be asked for.
    """
    scores: list[str] = []
    if evaluations is None:
        scores += ["Still in training: these are the weights of the best validation so far.", ""]
    elif not evaluations:
        scores += ["The recipe names no test set.", ""]
    for evaluation in evaluations or ():
        scores += [*(f"    {line}" for line in evaluation.lines()), ""]
    lines = [f"# {title}", "", about, "", "## Use", "", "```", use, "```", "", "## Scores", "", *scores]
    recipe = "The complete recipe stands in `config.json` under `training`."
    return "\n".join([*lines, "## Limits", "", f"{limits} {recipe}", ""])


def origin(model: str, training: Mapping[str, Any], records: str) -> str:
    """Where a model comes from, in a sentence.

    model: "A decoder-only Transformer". training: as its directory says it. records: what a record is, "documents".
    """
    data = training.get("data", {})
    return (
        f"{model} with {training.get('parameters', 0):,} parameters, trained with regard on {data.get('records', 0):,}"
        f" {records} (prepared corpus sha256 `{data.get('train', 'unknown')}`)."
    )
