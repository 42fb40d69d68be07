"""`regard`: the commands, and what becomes of an error.

A user's mistake is one line on standard error and exit status 2; an interrupted run ends with 130, as shells expect.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
import warnings
from typing import Annotated, NoReturn

import typer

from regard.cli import caption, classify, demo, evaluate, generate, look, summarize, train, transcribe, translate
from regard.errors import Interrupted, OfOneProcess, RegardError
from regard.training.launch import is_first

app = typer.Typer(
    name="regard",
    help="Train, run and look inside attention models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("translate")(translate.translate)
app.command("generate")(generate.generate)
app.command("caption")(caption.caption)
app.command("classify")(classify.classify)
app.command("transcribe")(transcribe.transcribe)
app.command("summarize")(summarize.summarize)
app.command("evaluate")(evaluate.evaluate)
app.command("look")(look.look)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"regard {version('regard')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, run and look inside attention models."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; ends the process with its status."""
    # Input is read as UTF-8 whatever the locale, so results are written as UTF-8 too.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        status = run(arguments)
    except Exception:
        traceback.print_exc()
        status = 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_output()
    _leave(status)


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0, 1 (a defect of ours), 2 (a mistake), 130 (interrupted)."""
    # Libraries warn about themselves; what concerns the user is said by regard in words of its own.
    warnings.filterwarnings("ignore")
    try:
        status = app(arguments, prog_name="regard", standalone_mode=False)
    except typer.Abort:
        return 130
    except Interrupted as stopped:
        if is_first():
            typer.echo(f"regard: {stopped}", err=True)
        return 130
    except RegardError as error:
        if is_first() or isinstance(error, OfOneProcess):  # what all processes find, the first one tells
            for line in str(error).splitlines():
                typer.echo(f"regard: error: {line}", err=True)
        return 2
    except KeyboardInterrupt:
        typer.echo("regard: interrupted", err=True)
        return 130
    except (BrokenPipeError, SystemExit):  # the latter is typer's answer to a closed pipe
        _silence_output()
        return 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.filename is None and not full:
            raise
        place = f"{error.filename}: " if error.filename else ""
        remedy = "make room and run the same command again" if full else "check the path and its rights"
        typer.echo(f"regard: error: {place}{(error.strerror or str(error)).lower()}; {remedy}", err=True)
        return 2
    except Exception as error:
        usage = _usage_error(error)
        if usage is None:
            raise
        if usage:
            typer.echo(f"regard: error: {usage}", err=True)
        return 2
    return status if isinstance(status, int) else 0


def _leave(status: int) -> NoReturn:
    """Ends the process; at once where it leaves others of its run behind.

    What torch does on its way out would wait for them, or abort with a status of its own.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _silence_output() -> None:
    """Whoever read the output has seen enough; Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage_error(error: Exception) -> str | None:
    """The message of a mistake in the command's own words (unknown option, missing argument), or None.

    Empty where no command was given and the help was shown in answer.
    """
    # Typer carries its own copy of click, so the kind of error is known by what it offers, not by its class.
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    message = " ".join(describe().split())
    if not message:
        return ""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "regard")
    return f"{message.rstrip('.')}; see `{command} --help`"


if __name__ == "__main__":
    main()
