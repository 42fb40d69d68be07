"""Tables of captions, COCO's JSON and folders of classes as records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regard.data.picture_records import PictureSpec, read_pictures
from regard.data.records import BadRecords
from regard.errors import ConfigError, DataError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with images/a.jpg, b.jpg and c.png; nothing looks into them here."""
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "c.png"):
        (tmp_path / "images" / name).write_bytes(b"x")
    return tmp_path


def table(folder: Path, *rows: str, header: str = "file\tcaption") -> PictureSpec:
    (folder / "captions.tsv").write_text("\n".join([header, *rows]) + "\n")
    return PictureSpec(str(folder / "captions.tsv"))


def found(spec: PictureSpec, **options: object) -> dict[str, list[str]]:
    records = read_pictures(spec, **options)  # type: ignore[arg-type]
    return {Path(one.fields["source"]).name: one.fields["target"].split("\n") for one in records}


def test_captions_of_one_picture_are_one_record(pictures: Path) -> None:
    spec = table(pictures, "b.jpg\ta dog", "a.jpg\ta cat", "b.jpg\tdogs  there")
    assert found(spec) == {"b.jpg": ["a dog", "dogs there"], "a.jpg": ["a cat"]}
    assert [str(one.origin) for one in read_pictures(spec)] == [f"{spec.path}:2", f"{spec.path}:3"]
    assert found(spec, limit=1) == {"b.jpg": ["a dog", "dogs there"]}


def test_missing_pictures_are_named_and_the_others_kept(pictures: Path) -> None:
    spec = table(pictures, "a.jpg\ta cat", "gone.jpg\ta dog", "b.jpg\ta bird", "gone.jpg\tno dog", "c.png\t")
    report = BadRecords()
    assert found(spec, on_bad="skip", report=report) == {"a.jpg": ["a cat"], "b.jpg": ["a bird"]}
    assert report.counts == {"no such picture file": 2, "empty target": 1}
    assert [origin.line for origin in report.origins["no such picture file"]] == [3, 5]
    with pytest.raises(DataError, match=r"captions.tsv:3: no such picture file; mend the record, or skip"):
        read_pictures(spec, on_bad="stop")


def test_a_name_that_no_file_can_have_is_missing(pictures: Path) -> None:
    spec = table(pictures, "a.jpg\ta cat", "a long caption " * 30 + "\tb.jpg")
    report = BadRecords()
    assert found(spec, on_bad="skip", report=report) == {"a.jpg": ["a cat"]}
    assert report.counts == {"no such picture file": 1}


def test_rows_can_be_chosen_by_a_column(pictures: Path) -> None:
    table(pictures, "a.jpg\ttrain\ta cat", "b.jpg\ttest\ta dog", header="file\tsplit\tcaption")
    spec = PictureSpec(str(pictures / "captions.tsv"), where={"split": "test"})
    assert found(spec) == {"b.jpg": ["a dog"]}
    other = PictureSpec(str(pictures / "captions.tsv"), columns={"source": "file", "target": "split"})
    assert found(other) == {"a.jpg": ["train"], "b.jpg": ["test"]}
    with pytest.raises(DataError, match="no usable picture"):
        read_pictures(PictureSpec(spec.path, where={"split": "other"}))
    with pytest.raises(ConfigError, match="columns names source, expected source and target"):
        read_pictures(PictureSpec(spec.path, columns={"source": "file"}))
    with pytest.raises(DataError, match=r"no column for where kind \(kind\)"):
        read_pictures(PictureSpec(spec.path, where={"kind": "x"}))


def coco(folder: Path, annotations: list[object]) -> PictureSpec:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "c.png"}, {"id": 11, "file_name": "gone.jpg"}]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return PictureSpec(str(folder / "captions.json"))


def test_coco_s_json(pictures: Path) -> None:
    spec = coco(
        pictures,
        [
            {"image_id": 9, "caption": "two\nlines"},
            {"image_id": 7, "caption": "a cat"},
            {"image_id": 9, "caption": "more"},
            {"image_id": 8, "caption": "of nothing"},
            {"image_id": 11, "caption": "of a missing file"},
            {"image_id": 7},
            {"image_id": [7], "caption": "of two"},
        ],
    )
    report = BadRecords()
    assert found(spec, on_bad="skip", report=report) == {"c.png": ["two lines", "more"], "a.jpg": ["a cat"]}
    assert set(report.counts) == {
        "annotation of an image that is not listed",
        "no such picture file",
        "annotation without caption",
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}'])
def test_json_that_is_not_coco_s(pictures: Path, content: str) -> None:
    (pictures / "captions.json").write_text(content)
    with pytest.raises(DataError, match="not captions as COCO keeps them"):
        read_pictures(PictureSpec(str(pictures / "captions.json")))


def test_a_folder_for_each_class(pictures: Path) -> None:
    for name, file in (("cat", "1.jpg"), ("dog", "2.png"), ("dog", "deep/3.JPG"), ("dog", "notes.txt")):
        path = pictures / "classes" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert found(PictureSpec(str(pictures / "classes"))) == {"1.jpg": ["cat"], "2.png": ["dog"], "3.JPG": ["dog"]}


def test_other_folders_and_what_is_not_there(pictures: Path) -> None:
    spec = table(pictures, "images/a.jpg\ta cat")
    assert found(PictureSpec(spec.path, images=str(pictures))) == {"a.jpg": ["a cat"]}
    assert found(spec) == {"a.jpg": ["a cat"]}, "names may start beside the table as well as in `images` there"
    with pytest.raises(DataError, match="no such folder of pictures"):
        read_pictures(PictureSpec(spec.path, images=str(pictures / "nowhere")))
    with pytest.raises(DataError, match="no such file"):
        read_pictures(PictureSpec(str(pictures / "none.tsv")))
    moved = PictureSpec("captions.tsv", images="pictures").resolved(pictures)
    assert (moved.path, moved.images) == (str(pictures / "captions.tsv"), str(pictures / "pictures"))
