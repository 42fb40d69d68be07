"""Gaze over a picture: where a word looked, as numbers, frames, strips and pages."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regard.attention.observation import Observation
from regard.attention.records.axis import Axis, PictureGrid
from regard.attention.records.record import AttentionRecord
from regard.errors import ConfigError, ModelFileError, ObservationError
from regard.lens import draw_gaze, looks_of, write_gaze_page
from regard.lens.gaze import frame
from regard.lens.page import digest
from regard.lens.palette import to_colour_png

ROWS, COLUMNS = 3, 4
WORDS = "a red <dog>"


def axis_of(text: str) -> Axis:
    """White-space pieces as tokens, and a special token at the end."""
    pieces = list(re.finditer(r"\S+", text))
    spans = [match.span() for match in pieces]
    return Axis(text, (*(match[0] for match in pieces), "</s>"), (*spans, (len(text), len(text))))


def grid(box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> PictureGrid:
    return PictureGrid(ROWS, COLUMNS, torch.full((60, 80, 3), 200, dtype=torch.uint8), box)


def record(on: PictureGrid | None = None, cells: tuple[int, ...] = (0, 11, 5, 6)) -> AttentionRecord:
    """Each token looks at one cell alone: "a" at the first, "red" at the last."""
    query = axis_of(WORDS)
    rows = torch.zeros(1, 2, len(query), ROWS * COLUMNS)
    for place in range(len(query)):
        rows[0, :, place, cells[min(place, len(cells) - 1)]] = 1.0
    key = Axis.of_picture("dogs/<one>.jpg", on or grid())
    observation = Observation(rows=rows, row_index=torch.arange(len(query)))
    return AttentionRecord({"decoder.layers.0.cross": observation}, query, key)


def test_each_word_looks_where_its_tokens_do() -> None:
    looks = looks_of(record())
    assert looks[0].word == "a" and looks[1].word == "red"
    assert looks[0].weights[0, 0] == 1.0 and (looks[0].x, looks[0].y) == pytest.approx((10.0, 10.0))
    assert looks[1].weights[2, 3] == 1.0 and (looks[1].x, looks[1].y) == pytest.approx((70.0, 50.0))
    assert all(float(look.weights.sum()) == pytest.approx(1.0) for look in looks)


def test_centres_lie_in_the_part_that_the_grid_covers() -> None:
    centres = grid((0.25, -0.5, 0.75, 1.5)).centres().view(ROWS, COLUMNS, 2)
    assert centres[0, 0].tolist() == pytest.approx([25.0, -10.0])
    assert centres[2, 3].tolist() == pytest.approx([55.0, 70.0])
    assert centres[1, 1].tolist() == pytest.approx([35.0, 30.0])


def test_a_frame_is_bright_where_the_word_looked() -> None:
    weights = torch.zeros(ROWS, COLUMNS)
    weights[0, 0] = 1.0
    pixels = frame(grid(), weights, 1.0, 80).float().mean(-1)
    assert pixels.shape == (60, 80)
    assert pixels[10, 10] > 180 and pixels[50, 70] < 120
    assert torch.equal(frame(grid(), weights * 0, 1.0, 80), torch.full((60, 80, 3), 110, dtype=torch.uint8))
    inner = frame(grid((0.5, 0.5, 1.0, 1.0)), weights, 1.0, 80).float().mean(-1)
    assert inner[10, 10] < 120 and inner[35, 45] > 150, "outside of the grid there is no heat"


def test_the_colour_png_is_what_pillow_reads() -> None:
    pixels = torch.randint(0, 256, (7, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_colour_png(pixels)))), pixels.numpy())


def test_a_strip_as_png_and_svg(tmp_path: Path) -> None:
    record().save(tmp_path / "gaze.png")
    record().save(tmp_path / "gaze.svg")
    draw_gaze([record(), record()], tmp_path / "two.png", title="Two")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "gaze.png") as one:
        assert two.height > 1.5 * one.height
    drawn = ElementTree.fromstring((tmp_path / "gaze.svg").read_text())
    space = {"svg": "http://www.w3.org/2000/svg"}
    images = drawn.findall(".//svg:image", space)
    texts = [text.text for text in drawn.findall(".//svg:text", space)]
    num_words = len(looks_of(record()))
    assert len(images) == num_words + 1, "the picture itself, and a frame a word"
    assert WORDS in texts and "red" in texts
    content = base64.b64decode(
        next(iter(images[0].attrib[key] for key in images[0].attrib if "href" in key)).split(",")[1]
    )
    assert Image.open(io.BytesIO(content)).mode == "RGB"


def test_a_page_needs_nothing_else_and_escapes_everything(tmp_path: Path) -> None:
    write_gaze_page([record()], tmp_path / "gaze.html", title="<Gaze>", notes="1 < 2")
    page = (tmp_path / "gaze.html").read_text()
    assert "&lt;Gaze&gt;" in page and "dogs/&lt;one&gt;.jpg" in page and "1 &lt; 2" in page
    assert "<one>" not in page and not re.search(r"(src|href)=\"(?!data:)", page)
    # A browser runs nothing whose hash the page's own policy does not name.
    for tag in ("style", "script"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"{tag}-src '{digest(content)}'" in page
    num_words = len(looks_of(record()))
    assert page.count('class="unit"') == num_words and page.count("<figcaption>") == num_words
    assert "default-src 'none'" in page and "sha256-" in page


def test_a_record_of_text_is_still_drawn_as_text(tmp_path: Path) -> None:
    query = axis_of("ein Hund")
    rows = torch.ones(1, 1, len(query), len(query)) / len(query)
    text = AttentionRecord({"x": Observation(rows=rows, row_index=torch.arange(len(query)))}, query, query)
    text.save(tmp_path / "text.html")
    assert 'class="ribbons"' in (tmp_path / "text.html").read_text()
    with pytest.raises(ObservationError, match="about no picture"):
        looks_of(text)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a picture's"):
        draw_gaze(record(), tmp_path / "gaze.pdf")
    for write in (draw_gaze, write_gaze_page):
        with pytest.raises(ObservationError, match="there is no record"):
            write([], tmp_path / "gaze.png")


def test_a_stored_record_keeps_its_picture(tmp_path: Path) -> None:
    path = record(grid((0.0, -0.25, 1.0, 1.25))).save(tmp_path / "gaze.safetensors")
    again = AttentionRecord.load(path)
    assert again.key is not None and again.key.picture is not None
    picture = again.key.picture
    assert (picture.rows, picture.columns, picture.box) == (ROWS, COLUMNS, (0.0, -0.25, 1.0, 1.25))
    assert torch.equal(picture.pixels, grid().pixels) and again.key.text == "dogs/<one>.jpg"
    again.save(tmp_path / "gaze.png")


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("key/grid", torch.tensor([5, 4]), "a grid of 5 x 4 for 12 positions"),
        ("key/grid", torch.tensor([-3, -4]), "a grid of -3 x -4"),
        ("key/grid", torch.tensor([3, 4, 1]), "rows_and_columns 3"),
        ("key/box", torch.tensor([0.0, 0.0, 0.0, 1.0]), "that is none"),
        ("key/box", torch.tensor([0.0, 0.0, float("nan"), 1.0]), "that is none"),
        ("key/pixels", torch.zeros(4, 4, 2, dtype=torch.uint8), "colours 2"),
        ("key/pixels", torch.zeros(0, 4, 3, dtype=torch.uint8), "no pixels"),
        ("key/box", None, "of a picture only pixels, grid"),
    ],
)
def test_a_damaged_picture_is_refused(tmp_path: Path, part: str, value: torch.Tensor | None, words: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = record().save(tmp_path / "gaze.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    if value is None:
        del tensors[part]
    else:
        tensors[part] = value
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ModelFileError, match=re.escape(words)):
        _ = AttentionRecord.load(path).key
