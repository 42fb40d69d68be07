"""One reader for every layout of transcribed sound: records of a clip and its transcript, with the place of each.

| format | what it is |
|---|---|
| jsonl | a manifest, one JSON object a line |
| tsv | a manifest, tab-separated, the first line names the columns |
| kaldi | a folder with wav.scp and text, and segments where clips are parts of recordings |
| folder | a folder of sound files: beside each a .txt of its name, or in its folder a .trans.txt with a line for each |
| features | a manifest (tsv) of the frames of an array that holds all utterances one after the other |

Columns of a manifest, under names of its own with `columns`: audio and text; begin (seconds) where the clip is a part
of the file; duration (seconds), which is compared with what the file holds; words, a list of [word, begin, end] in
seconds of the clip, where the true places are known. Of features: start, frames (rows) and text.
What cannot be used is counted with its file and line, or stops the reading; it never disappears silently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from regard.data import formats
from regard.data.clips import Clip, mapped_features
from regard.data.records import BadRecords, OnBad, Origin, Record
from regard.errors import ConfigError, DataError
from regard.inputs.sound import SoundError, sound_info

ROLES = ("source", "target")
SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")
FORMATS = ("jsonl", "tsv", "kaldi", "folder", "features")
COLUMNS = ("audio", "text", "begin", "duration", "words", "start", "frames")
# How far a manifest's duration may be from the sound's: rounding, and the frame that a lossy format adds at its end.
DURATION_SLACK_SECONDS = 0.1
DURATION_SLACK_SHARE = 0.02

Value = str | int


@dataclass(frozen=True)
class SpeechSpec:
    """Where transcribed sound is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    path: str  # a manifest, or a folder
    format: Literal["jsonl", "tsv", "kaldi", "folder", "features"] | None = None  # None: by file ending, or folder
    columns: dict[str, str] = field(default_factory=dict)  # audio, text, begin... -> the manifest's name for it
    # Of format features: the array [frames, numbers] (.npy), relative to the manifest's folder.
    features: str | None = None
    # Rows of a manifest are chosen by their other columns: those that have one of these values, and none of those.
    # "5-9" is a range of whole numbers.
    where: dict[str, list[Value]] = field(default_factory=dict)
    where_not: dict[str, list[Value]] = field(default_factory=dict)
    # Each clip is there once at each of these speeds (Ko et al. 2015: 0.9, 1.0, 1.1); for training alone.
    speeds: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in COLUMNS]
        if unknown:
            raise ConfigError(f"{self.path}: columns names {', '.join(unknown)}, known are {', '.join(COLUMNS)}")
        if not self.speeds or not all(0.25 <= speed <= 4.0 for speed in self.speeds):
            raise ConfigError(f"{self.path}: speeds is {list(self.speeds)}, expected numbers from 0.25 to 4")
        if self.format == "features" and self.features is None:
            raise ConfigError(f"{self.path}: format features needs the array, as features: mfcc.npy")
        if self.format == "features" and self.speeds != (1.0,):
            raise ConfigError(f"{self.path}: speeds changes sound, not features; use augment.speeds in their place")
        if self.format in ("kaldi", "folder") and (self.where or self.where_not):
            raise ConfigError(f"{self.path}: where chooses rows of a manifest; format {self.format} has no columns")

    def resolved(self, folder: Path) -> SpeechSpec:
        """The same with its path taken from `folder` where it is relative."""
        return replace(self, path=str(folder / self.path))

    def files(self) -> list[Path]:
        """The files that say what belongs to the data, for hashing; sound itself is hashed as frames."""
        path = Path(self.path)
        if self.form == "kaldi":
            return [path / name for name in ("wav.scp", "text", "segments") if (path / name).is_file()]
        return [] if self.form == "folder" else [path]

    @property
    def form(self) -> str:
        """The format, told from the path where it is not given. Raises: DataError where it cannot be told."""
        if self.format is not None:
            return self.format
        path = Path(self.path)
        if path.is_dir():
            return "kaldi" if (path / "wav.scp").is_file() else "folder"
        ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
        if ending in ("jsonl", "ndjson", "json"):
            return "jsonl"
        if ending in ("tsv", "tab"):
            return "tsv" if self.features is None else "features"
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; check the path (relative ones start at {Path.cwd()})")
        raise DataError(f"{path}: cannot tell the format from the ending; set format to one of {', '.join(FORMATS)}")


