"""Scores of transcripts: word and character error rates, with what they are made of and a 95 % interval.

A rate is edits (substitutions, insertions, deletions; jiwer finds the fewest) over the words, or characters, of the
references. It can exceed 100 %. Texts are compared as they are but for white space, or without letter case and
punctuation, as asked for; the signature says which.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from regard.errors import ConfigError, DataError, RegardError

Compared = Literal["exact", "plain"]


@dataclass(frozen=True)
class ErrorRate:
    """One rate over a corpus."""

    name: str  # "WER" or "CER"
    value: float  # per cent of the reference's length
    interval: tuple[float, float] | None  # 95 % by bootstrap over utterances; None where no samples were asked for
    substitutions: int
    insertions: int
    deletions: int
    reference_length: int  # words or characters
    signature: str

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions


@dataclass(frozen=True)
class Scores:
    """What `score` found."""

    rates: tuple[ErrorRate, ...]
    num_utterances: int
    num_exact: int  # transcribed without any error
    compared: Compared

    @property
    def wer(self) -> float:
        return next(rate.value for rate in self.rates if rate.name == "WER")

    def to_json(self) -> dict[str, Any]:
        """The scores as plain JSON values; rates stand under their names."""
        return {
            "compared": self.compared,
            "num_utterances": self.num_utterances,
            "num_exact": self.num_exact,
            "metrics": {
                rate.name: {
                    "value": rate.value,
                    "interval": None if rate.interval is None else list(rate.interval),
                    "substitutions": rate.substitutions,
                    "insertions": rate.insertions,
                    "deletions": rate.deletions,
                    "reference_length": rate.reference_length,
                    "signature": rate.signature,
                }
                for rate in self.rates
            },
        }

    def lines(self) -> list[str]:
        """The scores as lines to print."""
        printed = []
        for rate in self.rates:
            interval = "" if rate.interval is None else " [{:.2f}, {:.2f}]".format(*rate.interval)
            printed.append(
                f"{rate.name} {rate.value:.2f}{interval}  {rate.errors} of {rate.reference_length}: "
                f"{rate.substitutions} substituted, {rate.insertions} inserted, {rate.deletions} deleted"
                f"  {rate.signature}"
            )
        share = self.num_exact / self.num_utterances
        printed.append(f"{self.num_exact} of {self.num_utterances} utterances without an error ({share:.1%})")
        return printed


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    compared: Compared = "exact",
    bootstrap_samples: int = 1000,
    seed: int = 12345,
) -> Scores:
    """Score transcripts against one reference each.

    compared: "exact": as the texts are, but for white space; "plain": lowercased, without punctuation but apostrophes
        inside words. bootstrap_samples: how often utterances are drawn anew, with replacement, for the interval (Bisani
        and Ney 2004); 0 leaves it out. seed: of those draws.
    Edge cases: an empty hypothesis deletes its whole reference.
    Raises: DataError when the two differ in number, are empty, or a reference holds no word; ConfigError for a count
    that makes no sense; RegardError when jiwer is missing.
    """
    if len(hypotheses) != len(references) or not references:
        raise DataError(
            f"score: received {len(hypotheses)} transcripts and {len(references)} references, expected as many, one at "
            "least"
        )
    if bootstrap_samples < 0 or bootstrap_samples == 1:
        raise ConfigError(f"bootstrap_samples is {bootstrap_samples}, expected 0 for no interval, or at least 2")
    if compared not in ("exact", "plain"):
        raise ConfigError(f"compared is {compared!r}, expected exact or plain")
    ours = [_prepared(text, compared) for text in hypotheses]
    theirs = [_prepared(text, compared) for text in references]
    empty = next((place for place, text in enumerate(theirs) if not text), None)
    if empty is not None:
        raise DataError(f"score: reference {empty + 1} holds no word to compare with; leave its utterance out")
    jiwer = _jiwer()
    version = importlib.metadata.version("jiwer")
    rates = []
    for name, process in (("WER", jiwer.process_words), ("CER", jiwer.process_characters)):
        found = process(theirs, ours)
        counts = np.array(
            [
                _counts(chunks, len(reference))
                for chunks, reference in zip(found.alignments, found.references, strict=True)
            ]
        )
        totals = counts.sum(0)
        interval = _interval(counts, bootstrap_samples, seed) if bootstrap_samples else None
        signature = f"compared:{compared}|{_bootstrap_told(bootstrap_samples, seed)}jiwer:{version}"
        substitutions, insertions, deletions, length = (int(total) for total in totals)
        value = 100.0 * (substitutions + insertions + deletions) / length
        rates.append(ErrorRate(name, value, interval, substitutions, insertions, deletions, length, signature))
    num_exact = sum(one == other for one, other in zip(ours, theirs, strict=True))
    return Scores(tuple(rates), len(theirs), num_exact, compared)


def _counts(chunks: Sequence[Any], length: int) -> tuple[int, int, int, int]:
    """Substitutions, insertions and deletions of one utterance, and the length of its reference."""
    edits = {"substitute": 0, "insert": 0, "delete": 0}
    for chunk in chunks:
        if chunk.type != "equal":
            size = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            edits[chunk.type] += size
    return edits["substitute"], edits["insert"], edits["delete"], length


def _interval(counts: np.ndarray, num_samples: int, seed: int) -> tuple[float, float]:
    draws = np.random.default_rng(seed).choice(len(counts), size=(num_samples, len(counts)), replace=True)
    errors, lengths = counts[:, :3].sum(1), counts[:, 3]
    values = np.sort(100.0 * errors[draws].sum(1) / lengths[draws].sum(1))
    cut = num_samples // 40  # 2.5 % at either end
    return float(values[cut]), float(values[num_samples - cut - 1])


def _bootstrap_told(num_samples: int, seed: int) -> str:
    return f"bs:{num_samples}|seed:{seed}|" if num_samples else ""


def _prepared(text: str, compared: Compared) -> str:
    if compared == "plain":
        kept = []
        for place, letter in enumerate(text):
            inside = 0 < place < len(text) - 1 and text[place - 1].isalnum() and text[place + 1].isalnum()
            mark = unicodedata.category(letter)[0] in "PS" and not (letter in "'’" and inside)
            kept.append(" " if mark else letter)
        text = "".join(kept).lower()
    return " ".join(text.split())


def _jiwer() -> ModuleType:
    try:
        return importlib.import_module("jiwer")
    except ImportError as error:
        raise RegardError("scoring transcripts needs the package jiwer; pip install 'regard[speech]'") from error
