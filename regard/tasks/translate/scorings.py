"""The names of the scorings, apart from what computes them: a command line checks one before anything heavy loads."""

from __future__ import annotations

from typing import Literal, get_args

Scoring = Literal["sacrebleu", "moses-lowercase"]  # what each one is stands in regard/tasks/translate/scoring.py
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