def read_speech(
    spec: SpeechSpec,
    *,
    on_bad: OnBad = "stop",
    report: BadRecords | None = None,
    limit: int | None = None,
) -> Iterator[Record]:
    """Streams records with the fields "source" (a `Clip.to_field`), "target" (the transcript) and, where the places of
    the words are known, "words" (JSON: [[word, begin, end], ...], seconds).

    on_bad, report, limit: as for `readers.read`. Every file's header is looked at, so that a clip that is missing,
    empty, cut off or no sound, and a duration that lies, are found here, with the manifest's line.
    Raises: ConfigError, DataError as `readers.read`.
    """
    tally = BadRecords() if report is None else report
    reject = partial(tally.add, on_bad=on_bad)
    rows = _rows(spec, reject)

    def records() -> Iterator[Record]:
        num_good = 0
        seen: dict[str, tuple[float, str]] = {}  # path -> its seconds, or why it has none
        for found, origin in rows:
            text = found.get("text")
            clip = _clip(found)
            words = _words(found.get("words"))
            reason = _unusable_text(text) or (
                "words that are no list of [word, begin, end] in source" if words is None else None
            )
            reason = reason or (clip if isinstance(clip, str) else _unusable_clip(clip, found, seen))
            if reason is not None:
                reject(reason, origin)
                continue
            assert isinstance(clip, Clip) and isinstance(text, str)
            for speed in spec.speeds:
                num_good += 1
                fields = {"source": replace(clip, speed=speed).to_field(), "target": text.strip()}
                yield Record(fields | ({"words": words} if words and speed == 1.0 else {}), origin)
                if num_good == limit:
                    return
        if not num_good:
            raise DataError(
                f"{spec.path}: no usable record ({tally.summary()}), expected at least one; check path and columns"
            )

    return records()


def _unusable_text(text: Any) -> str | None:
    if not isinstance(text, str):
        return "missing target" if text is None else f"{type(text).__name__} instead of text in target"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "undecodable target"
    return None if text.strip() else "empty target"


def _words(value: Any) -> str | None:
    """The places of words as JSON, empty where there are none; None for what is no such list."""
    if value in (None, ""):
        return ""
    try:
        listed = json.loads(value) if isinstance(value, str) else value
        placed = [(str(word), float(begin), float(end)) for word, begin, end in listed]
    except (TypeError, ValueError):
        return None
    return json.dumps(placed) if all(0 <= begin <= end < 1e9 for _, begin, end in placed) else None


def _clip(found: Mapping[str, Any]) -> Clip | str:
    """The clip that a row describes, or why it describes none."""
    numbers: dict[str, float | None] = {}
    for name in ("begin", "duration", "start", "frames"):
        value = found.get(name)
        try:
            numbers[name] = None if value in (None, "") else float(value)
        except (TypeError, ValueError):
            return f"no number as {name} of source"
    if any(value is not None and not 0.0 <= value < 1e9 for value in numbers.values()):
        return "impossible times of source"
    if not isinstance(found.get("audio"), str) or not found["audio"].strip():
        return "missing source"
    if numbers["frames"] is not None:
        return Clip(found["audio"], first_row=int(numbers["start"] or 0), num_rows=int(numbers["frames"]))
    if numbers["begin"] is not None:
        return Clip(found["audio"], begin_seconds=numbers["begin"], seconds=numbers["duration"])
    return Clip(found["audio"])


def _unusable_clip(clip: Clip, found: Mapping[str, Any], seen: dict[str, tuple[float, str]]) -> str | None:
    if clip.is_features:
        first, count = clip.first_row or 0, clip.num_rows or 0
        if not count:
            return "empty source"
        inside = first + count <= len(mapped_features(clip.path))
        return None if inside else "frames that the array does not hold in source"
    if clip.seconds == 0.0:
        return "empty source"
    if clip.path not in seen:
        seen.clear()  # rows of one recording follow each other
        try:
            seen[clip.path] = (sound_info(clip.path).seconds, "")
        except SoundError as error:
            seen[clip.path] = (0.0, error.reason)
    there, reason = seen[clip.path]
    if reason:
        return f"{reason} source"
    slack = max(DURATION_SLACK_SECONDS, DURATION_SLACK_SHARE * there)
    if clip.begin_seconds or clip.seconds is not None:
        end = clip.begin_seconds + (clip.seconds or 0.0)
        return None if end <= there + slack else "times behind the end of source"
    declared = found.get("duration")
    if declared not in (None, "") and abs(float(declared) - there) > slack:
        return "duration that is not the sound's in source"
    return None


# -- formats -----------------------------------------------------------------------------------------------------------

Row = tuple[dict[str, Any], Origin]


def _rows(spec: SpeechSpec, reject: formats.Reject) -> Iterator[Row]:
    """Rows of raw values by our names of the columns; opens and checks files now. audio: a path that can be opened."""
    form, path = spec.form, Path(spec.path)
    if form == "kaldi":
        return _kaldi(path, reject)
    if form == "folder":
        return _folder(path, reject)
    return _manifest(spec, form, path, reject)


