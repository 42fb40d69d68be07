"""The options that commands share, what was given of them, and the model that a command asks for.

Typer reads the annotations of a command in the command's own module: there these names are imported as they are, never
for type checkers alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from regard.cli.attention_file import ENDINGS
from regard.errors import ConfigError

Loaded = TypeVar("Loaded")

Model = Annotated[Path, typer.Argument(help="Model directory, RUN/model.")]
TextFiles = Annotated[list[Path] | None, typer.Option(help="Text file, a line each; may be given again.")]

# Searching: fields of DecodingOptions by their names.
BeamSize = Annotated[int | None, typer.Option(help="Live hypotheses; 1 is greedy.")]
NumBest = Annotated[
    int | None, typer.Option(help="Outputs for each input, printed as: number of the input, score, output.")
]
Sample = Annotated[bool, typer.Option("--sample", help="Draw at random in place of searching.")]
Temperature = Annotated[float | None, typer.Option(help="Of sampling; below 1 sharpens.")]
TopK = Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that hold this mass.")]
Seed = Annotated[int | None, typer.Option(help="Of sampling.")]
LengthPenalty = Annotated[float | None, typer.Option(help="Exponent; 1 ranks by the average a token.")]
MinLength = Annotated[int | None, typer.Option(help="Fewest tokens of one output before its end.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of one output, its end counted.")]
NoRepeatNgram = Annotated[int | None, typer.Option(help="Forbid repeating this many tokens in a row.")]
CoveragePenalty = Annotated[
    float | None, typer.Option(help="What looking again at the same place costs; 0 is nothing.")
]
# What `given` looks for. max_length_ratio and max_length_offset are the recipe's: they follow from the data.
SEARCHING = (
    "beam_size", "num_best", "sample", "temperature", "top_k", "top_p", "seed", "length_penalty", "min_length",
    "max_length", "no_repeat_ngram", "coverage_penalty",
)  # fmt: skip

AttentionPath = Annotated[
    Path | None, typer.Option(help=f"Write what was attended to: {' '.join(ENDINGS)} (the last for one input).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object for each input.")]
# A search for the words of sound.
CtcWeight = Annotated[float | None, typer.Option(help="CTC's share of the votes, 0 to 1.")]
LanguageModelPath = Annotated[
    str | None,
    typer.Option("--language-model", metavar="PATH", help="Directory of a language model of the same tokens."),
]
LanguageWeight = Annotated[float | None, typer.Option(help="Of the language model's votes.")]
LengthReward = Annotated[float | None, typer.Option(help="Nats for each token.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float64.")]


def given(arguments: Mapping[str, Any], names: Iterable[str] = SEARCHING) -> dict[str, Any]:
    """Those of a command's arguments that have one of the names, and were given: no None, no switch that is off.

    options = model.options(**given(locals()))  # at the head of a command: so none that it has can be forgotten
    """
    found = {name: arguments[name] for name in names if name in arguments}
    return {name: value for name, value in found.items() if value is not None and value is not False}


def load_as(kind: type[Loaded], model: Path, what: str, task: str, *, device: str, dtype: str) -> Loaded:
    """The model in the directory `model`. what, task: what it must be, for the refusal.

    Raises: ConfigError for a model of another kind, and as `regard.load` does.
    """
    from regard.tasks.load import load

    loaded = load(model, device=device, dtype=dtype)
    if not isinstance(loaded, kind):
        raise ConfigError(f"{model}: not a {what}; train one with a recipe whose task is {task}")
    return loaded
