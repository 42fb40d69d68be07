from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from regard.attention.records.record import AttentionRecord
from regard.errors import ConfigError, ObservationError
from regard.lens import draw
from regard.lens.colour import STEPS, contrast, scale, step_of, text_colour
from regard.lens.layout import Panel, lay_out, shown, width_of
from regard.lens.maps import maps_of
from regard.lens.raster import to_png

SVG = "{http://www.w3.org/2000/svg}"


def texts_of(path: Path) -> list[str]:
    return [node.text or "" for node in ElementTree.parse(path).iter(SVG + "text")]


def test_svg_holds_every_word_once(dogs: AttentionRecord, tmp_path: Path) -> None:
    draw(dogs, tmp_path / "a.svg", title="Dogs & cats")
    texts = texts_of(tmp_path / "a.svg")
    for word in ["dreiundzwanzig", "Hunde", "laufen", "twenty-three", "dogs", "are", "running", "Dogs & cats"]:
        assert texts.count(word) == 1
    assert texts.count(".") == texts.count("</s>") == 2
    assert "mean of 2 layers, mean of all heads" in texts
    assert "attention weight" in texts


def test_svg_cells_tell_their_weights(dogs: AttentionRecord, tmp_path: Path) -> None:
    draw(dogs, tmp_path / "a.svg", unit="tokens", layer="last", head=1)
    maps = maps_of(dogs)
    weights = maps.layers["decoder.layers.1.cross"][1]
    told = [node.text or "" for node in ElementTree.parse(tmp_path / "a.svg").iter(SVG + "title")][1:]
    assert len(told) == weights.numel()
    assert [float(text.rpartition(": ")[2]) for text in told] == pytest.approx(weights.flatten().tolist(), abs=5.1e-5)
    assert told[0].startswith("\u2581dreiund \u2190 \u2581twenty: ")


def test_hostile_text_stays_text(hostile: AttentionRecord, foreign: AttentionRecord, tmp_path: Path) -> None:
    draw([hostile, foreign], tmp_path / "a.svg", unit="tokens", title="</svg><script>\x00")
    texts = texts_of(tmp_path / "a.svg")
    assert any("</script" in text for text in texts)
    assert any("\U00013000" in text for text in texts)  # nothing is lost to a font that lacks it
    assert not list(ElementTree.parse(tmp_path / "a.svg").iter(SVG + "script"))


def test_png_is_drawn_whatever_the_script(hostile: AttentionRecord, foreign: AttentionRecord, tmp_path: Path) -> None:
    """No warning about missing glyphs, no mathematics between dollars."""
    draw([hostile, foreign], tmp_path / "a.png", title="犬 $\\frac{$")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_png_cells_have_the_colours_of_their_weights() -> None:
    weights = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    panel = Panel("", list("abcde"), list("tuvwxyz"), [False] * 5, [False] * 7, weights)
    picture = lay_out([panel])
    image = imread(io.BytesIO(to_png(picture)))[..., :3]
    assert image.shape[0] == pytest.approx(picture.height * 160 / 72, abs=1)
    dots = image.shape[1] / picture.width
    seen = []
    for cell, weight in zip(picture.cells, weights.flatten().tolist(), strict=True):
        centre = image[int((cell.y + cell.size / 2) * dots), int((cell.x + cell.size / 2) * dots)]
        expected = scale()[step_of(weight, picture.top)]
        assert "#" + "".join(f"{round(255 * part):02x}" for part in centre.tolist()) == expected
        seen.append(centre.sum())
    assert np.corrcoef(seen, weights.flatten().numpy())[0, 1] < -0.95  # the heavier the darker