def _manifest(spec: SpeechSpec, form: str, path: Path, reject: formats.Reject) -> Iterator[Row]:
    needed = ["text", "start", "frames"] if form == "features" else ["audio", "text"]
    optional = [] if form == "features" else ["begin", "duration", "words"]
    chosen = [*spec.where, *spec.where_not]
    names = {name: spec.columns.get(name, name) for name in needed}
    # A column that was given another meaning has not its own as well.
    optional = [name for name in optional if name in spec.columns or name not in names.values()]
    names |= {name: spec.columns.get(name, name) for name in optional}
    if form == "jsonl":
        columns = {**names, **{f"={name}": name for name in chosen}}
        rows = formats.json_lines(path, columns, reject)
    else:
        header = _header(path)
        given = {name: column for name, column in names.items() if column in header or name in needed}
        columns = {**given, **{f"={name}": name for name in chosen}}
        rows = formats.table_with_header(path, formats.tsv_cells(path), columns, reject)
    accept = {name: _values(values) for name, values in spec.where.items()}
    refuse = {name: _values(values) for name, values in spec.where_not.items()}
    folder = path.parent

    def found() -> Iterator[Row]:
        for row, origins in rows:
            values = {name: str(row[f"={name}"]) for name in chosen}
            if any(values[name] not in wanted for name, wanted in accept.items()):
                continue
            if any(values[name] in unwanted for name, unwanted in refuse.items()):
                continue
            if form == "features":
                row["audio"] = str(folder / str(spec.features))
            elif isinstance(row["audio"], str) and row["audio"].strip():
                row["audio"] = str(folder / row["audio"].strip())
            yield row, origins["text"]

    return found()


def _header(path: Path) -> list[str]:
    _, cells = next(formats.tsv_cells(path), (0, []))
    return [cell.strip() for cell in cells]


def _values(values: Sequence[Value]) -> set[str]:
    """Values as texts; "5-9" is five of them."""
    wanted = set()
    for value in values:
        first, dash, last = str(value).partition("-")
        if dash and first.isdecimal() and last.isdecimal():
            wanted |= {str(number) for number in range(int(first), int(last) + 1)}
        else:
            wanted.add(str(value))
    return wanted


def _kaldi(path: Path, reject: formats.Reject) -> Iterator[Row]:
    """wav.scp: "id path" a line; text: "id words"; segments: "id recording begin end", seconds."""
    for name in ("wav.scp", "text"):
        if not (path / name).is_file():
            raise DataError(f"{path / name}: missing, expected a Kaldi folder with wav.scp and text; check the path")
    recordings = {key: rest for _, key, rest in _keyed_lines(path / "wav.scp")}
    texts = {key: (number, rest) for number, key, rest in _keyed_lines(path / "text")}
    has_segments = (path / "segments").is_file()
    clips = _keyed_lines(path / "segments") if has_segments else _keyed_lines(path / "wav.scp")

    def found() -> Iterator[Row]:
        told = set()
        for number, key, rest in clips:
            origin = Origin(str(path / ("segments" if has_segments else "wav.scp")), number)
            told.add(key)
            recording, times = key, {}
            if has_segments:
                parts = rest.split()
                if len(parts) != 3:
                    reject("a segment of other than four words", origin)
                    continue
                recording = parts[0]
                try:
                    times = {"begin": float(parts[1]), "duration": float(parts[2]) - float(parts[1])}
                except ValueError:
                    reject("no number as time of source", origin)
                    continue
            audio = recordings.get(recording)
            if audio is not None and audio.endswith("|"):
                reject("a command in place of source", origin)
                continue
            if key not in texts:
                reject("missing target", origin)
                continue
            yield {"audio": audio and str(path / audio), "text": texts[key][1], **times}, origin
        for key, (number, _) in texts.items():
            if key not in told:
                reject("missing source", Origin(str(path / "text"), number))

    return found()


def _keyed_lines(path: Path) -> list[tuple[int, str, str]]:
    """(line number, first word, rest) of each line that is not empty."""
    lines = []
    for number, cells in formats.tsv_cells(path):
        parts = "\t".join(cells).strip().split(maxsplit=1)
        if parts:
            lines.append((number, parts[0], parts[1].strip() if len(parts) > 1 else ""))
    return lines


def _folder(path: Path, reject: formats.Reject) -> Iterator[Row]:
    """Sound files in the order of their names, at any depth."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; check the path (relative ones start at {Path.cwd()})")
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in SOUND_ENDINGS and not file.name.startswith(".")
    )
    if not files:
        raise DataError(f"{path}: no sound file ({' '.join(SOUND_ENDINGS)}) in the folder; check the path")

    def found() -> Iterator[Row]:
        listed: dict[Path, dict[str, tuple[int, str, Path]]] = {}
        for file in files:
            beside = file.with_suffix(".txt")
            if beside.is_file():
                content = beside.read_bytes().decode("utf-8", "surrogateescape")
                yield {"audio": str(file), "text": " ".join(content.split())}, Origin(str(beside), 1)
                continue
            if file.parent not in listed:
                listed[file.parent] = {
                    key: (number, rest, table)
                    for table in sorted(file.parent.glob("*.trans.txt"))
                    if os.path.getsize(table)
                    for number, key, rest in _keyed_lines(table)
                }
            if file.stem not in listed[file.parent]:
                reject("missing target", Origin(str(file), 1))
                continue
            number, text, table = listed[file.parent][file.stem]
            yield {"audio": str(file), "text": text}, Origin(str(table), number)

    return found()
