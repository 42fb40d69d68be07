"""`regard summarize`: documents in, summaries out, a line each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli.attention_file import check_attention_path
from regard.cli.inputs import BadInput, input_documents
from regard.errors import ConfigError, DataError

if TYPE_CHECKING:
    from regard.decoding.options import DecodingOptions
    from regard.tasks.summarize.result import Summary
    from regard.tasks.summarize.summarizer import Summarizer


def summarize(
    model: Annotated[Path, typer.Argument(help="Model directory, RUN/model.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help='Documents; "-" reads one from standard input; after "--" a text may begin with "-".'),
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text file, one document; may be given again.")] = None,
    min_length: Annotated[int | None, typer.Option(help="Fewest tokens of a summary.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a summary, its end counted.")] = None,
    num_best: Annotated[
        int | None, typer.Option(help="Summaries of each document, printed as: its number, score, summary.")
    ] = None,
    beam_size: Annotated[int | None, typer.Option(help="Live hypotheses; 1 is greedy.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Exponent; 1 ranks by the average a token.")] = None,
    no_repeat_ngram: Annotated[int | None, typer.Option(help="Forbid repeating this many tokens in a row.")] = None,
    coverage_penalty: Annotated[
        float | None, typer.Option(help="What looking again at the same words costs; 0 is nothing.")
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(help="Write where each word came from, and whether it was copied: .html .png .svg .jsonl."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each document.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
) -> None:
    """Summarise documents with a trained model. A file is one document, as is standard input.

    A document that cannot be read, or has no text, is reported and the rest is done; the exit status is then 2. A long
    one is read as far as the model was trained to read, which is said.
    """
    check_attention_path(attention)
    from regard.tasks.load import load
    from regard.tasks.summarize.summarizer import Summarizer

    summarizer = load(model, device=device, dtype=dtype)
    if not isinstance(summarizer, Summarizer):
        raise ConfigError(f"{model}: not a summarization model; train one with a recipe whose task is summarize")
    changes = {
        "min_length": min_length,
        "max_length": max_length,
        "num_best": num_best,
        "beam_size": beam_size,
        "length_penalty": length_penalty,
        "no_repeat_ngram": no_repeat_ngram,
        "coverage_penalty": coverage_penalty,
    }
    options = summarizer.config.decoding.changed(
        **{name: value for name, value in changes.items() if value is not None}
    )
    all_good = True
    shown: list[Summary] = []
    for number, found in enumerate(_summaries(summarizer, texts or [], file or [], options, attention is not None), 1):
        if isinstance(found, BadInput):
            all_good = False
            typer.echo(f"regard: error: {found.message}", err=True)
            if as_json:
                typer.echo(json.dumps({"error": found.message}, ensure_ascii=False))
            continue
        if found.is_cut:
            typer.echo(f"regard: document {number} is long: read up to character {found.num_read:,}", err=True)
        if found.attention is not None:
            shown.append(found)
        for line in _printed(found, number, as_json=as_json, num_best=options.num_best):
            typer.echo(line)
    if attention is not None:
        _write_attention(shown, attention)
    if not all_good:
        raise typer.Exit(2)


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
            yield BadInput(str(error))
            continue
        if not found.tokens:
            yield BadInput(f"document {number + 1}: holds nothing that the model reads as words; give another text")
            continue
        yield found


def _printed(found: Summary, number: int, *, as_json: bool, num_best: int) -> list[str]:
    """The lines of one document. number: its place among the documents, from 1."""
    if as_json:
        return [json.dumps(found.to_json(), ensure_ascii=False)]
    if num_best == 1:
        return [_one_line(found.text)]
    return [f"{number}\t{one.score:.4f}\t{_one_line(one.text)}" for one in (found, *found.alternatives)]


def _one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")


def _write_attention(summaries: Sequence[Summary], path: Path) -> None:
    if not summaries:
        raise ConfigError(f"--attention {path}: not written, there was no document to summarise; give one")
    from regard.tasks.summarize.showing import show

    show(summaries, path)
