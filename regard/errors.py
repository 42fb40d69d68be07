"""Every exception regard raises for a user's mistake.

Each message is one line that says what was received, what was expected and the remedy. The command line prints it
after ``regard: error:`` and ends with status 2; anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RegardError(Exception):
    """A mistake that the user can mend; the message names the thing and the remedy."""


class ConfigError(RegardError):
    """A recipe or an option that cannot be used: unknown key, value out of range, conflicting choices."""


class DataError(RegardError):
    """Data that is missing, empty, unequal in length or undecodable; names file and line."""


class ModelFileError(RegardError):
    """A model directory that is missing, incomplete, damaged or of a newer format."""


class ShapeError(RegardError, ValueError):
    """Tensors that do not fit each other; lists every mismatch at once."""


class ObservationError(RegardError, ValueError):
    """A statistic that cannot be given exactly for this score, distribution or backend."""


class TrainingError(RegardError):
    """A run that cannot go on: a non-finite loss, a full disk, a changed recipe; says which checkpoint is usable."""


class Interrupted(TrainingError):
    """Training was asked to stop (Ctrl-C, a signal) and did, after a checkpoint; the same command goes on from it."""


class ToldByFirst(TrainingError):
    """An error of a run of several processes that the first of them shows; this process has nothing to add."""


class OfOneProcess(TrainingError):
    """An error of a run of several processes that this process alone knows; says which one it is."""


def suggestion(received: str, known: Iterable[str]) -> str:
    """', did you mean `x`?' when something close to `received` is known, else the empty string."""
    close = difflib.get_close_matches(received, list(known), n=1)
    return f", did you mean `{close[0]}`?" if close else ""
