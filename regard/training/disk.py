"""Files and folders that appear whole or not at all, and what to say when the disk does not take them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from regard.errors import TrainingError

UNFINISHED, REPLACED, DELETED = ".unfinished", ".replaced", ".deleted"  # endings of names that nobody reads


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, usable: str = "") -> None:
    """Has `write` fill a file beside `path`, flushes it to the disk and renames it.

    usable: for the message when it cannot be written: what there is to go on from.
    Raises: TrainingError for a full disk, a quota or a read-only folder; `path` is then what it was before.
    """
    unfinished = beside(path, UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        flush_folder(path.parent)
    except BaseException as error:
        if unfinished.parent.is_dir():
            unfinished.unlink(missing_ok=True)
        cause = os_error_behind(error)
        if cause is None or not isinstance(error, Exception):
            raise
        raise not_written(path, cause, usable) from None


def beside(path: Path, ending: str) -> Path:
    """`path` with a longer name."""
    return path.with_name(path.name + ending)


def replace_folder(new: Path, path: Path) -> None:
    """Gives the finished folder `new` the name `path`; a folder that has it goes.

    A kill in between leaves the old one or the new one under a name from which `recover_folders` brings it back.
    """
    flush_folder(new)
    aside = beside(path, REPLACED)
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    os.rename(new, path)
    flush_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def delete_folder(path: Path) -> None:
    """Deletes a folder; a kill in between leaves nothing that looks like it."""
    aside = beside(path, DELETED)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def recover_folders(parent: Path) -> None:
    """Undoes what kills have left in `parent`: half-written, half-replaced and half-deleted files and folders."""
    if not parent.is_dir():
        return
    for aside in parent.glob(f"*{REPLACED}"):
        path = aside.with_name(aside.name.removesuffix(REPLACED))
        if not path.exists():
            os.rename(aside, path)
    for ending in (UNFINISHED, REPLACED, DELETED):
        for left in parent.glob(f"*{ending}"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def not_written(path: Path, error: OSError, usable: str = "") -> TrainingError:
    """The error for a file that the disk did not take. usable: what there is to go on from."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "the disk is full" if full else (error.strerror or str(error)).lower()
    remedy = "make room" if full else "make it writable"
    usable = f"{usable}; " if usable else ""
    return TrainingError(f"{path}: not written, {why}; {usable}{remedy} and run the same command again")


def flush_folder(folder: Path) -> None:
    """Brings a folder's names to the disk: a rename must survive a power cut too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def os_error_behind(error: BaseException | None) -> OSError | None:
    """The failed write behind `error`: torch's writer raises a RuntimeError of its own while it unwinds."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
