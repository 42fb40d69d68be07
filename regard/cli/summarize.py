"""`regard summarize`: documents in, summaries out, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli import options as opt
from regard.cli.answers import Answers
from regard.cli.attention_file import check_attention_path
from regard.cli.inputs import BadInput, input_documents
from regard.cli.options import given, load_as
from regard.errors import DataError

if TYPE_CHECKING:
    from regard.decoding.options import DecodingOptions
    from regard.tasks.summarize.result import Summary
    from regard.tasks.summarize.summarizer import Summarizer


def summarize(
    model: opt.Model,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help='Documents; "-" reads one from standard input; after "--" a text may begin with "-".'),
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text file, one document; may be given again.")] = None,
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
    """Summarise documents with a trained model. A file is one document, as is standard input.

    A document that cannot be read, or has no text, is reported and the rest is done; the exit status is then 2. A long
    one is read as far as the model was trained to read, which is said. --attention shows where each word came from, and
    whether it was copied.
    """
    check_attention_path(attention, num_inputs=len(texts or []) + len(file or []))
    from regard.tasks.summarize.showing import show
    from regard.tasks.summarize.summarizer import Summarizer

    summarizer = load_as(Summarizer, model, "summarization model", "summarize", device=device, dtype=dtype)
    options = summarizer.config.decoding.changed(**given(locals()))
    answers = Answers(attention=attention, as_json=as_json, num_best=options.num_best)
    shown: list[Summary] = []
    for number, found in enumerate(_summaries(summarizer, texts or [], file or [], options, attention is not None), 1):
        if not isinstance(found, BadInput):
            if found.is_cut:
                typer.echo(f"regard: document {number} is long: read up to character {found.num_read:,}", err=True)
            if found.attention is not None:
                shown.append(found)
        answers.add(found, number)
    answers.finish("document to summarise", write=lambda _, path: show(shown, path))


def _summaries(
    summarizer: Summarizer, texts: Sequence[str], files: Sequence[Path], options: DecodingOptions, attention: bool
) -> Iterator[Summary | BadInput]:
    """One item a document, in their order, done one by one: a document is long, and its reader waits."""
    for number, document in enumerate(input_documents(texts, files)):
        if isinstance(document, BadInput):
            yield document
            continue
        try:
            [found] = summarizer.summarize([document], options, attention=attention, first_number=number)
        except DataError as error:
            yield BadInput(str(error), is_line=False)
            continue
        if not found.tokens:
            message = f"document {number + 1}: holds nothing that the model reads as words; give another text"
            yield BadInput(message, is_line=False)
            continue
        yield found
