"""Transcripts as subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regard.tasks.transcribe.result import Word


def srt(parts: Sequence[Word], first_number: int = 1) -> str:
    """SubRip: numbered parts, a comma before the milliseconds."""
    blocks = [
        f"{number}\n{_clock(part.begin, ',')} --> {_clock(part.end, ',')}\n{_line(part.text)}\n"
        for number, part in enumerate(parts, first_number)
    ]
    return "\n".join(blocks)


def vtt(parts: Iterable[Word], *, note: str = "") -> str:
    """WebVTT (W3C). note: a comment at its head, as the name of the sound."""
    head = ["WEBVTT\n", *([f"NOTE {_line(note)}\n"] if note else [])]
    blocks = [
        f"{_clock(part.begin, '.')} --> {_clock(part.end, '.')}\n{_escaped(_line(part.text))}\n" for part in parts
    ]
    return "\n".join([*head, *blocks])


def _clock(seconds: float, point: str) -> str:
    milliseconds = max(round(seconds * 1000), 0)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _line(text: str) -> str:
    """One line that cannot end its own part: neither line breaks nor the arrow between times."""
    return " ".join(text.split()).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
