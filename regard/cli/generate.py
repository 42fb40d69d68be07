"""`regard generate`: a prompt in, what follows it out, as it is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli import options as opt
from regard.cli.answers import Answers, ranked
from regard.cli.attention_file import check_attention_path
from regard.cli.inputs import BadInput, input_lines, num_inputs
from regard.cli.options import given, load_as

if TYPE_CHECKING:
    from regard.decoding.options import DecodingOptions
    from regard.tasks.generate.generator import Generator


def generate(
    model: opt.Model,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help='Texts to go on with; "-" reads standard input, a line each; "" begins from nothing.'),
    ] = None,
    file: opt.TextFiles = None,
    beam_size: opt.BeamSize = None,
    num_best: opt.NumBest = None,
    sample: Annotated[
        bool | None, typer.Option("--sample/--no-sample", help="Draw at random, or search; the recipe's unless given.")
    ] = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    seed: opt.Seed = None,
    length_penalty: opt.LengthPenalty = None,
    min_length: opt.MinLength = None,
    max_length: opt.MaxLength = None,
    no_repeat_ngram: opt.NoRepeatNgram = None,
    attention: opt.AttentionPath = None,
    as_json: opt.AsJson = False,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "float32",
) -> None:
    """Go on with prompts by a trained language model. A text is printed as it is written, behind its prompt.

    Several texts, beams, --json and --attention print when a text is whole. A prompt that is not UTF-8 is reported and
    the rest is done; the exit status is then 2.
    """
    check_attention_path(attention, num_inputs=num_inputs(prompts or [], file or []))
    from regard.tasks.generate.generator import Generator

    generator = load_as(Generator, model, "language model", "generate", device=device, dtype=dtype)
    options = _options(generator, sample, given(locals()))
    streams = options.num_best == 1 and (options.sample or options.beam_size == 1) and not as_json and attention is None
    answers = Answers(attention=attention, as_json=as_json)
    for number, prompt in enumerate(input_lines(prompts or [], file or [])):
        if isinstance(prompt, BadInput):
            answers.bad(replace(prompt, is_line=False))  # texts have lines of their own: there is no place to keep
        elif streams:
            typer.echo(prompt, nl=False)
            for piece in generator.stream(prompt, options, number=number):
                typer.echo(piece, nl=False)
            typer.echo()
        else:
            [found] = generator.generate([prompt], options, attention=attention is not None, first_number=number)
            if as_json or options.num_best > 1:
                lines = ranked(found, number + 1, as_json=as_json, num_best=options.num_best, before=prompt)
            else:
                lines = [prompt + found.text]
            answers.good(lines, found.attention)
    answers.finish("prompt to go on with")


def _options(generator: Generator, sample: bool | None, changes: dict[str, Any]) -> DecodingOptions:
    """The recipe's, with what was given; whoever asks for a beam does not sample, and the other way round."""
    if sample is None and changes.get("beam_size", 1) > 1:
        sample = False
    if sample is not None:
        changes["sample"] = sample
    if sample is False:  # what only a sample has goes with it, unless it was given: then it is told to have no effect
        changes = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | changes
    return generator.config.decoding.changed(**changes)
