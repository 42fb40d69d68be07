"""`regard translate`: text in, translations out, a line each."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli import options as opt
from regard.cli.answers import Answers
from regard.cli.attention_file import check_attention_path
from regard.cli.inputs import BadInput, input_lines, num_inputs
from regard.cli.options import given, load_as

if TYPE_CHECKING:
    from regard.decoding.options import DecodingOptions
    from regard.tasks.translate.result import Translation
    from regard.tasks.translate.translator import Translator

LINES_AT_ONCE = 1000  # translated before the next are read and these are printed


def translate(
    model: opt.Model,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help='Texts; "-" reads standard input, a line each; after "--" a text may begin with "-".'),
    ] = None,
    file: opt.TextFiles = None,
    beam_size: opt.BeamSize = None,
    num_best: opt.NumBest = None,
    sample: opt.Sample = False,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    seed: opt.Seed = None,
    length_penalty: opt.LengthPenalty = None,
    min_length: opt.MinLength = None,
    max_length: opt.MaxLength = None,
    no_repeat_ngram: opt.NoRepeatNgram = None,
    coverage_penalty: opt.CoveragePenalty = None,
    attention: opt.AttentionPath = None,
    as_json: opt.AsJson = False,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "float32",
) -> None:
    """Translate texts with a trained model. Texts of several sentences are translated sentence by sentence and joined.

    A line that is not UTF-8 is reported and the rest is done; an empty line, or {"error": ...} with --json, keeps its
    place, and the exit status is 2.
    """
    check_attention_path(attention, num_inputs=num_inputs(texts or [], file or []))
    from regard.tasks.translate.translator import Translator

    translator = load_as(Translator, model, "translation model", "translate", device=device, dtype=dtype)
    options = translator.config.decoding.changed(**given(locals()))
    answers = Answers(attention=attention, as_json=as_json, num_best=options.num_best)
    number = 0  # of the text, from 1
    for found in _translations(translator, texts or [], file or [], options, attention=attention is not None):
        number += not isinstance(found, BadInput) or found.is_line
        answers.add(found, number)
    answers.finish("text to translate")


def _translations(
    translator: Translator, texts: Sequence[str], files: Sequence[Path], options: DecodingOptions, *, attention: bool
) -> Iterator[Translation | BadInput]:
    """One item an input, in their order; read and translated LINES_AT_ONCE at a time."""
    lines = input_lines(texts, files)
    # Whoever types wants each answer before typing on.
    at_once = 1 if "-" in texts and sys.stdin.isatty() else LINES_AT_ONCE
    first_number = 0  # of the inputs so far: a sample depends on its input's number, whatever is translated at once
    while part := list(itertools.islice(lines, at_once)):
        # A bad line has a number, too; an empty text in its place costs nothing.
        taken = ["" if isinstance(line, BadInput) else line for line in part]
        done = translator.translate(taken, options, attention=attention, first_number=first_number)
        first_number += len(part)
        for line, found in zip(part, done, strict=True):
            yield line if isinstance(line, BadInput) else found
