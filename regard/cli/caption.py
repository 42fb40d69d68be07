"""`regard caption`: pictures in, captions out, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli import options as opt
from regard.cli.answers import Answers
from regard.cli.attention_file import check_attention_path
from regard.cli.inputs import BadInput, check_files, files_at_once
from regard.cli.options import given, load_as

if TYPE_CHECKING:
    from regard.decoding.options import DecodingOptions
    from regard.tasks.caption.captioner import Captioner
    from regard.tasks.caption.result import Caption

PICTURES_AT_ONCE = 32  # described before the next are read and these are printed


def caption(
    model: opt.Model,
    pictures: Annotated[
        list[str], typer.Argument(help='Picture files; "-" reads one file from standard input.', show_default=False)
    ],
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
    """Describe pictures (JPEG, PNG, WebP, TIFF) with a trained model.

    A file that gives no picture is reported and the rest is done; an empty line, or {"error": ...} with --json, keeps
    its place, and the exit status is 2.
    """
    check_attention_path(attention, num_inputs=len(pictures))
    check_files(pictures)
    from regard.tasks.caption.captioner import Captioner

    captioner = load_as(Captioner, model, "captioning model", "caption", device=device, dtype=dtype)
    options = captioner.options(**given(locals()))
    answers = Answers(attention=attention, as_json=as_json, num_best=options.num_best)
    for number, found in enumerate(_captions(captioner, pictures, options, attention=attention is not None), 1):
        answers.add(found, number)
    answers.finish("picture to describe")


def _captions(
    captioner: Captioner, pictures: Sequence[str], options: DecodingOptions, *, attention: bool
) -> Iterator[Caption | BadInput]:
    """One item a picture, in their order, described PICTURES_AT_ONCE at a time."""
    first_number = 0
    for part in files_at_once(pictures, PICTURES_AT_ONCE):
        for found in captioner.try_captions(part, options, attention=attention, first_number=first_number):
            yield BadInput(str(found)) if isinstance(found, Exception) else found
        first_number += len(part)
