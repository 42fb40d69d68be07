"""`regard generate`: a prompt in, what follows it out, as it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli.attention_file import check_attention_path, write_attention
from regard.cli.inputs import BadInput, input_lines
from regard.errors import ConfigError

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord
    from regard.decoding.options import DecodingOptions
    from regard.tasks.generate.generator import Generator


def generate(
    model: Annotated[Path, typer.Argument(help="Model directory, RUN/model.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help='Texts to go on with; "-" reads standard input, a line each; "" begins from nothing.'),
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="File of prompts, a line each; may be given again.")] = None,
    sample: Annotated[
        bool | None, typer.Option("--sample/--no-sample", help="Draw at random, or search; the recipe's unless given.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; below 1 sharpens.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that hold this mass.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling.")] = None,
    beam_size: Annotated[int | None, typer.Option(help="Live hypotheses of a search; 1 is greedy.")] = None,
    num_best: Annotated[
        int | None, typer.Option(help="Texts for each prompt, printed as: number of the prompt, score, text.")
    ] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Exponent; 1 ranks by the average a token.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens to write.")] = None,
    min_length: Annotated[int | None, typer.Option(help="Fewest tokens before the text may end.")] = None,
    no_repeat_ngram: Annotated[int | None, typer.Option(help="Forbid repeating this many tokens in a row.")] = None,
    attention: Annotated[Path | None, typer.Option(help="Write what was attended to: .html .png .svg .jsonl.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each prompt.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
) -> None:
    """Go on with prompts by a trained language model. A text is printed as it is written, behind its prompt.

    Several texts, beams, --json and --attention print when a text is whole. A prompt that is not UTF-8 is reported and
    the rest is done; the exit status is then 2.
    """
    check_attention_path(attention)
    from regard.tasks.generate.generator import Generator
    from regard.tasks.load import load

    generator = load(model, device=device, dtype=dtype)
    if not isinstance(generator, Generator):
        raise ConfigError(f"{model}: not a language model; train one with a recipe whose task is generate")
    changes = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "beam_size": beam_size,
        "num_best": num_best,
        "length_penalty": length_penalty,
        "max_length": max_length,
        "min_length": min_length,
        "no_repeat_ngram": no_repeat_ngram,
    }
    options = _options(generator, sample, {name: value for name, value in changes.items() if value is not None})
    streams = options.num_best == 1 and (options.sample or options.beam_size == 1) and not as_json and attention is None
    all_good = True
    records: list[AttentionRecord] = []
    for number, prompt in enumerate(input_lines(prompts or [], file or [])):
        if isinstance(prompt, BadInput):
            all_good = False
            typer.echo(f"regard: error: {prompt.message}", err=True)
            if as_json:
                typer.echo(json.dumps({"error": prompt.message}, ensure_ascii=False))
        elif streams:
            typer.echo(prompt, nl=False)
            for piece in generator.stream(prompt, options, number=number):
                typer.echo(piece, nl=False)
            typer.echo()
        else:
            [found] = generator.generate([prompt], options, attention=attention is not None, first_number=number)
            if found.attention is not None:
                records.append(found.attention)
            if as_json:
                typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
            elif options.num_best == 1:
                typer.echo(prompt + found.text)
            else:
                for one in (found, *found.alternatives):
                    typer.echo(f"{number + 1}\t{one.score:.4f}\t{prompt + one.text}".replace("\n", " "))
    if attention is not None:
        write_attention(records, attention, "prompt to go on with")
    if not all_good:
        raise typer.Exit(2)


def _options(generator: Generator, sample: bool | None, changes: dict[str, Any]) -> DecodingOptions:
    """The recipe's, with what was given; whoever asks for a beam does not sample, and the other way round."""
    if sample is None and changes.get("beam_size", 1) > 1:
        sample = False
    if sample is not None:
        changes["sample"] = sample
    if sample is False:  # what only a sample has goes with it, unless it was given: then it is told to have no effect
        changes = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | changes
    return generator.config.decoding.changed(**changes)
