"""Pictures and what is said of them: tables that name files, COCO's JSON, and folders of classes, as records.

A record has two fields: "source", the path of a picture, and "target", what is said of it. All captions of one picture
are one record, a line each, so that a corpus keeps a picture once however many people described it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from regard.data.readers import DataSpec, read
from regard.data.records import BadRecords, OnBad, Origin, Record
from regard.errors import ConfigError, DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
DEFAULT_COLUMNS: Mapping[str, str | int] = {"source": "file", "target": "caption"}


@dataclass(frozen=True)
class PictureSpec:
    """Where pictures are, and what is said of them.

    path: a table (.tsv .csv .jsonl .parquet) with a row for each picture and text; COCO's captions (.json); or a folder
    with a folder of pictures for each class.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    path: str
    # Folder that the names of picture files start from. None: the table's own, and where a file is not there, `images`
    # in it.
    images: str | None = None
    columns: dict[str, str | int] | None = None  # tables: source and target to column; None: file and caption
    where: dict[str, str] = field(default_factory=dict)  # tables: column to the value that a row must have there
    # How `path` is read; None: a folder as classes, .json as COCO's captions, anything else as a table.
    format: Literal["table", "coco", "classes"] | None = None

    def resolved(self, folder: Path) -> PictureSpec:
        """The same with relative paths taken from `folder`."""
        images = None if self.images is None else str(folder / self.images)
        return replace(self, path=str(folder / self.path), images=images)

    def files(self) -> list[Path]:
        """The files that say which pictures there are, for hashing; none for a folder of classes."""
        return [] if Path(self.path).is_dir() else [Path(self.path)]

    def folders(self) -> list[Path]:
        """Where the names of picture files may start."""
        if self.images is not None:
            return [Path(self.images)]
        beside = Path(self.path).parent
        return [beside, beside / "images"]


def read_pictures(
    spec: PictureSpec,
    *,
    on_bad: OnBad = "stop",
    report: BadRecords | None = None,
    limit: int | None = None,
) -> list[Record]:
    """A record for each picture of `spec`, in the order in which they are first named.

    on_bad, report: as for `regard.data.readers.read`; a row that names a missing file is a bad record.
    limit: the first so many pictures.
    Raises: DataError for a missing or damaged table, a missing column or folder, and when no record is good.
    """
    tally = BadRecords() if report is None else report
    folders = spec.folders()
    path = Path(spec.path)
    form = spec.format or ("classes" if path.is_dir() else "coco" if path.suffix.lower() == ".json" else "table")
    if form == "classes":
        if not path.is_dir():
            raise DataError(f"{path}: no such folder, expected one with a folder for each class; check the path")
        rows = _classes(path)
        folders = [path]
    elif form == "coco":
        rows = _coco(spec, tally, on_bad)
    else:
        rows = _table(spec, tally, on_bad)
    if spec.images is not None and not folders[0].is_dir():
        raise DataError(f"{folders[0]}: no such folder of pictures; give it as images")
    texts: dict[str, list[str]] = {}
    origins: dict[str, Origin] = {}
    paths: dict[str, Path | None] = {}
    for name, text, origin in rows:
        if name not in paths:
            paths[name] = next((folder / name for folder in folders if _is_file(folder / name)), None)
        if paths[name] is None:
            tally.add("no such picture file", origin, on_bad=on_bad)
            continue
        texts.setdefault(name, []).append(" ".join(text.split()))
        origins.setdefault(name, origin)
    records = [
        Record({"source": str(paths[name]), "target": "\n".join(found)}, origins[name]) for name, found in texts.items()
    ]
    if not records:
        raise DataError(f"{spec.path}: no usable picture ({tally.summary()}), expected one or more; check the data")
    return records if limit is None else records[:limit]


Found = tuple[str, str, Origin]  # name of a picture file, a text, and where it stands


def _table(spec: PictureSpec, tally: BadRecords, on_bad: OnBad) -> Iterator[Found]:
    columns = {**(spec.columns or DEFAULT_COLUMNS)}
    if set(columns) != set(DEFAULT_COLUMNS):
        raise ConfigError(f"{spec.path}: columns names {', '.join(columns) or 'nothing'}, expected source and target")
    wanted = {f"where {column}": column for column in spec.where}
    table = DataSpec(spec.path, columns={**columns, **wanted})
    for record in read(table, ("source", "target", *wanted), on_bad=on_bad, report=tally):
        if all(record.fields[role] == spec.where[column] for role, column in wanted.items()):
            yield record.fields["source"], record.fields["target"], record.origin


def _coco(spec: PictureSpec, tally: BadRecords, on_bad: OnBad) -> Iterator[Found]:
    """Captions as MS COCO keeps them: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""
    if spec.columns or spec.where:
        raise ConfigError(f"{spec.path}: COCO's JSON has no columns; leave out columns and where")
    path = Path(spec.path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        annotations = list(content["annotations"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not captions as COCO keeps them ({type(error).__name__}: {error})") from None
    for number, one in enumerate(annotations, 1):
        origin = Origin(str(path), number)
        text = one.get("caption") if isinstance(one, dict) else None
        if not isinstance(text, str) or not text.strip():
            tally.add("annotation without caption", origin, on_bad=on_bad)
        elif not isinstance(one.get("image_id"), int | str) or one["image_id"] not in names:
            tally.add("annotation of an image that is not listed", origin, on_bad=on_bad)
        else:
            yield names[one["image_id"]], text, origin


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _classes(folder: Path) -> Iterator[Found]:
    """A folder a class; whatever in it has a picture's ending."""
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(inner.rglob("*")):
            if path.suffix.lower() in ENDINGS:
                yield str(path.relative_to(folder)), inner.name, Origin(str(path), 1)