def test_nothing_process_wide_is_touched(dogs: AttentionRecord, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    with matplotlib.rc_context({"text.usetex": True, "figure.autolayout": True, "svg.fonttype": "path"}):
        draw(dogs, tmp_path / "a.png")
        draw(dogs, tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_long_sentences_stay_readable_and_labels_do_not_overlap(
    make_record: Callable[..., AttentionRecord], tmp_path: Path
) -> None:
    long = make_record(" ".join(f"word{n}" for n in range(83)), " ".join(f"Wort{n}" for n in range(79)), heads=(1,))
    draw(long, tmp_path / "a.svg")
    labels = [node for node in ElementTree.parse(tmp_path / "a.svg").iter(SVG + "text") if "Wort" in (node.text or "")]
    places = [float(node.attrib["y"]) for node in labels]
    assert len(places) == 79
    assert min(two - one for one, two in itertools.pairwise(places)) >= 1.3 * float(labels[0].attrib["font-size"])
    assert float(labels[0].attrib["font-size"]) >= 8


def test_panels_share_one_scale_and_do_not_overlap(dogs: AttentionRecord, hostile: AttentionRecord) -> None:
    small, large = torch.full((2, 3), 0.03), torch.full((5, 4), 0.62)
    panels = [
        Panel("x", ["a"] * len(w), ["b"] * w.shape[1], [False] * len(w), [False] * w.shape[1], w)
        for w in (small, large)
    ] * 4
    picture = lay_out(panels)
    assert picture.top == 0.65
    squares = [(cell.x, cell.y, cell.size) for cell in picture.cells]
    assert len(squares) == 4 * (6 + 20)
    for number, (x, y, size) in enumerate(squares):
        assert x >= 0
        assert x + size <= picture.bar[0]
        assert y + size <= picture.height
        for other_x, other_y, other in squares[number + 1 :]:
            assert abs(x - other_x) >= max(size, other) - 1e-6 or abs(y - other_y) >= max(size, other) - 1e-6


def test_expected_words_are_outlined(dogs: AttentionRecord, tmp_path: Path) -> None:
    draw(dogs, tmp_path / "a.svg", expected=[[(0, 0), (2, 3)]])
    draw(dogs, tmp_path / "b.svg")
    outlines = [
        sum(node.attrib.get("rx") == "2" for node in ElementTree.parse(tmp_path / name).iter(SVG + "rect"))
        for name in ("a.svg", "b.svg")
    ]
    assert outlines == [2, 0]


def test_mistakes_are_told(dogs: AttentionRecord, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.pdf: ending '\.pdf' is not a picture's; known: \.png, \.svg"):
        draw(dogs, tmp_path / "a.pdf")
    with pytest.raises(ObservationError, match="there is no record to draw"):
        draw([], tmp_path / "a.png")
    with pytest.raises(ObservationError, match="expected: 2 alignments for 1 records"):
        draw(dogs, tmp_path / "a.svg", expected=[[], []])
    with pytest.raises(
        ObservationError, match=r"pairs \[\(4, 0\)\] of \(target, source\), but there are 4 target words"
    ):
        draw(dogs, tmp_path / "a.svg", expected=[[(3, 4), (4, 0)]])
    with pytest.raises(ObservationError, match="draw: unit 'letters' is not known"):
        draw(dogs, tmp_path / "a.svg", unit="letters")  # type: ignore[arg-type]
    with pytest.raises(ObservationError, match="expected pairs are pairs of words"):
        draw(dogs, tmp_path / "a.svg", unit="tokens", expected=[[(0, 0)]])
    assert list(tmp_path.iterdir()) == []


def test_a_picture_too_large_for_png_is_refused() -> None:
    panel = Panel("", ["a"], ["b"], [False], [False], torch.ones(1, 1))
    picture = lay_out([panel])
    with pytest.raises(ConfigError, match=r"of 600 x .* inches is too large for \.png; draw fewer records"):
        to_png(type(picture)(72 * 600, 72, 1.0, picture.bar))


def test_labels_are_one_line_and_short() -> None:
    assert shown("a\nb\x07") == "a\u23ceb\ufffd"
    assert shown("  ") == "\u2423\u2423"
    assert shown("") == "\u2423"
    assert len(shown("x" * 99)) == 28
    assert shown("\ud800") == "\ufffd"
    assert width_of("犬", 10) == 10 > width_of("i", 10)


def test_estimated_widths_are_not_below_the_real_ones() -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    for word in ("Vertragsunterzeichnung", "committee", "mummy", "WWW", "0.4567", "ÄÖÜß", "русский", "f(x)=[1]"):
        real = TextPath((0, 0), word, size=10, prop=FontProperties(family=["DejaVu Sans"])).get_extents().width
        assert 0.95 * real <= width_of(word, 10) <= 1.45 * real, word


@pytest.mark.parametrize("dark", [False, True])
def test_the_colour_scale_is_even_and_readable(dark: bool) -> None:
    colours = scale(dark=dark)
    assert len(set(colours)) == STEPS + 1
    luminance = [contrast(colour, "#000000") for colour in colours]
    assert luminance == sorted(luminance, reverse=not dark)
    assert all(contrast(text_colour(colour), colour) >= 4.5 for colour in colours)
    # The cube root of the luminance is nearly lightness: its steps are equal within rounding to 8 bits.
    steps = np.abs(np.diff(np.cbrt([0.05 * (value - 1) for value in luminance])))
    assert steps.max() < 2.5 * steps.mean()
    assert steps[::1].reshape(8, 8).sum(1).std() < 0.15 * steps.reshape(8, 8).sum(1).mean()


def test_contrast_by_the_standards_own_examples() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert step_of(0.5, 1.0) == STEPS // 2
    assert step_of(2.0, 1.0) == STEPS
    assert step_of(0.0, 0.0) == 0
