"""What readers yield and report: records with their places, and a tally of those that could not be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from regard.errors import DataError

KEPT_ORIGINS = 5  # places remembered for each reason a record was bad
OnBad = Literal["skip", "stop"]


class Origin(NamedTuple):
    """Where a record stands."""

    file: str
    line: int  # from 1; a record of several lines is at its first; a row number for parquet and hub

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Record(NamedTuple):
    """One example: the text of each role, and its place (parallel text: that of the first role)."""

    fields: dict[str, str]
    origin: Origin


@dataclass
class BadRecords:
    """How many records could not be used, why, and where the first few of each reason stand."""

    counts: dict[str, int] = field(default_factory=dict)  # by reason
    origins: dict[str, list[Origin]] = field(default_factory=dict)  # by reason, the first KEPT_ORIGINS

    def __len__(self) -> int:
        return sum(self.counts.values())

    def add(self, reason: str, origin: Origin, *, on_bad: OnBad) -> None:
        """Counts one. Raises: DataError naming the place and the reason when `on_bad` is "stop"."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.origins.setdefault(reason, [])
        if len(kept) < KEPT_ORIGINS:
            kept.append(origin)
        if on_bad == "stop":
            raise DataError(f"{origin}: {reason}; mend the record, or skip bad records with on_bad: skip")

    def summary(self) -> str:
        """One line: each reason with its count and first places, the most frequent first."""
        if not self.counts:
            return "no bad records"
        reasons = []
        for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            places = ", ".join(str(origin) for origin in self.origins[reason])
            reasons.append(f"{reason} {count} ({places}{', ...' if count > len(self.origins[reason]) else ''})")
        return f"{len(self)} bad record{'s' if len(self) != 1 else ''}: " + "; ".join(reasons)

    def to_record(self) -> dict[str, Any]:
        """What a results file keeps: reason to its count and first places."""
        return {
            reason: {"count": count, "first": [str(origin) for origin in self.origins[reason]]}
            for reason, count in self.counts.items()
        }
