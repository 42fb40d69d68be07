"""`regard look`: what a model attended to, or what a file of records holds, as a page or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli import options as opt
from regard.cli.attention_file import check_attention_path, write_attention
from regard.errors import ConfigError, DataError

if TYPE_CHECKING:
    from regard.attention.records.record import AttentionRecord

OF_TEXTS = ("translate", "summarize")  # what models do with a list of texts, attention and all


def look(
    model: Annotated[Path, typer.Argument(help="Model directory, RUN/model, or a record (.safetensors).")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="What the model is to look at: texts, or paths of sounds or pictures; none of a record."),
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write: .html .png .svg .jsonl .safetensors.")] = Path("look.html"),
    device: opt.Device = "cpu",
) -> None:
    """Show what a model attends to. An input that cannot be read is reported, the rest is drawn, exit status 2."""
    check_attention_path(out, "--out")
    if model.suffix == ".safetensors":
        if inputs:
            raise ConfigError(f"{model}: is a record, which is drawn as it is; remove {inputs[0]!r}")
        import regard.lens  # noqa: F401  (teaches records to save themselves as pages and pictures)
        from regard.attention.records.record import AttentionRecord

        write_attention([AttentionRecord.load(model)], out, "record", "--out")
        typer.echo(str(out))
        return
    if not inputs:
        raise ConfigError("nothing to look at: give a text or the path of a sound or picture, as the model reads")
    from regard.tasks.load import load

    records, errors = _attended(load(model, device=device), inputs, str(model))
    for error in errors:
        typer.echo(f"regard: error: {error}", err=True)
    if records or not errors:
        write_attention(records, out, "input that anything attended to", "--out")
        typer.echo(str(out))
    if errors:
        raise typer.Exit(2)


def _attended(loaded: Any, inputs: Sequence[str], name: str) -> tuple[list[AttentionRecord], list[DataError]]:
    """The records of every input, whatever the model reads."""
    if hasattr(loaded, "transcribe_each"):
        from regard.cli.transcribe import attended

        return attended(loaded, inputs)
    for pictures in ("try_captions", "try_classify"):
        if hasattr(loaded, pictures):
            found = getattr(loaded, pictures)([Path(one) for one in inputs], attention=True)
            errors = [one for one in found if isinstance(one, DataError)]
            records = [one.attention for one in found if not isinstance(one, DataError)]
            return [record for record in records if record is not None], errors
    says = next((getattr(loaded, method) for method in OF_TEXTS if hasattr(loaded, method)), None)
    if says is not None:
        records, errors = [], []
        for text in inputs:
            try:
                [one] = says([text])
            except DataError as error:
                errors.append(error)
            else:
                records += [one.attention] if one.attention is not None else []
        return records, errors
    raise ConfigError(f"{name}: {type(loaded).__name__} shows no attention yet; use its own command's --attention")
