"""`regard transcribe`: sound files in, their words out."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from regard.cli import options as opt
from regard.cli.answers import Answers
from regard.cli.attention_file import check_attention_path
from regard.cli.inputs import BadInput, check_files
from regard.cli.options import given, load_as
from regard.errors import ConfigError, DataError

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord
    from regard.tasks.transcribe.result import Transcript, Word

FORMATS = ("text", "json", "srt", "vtt")
SPEECH = ("ctc_weight", "language_model", "language_weight", "length_reward")  # options of a search for words
OF_CTC_TOO = ("beam_size", "max_length")  # options that may be given where there is no decoder
IN_MEMORY_BYTES = 1 << 24  # of standard input; what is longer waits in a temporary file


def transcribe(
    model: opt.Model,
    files: Annotated[
        list[str] | None, typer.Argument(help='Sound files (WAV, FLAC, OGG, MP3); "-" reads one from standard input.')
    ] = None,
    timestamps: Annotated[str | None, typer.Option(help="Also say when: word or segment.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="text, json, srt or vtt.")] = None,
    as_json: opt.AsJson = False,
    attention: opt.AttentionPath = None,
    beam_size: opt.BeamSize = None,
    ctc_weight: opt.CtcWeight = None,
    language_model: opt.LanguageModelPath = None,
    language_weight: opt.LanguageWeight = None,
    length_reward: opt.LengthReward = None,
    length_penalty: opt.LengthPenalty = None,
    min_length: opt.MinLength = None,
    max_length: opt.MaxLength = None,
    no_repeat_ngram: opt.NoRepeatNgram = None,
    coverage_penalty: opt.CoveragePenalty = None,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "float32",
) -> None:
    """Transcribe sound files with a trained model. A long file is heard in windows that overlap, as a stream.

    The numbers of tokens are those of one window. --json is --format json.

    A file that cannot be read is reported and the rest is done; an empty line, or {"error": ...} as JSON, keeps its
    place, and the exit status is 2.
    """
    chosen, level = _choices(form, timestamps, as_json=as_json)
    check_attention_path(attention, num_inputs=len(files or []))
    if not files:
        raise ConfigError('nothing to do: give a sound file, or "-" for one on standard input')
    check_files(files)
    from regard.tasks.transcribe.transcriber import Transcriber

    transcriber = load_as(Transcriber, model, "speech model", "transcribe", device=device, dtype=dtype)
    changes = given(locals(), (*opt.SEARCHING, *SPEECH))
    decoding = transcriber.decoding_with(**changes)
    idle = [name for name in changes if name in opt.SEARCHING and name not in OF_CTC_TOO]
    if idle and decoding.language_model is None and decoding.share_of(transcriber.model) == 1.0:
        raise ConfigError(f"decoding: {', '.join(idle)} would have no effect where CTC votes alone; drop it")
    answers = Answers(attention=attention)
    told = 0  # parts of subtitles so far
    is_first = True
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as spooled:
        found = transcriber.transcribe_each(
            _sounds(files, spooled), decoding, timestamps=level is not None, attention=attention is not None
        )
        for number, one in enumerate(found):
            name = "standard input" if files[number] == "-" else files[number]
            if isinstance(one, DataError):
                answers.bad(BadInput(str(one)), lines=_in_its_place(name, one, chosen))
                continue
            lines, told = _printed(name, one, chosen, level, told, is_first=is_first, is_only=len(files) == 1)
            is_first = False
            answers.good(lines, *one.attentions)
    answers.finish("sound in which a decoder attended to anything")


def _choices(
    form: str | None, timestamps: str | None, *, as_json: bool
) -> tuple[str, Literal["word", "segment"] | None]:
    if as_json and form not in (None, "json"):
        raise ConfigError(f"--json and --format {form} contradict each other; give one")
    chosen = "json" if as_json else form or "text"
    if chosen not in FORMATS:
        raise ConfigError(f"--format {chosen}: expected one of {', '.join(FORMATS)}")
    if timestamps not in (None, "word", "segment"):
        raise ConfigError(f"--timestamps {timestamps}: expected word or segment")
    if timestamps is None and chosen in ("srt", "vtt"):
        timestamps = "segment"
    return chosen, cast('Literal["word", "segment"] | None', timestamps)


def _sounds(files: Sequence[str], spooled: IO[bytes]) -> Iterator[Any]:
    for file in files:
        if file != "-":
            yield Path(file)
            continue
        shutil.copyfileobj(sys.stdin.buffer, spooled)
        spooled.seek(0)
        yield spooled


def _in_its_place(name: str, error: DataError, form: str) -> list[str]:
    """What is printed in the place of a file that cannot be read."""
    if form == "json":
        return [json.dumps({"source": name, "error": str(error)}, ensure_ascii=False)]
    return [""] if form == "text" else []


def _printed(
    name: str,
    found: Transcript,
    form: str,
    level: Literal["word", "segment"] | None,
    told: int,
    *,
    is_first: bool,
    is_only: bool,
) -> tuple[list[str], int]:
    """The lines of one file, and how many parts of subtitles there are so far."""
    from regard.tasks.transcribe.subtitles import srt, vtt

    if form == "json":
        return [json.dumps({**found.to_json(level), "source": name}, ensure_ascii=False)], told
    parts: Sequence[Word] = ()
    if level is not None:
        parts = found.words if level == "word" else found.segments()
    if form == "srt":
        return [srt(parts, told + 1)], told + len(parts)
    if form == "vtt":
        text = vtt(parts, note="" if is_only else name)
        return [text if is_first else text.removeprefix("WEBVTT\n\n")], told
    if level is None:
        return [" ".join(found.text.split())], told
    return [f"{part.begin:.2f}\t{part.end:.2f}\t{part.text}" for part in parts] + ([] if is_only else [""]), told


def attended(transcriber: Any, files: Sequence[str]) -> tuple[list[AttentionRecord], list[DataError]]:
    """What a speech model attended to in sound files, and what could not be read; for `regard look`."""
    records: list[AttentionRecord] = []
    errors: list[DataError] = []
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as spooled:
        for one in transcriber.transcribe_each(_sounds(files, spooled), attention=True):
            if isinstance(one, DataError):
                errors.append(one)
            else:
                records += one.attentions
    return records, errors
