"""Long records drawn as charts, and what the writers make of them."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from headless import drawn
from matplotlib.image import imread
from test_areas import pairs_of
from test_page import page_of

from regard.attention.observation import Observation, Observe
from regard.attention.records.record import AttentionRecord, Axis
from regard.attention.second_pass import second_pass
from regard.errors import ConfigError, ObservationError
from regard.lens import Drawing, draw, maps, plot, write_page
from regard.lens.areas import Area, area_of
from regard.lens.chart import chart_of, steps_of
from regard.lens.colour import STEPS, scale
from regard.lens.layout import lay_out
from regard.lens.maps import is_long
from regard.lens.palette import to_palette_png
from regard.lens.raster import to_png
from regard.lens.vector import to_svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def long() -> AttentionRecord:
    """Two layers of 1100 x 1300 positions, pooled as they were observed."""
    layers = {
        f"layers.{seed}": second_pass(pairs_of(1100, 1300, 2, seed), Observe(pooled=(96, 80), trace=True))
        for seed in range(2)
    }
    return AttentionRecord(layers)


def pixels(png: bytes) -> np.ndarray:
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)


def colours() -> np.ndarray:
    return np.array([tuple(bytes.fromhex(colour[1:])) for colour in scale()], dtype=np.uint8)


def texts_of(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(SVG + "text")]


def test_the_scale_is_logarithmic_and_nothing_is_paper() -> None:
    shares = torch.tensor([[0.0, 1e-30, 1e-4, 1.1e-2, 1.0, 2.0]])
    assert steps_of(shares, 1.0).tolist() == [[0, 1, 1, 33, STEPS, STEPS]]
    assert steps_of(shares / 100, 0.01)[0, 4] == STEPS
    assert steps_of(torch.tensor([[1.1e-4]]), 1.0) <= 2
    rising = steps_of(torch.logspace(-5, 0, 200)[None], 1.0)[0].int()
    assert (rising[1:] >= rising[:-1]).all() and rising.unique().tolist() == list(range(1, STEPS + 1))


@pytest.mark.parametrize("shape", [(5, 7), (61, 3), (1, 1)])
def test_both_formats_show_the_same_cells(shape: tuple[int, int]) -> None:
    shares = torch.rand(shape, generator=torch.Generator().manual_seed(1)) ** 4
    shares[0, 0] = 0.0
    picture = lay_out([chart_of(Area(shares, (100, 100 + shape[0]), (0, shape[1]), True), "layer & head")])
    expected = colours()[steps_of(shares, 1.0).numpy()]
    [image, bar] = picture.images
    svg = to_svg(picture)
    [embedded, _] = re.findall(r'href="data:image/png;base64,([^"]*)"', svg)
    assert (pixels(base64.b64decode(embedded)) == expected).all()
    seen = pixels(to_png(picture))
    dots = seen.shape[1] / picture.width
    for row in range(shape[0]):
        for column in range(shape[1]):
            y = image.y + (row + 0.5) / shape[0] * image.height
            x = image.x + (column + 0.5) / shape[1] * image.width
            assert (seen[int(y * dots), int(x * dots)] == expected[row, column]).all()
    assert bar.steps[:, 0].tolist() == list(range(STEPS, 0, -1))
    assert {"layer & head", "100", "1", "0.0001"} <= set(texts_of(svg))
    assert "attention weight" not in texts_of(svg), "the bar of single weights stands with these alone"


def test_a_chart_keeps_its_place_beside_others(long: AttentionRecord, dogs: AttentionRecord, tmp_path: Path) -> None:
    draw([long, dogs, long], tmp_path / "a.svg")
    tree = ElementTree.parse(tmp_path / "a.svg").getroot()
    width, height = (float(tree.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    boxes = []
    for image in tree.iter(SVG + "image"):
        x, y, w, h = (float(image.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        boxes.append((x, y, w, h))
    assert len(boxes) == 4
    for place, (x, y, w, h) in enumerate(boxes):
        for left, upper, wide, high in boxes[place + 1 :]:
            assert x + w <= left or left + wide <= x or y + h <= upper or upper + high <= y
    texts = texts_of((tmp_path / "a.svg").read_text())
    assert "attention weight" in texts and "Hunde" in texts
    assert "1.  mean of 2 layers, mean of 2 heads" in texts


def test_positions_are_round_and_where_they_belong() -> None:
    picture = chart_of(Area(torch.ones(3, 3), (1234, 98_765), (0, 100_000), False))
    rows = [text for text in picture.texts if text.anchor == "right"]
    assert [text.text for text in rows] == ["20,000", "40,000", "60,000", "80,000"]
    image = picture.images[0]
    for text in rows:
        place = (int(text.text.replace(",", "")) + 0.5 - 1234) / (98_765 - 1234)
        assert text.y - 0.34 * text.size == pytest.approx(image.y + place * image.height)
    assert [text.text for text in picture.texts if text.anchor == "center"][:3] == ["0", "20,000", "40,000"]


def test_a_palette_png_is_what_other_readers_read() -> None:
    steps = torch.randint(0, STEPS + 1, (11, 13), dtype=torch.uint8)
    png = to_palette_png(steps)
    assert struct.unpack(">II", png[16:24]) == (13, 11)
    assert (pixels(png) == colours()[steps.numpy()]).all()


def test_which_records_are_long(long: AttentionRecord, dogs: AttentionRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_long(long)
    assert not is_long(dogs)
    short = AttentionRecord({"a": second_pass(pairs_of(), Observe(trace=True))})
    assert not is_long(short)
    assert is_long(AttentionRecord({"a": Observation(pooled=torch.rand(1, 2, 5, 7))}))
    assert not is_long(AttentionRecord({"a": Observation(entropy=torch.rand(1, 2, 5))}))
    wide = Observation(rows=torch.rand(1, 1, 2, 1025), row_index=torch.tensor([7, 3]))
    assert not is_long(AttentionRecord({"a": wide})), "chosen rows are drawn as what they are"
    monkeypatch.setattr(maps, "MOST_WEIGHTS", 3 * 53 * 67 - 1)
    assert is_long(short)


def test_short_traces_are_drawn_as_rows_are(tmp_path: Path) -> None:
    pairs = pairs_of(5, 7)
    axes = [Axis("x" * length, ("x",) * length, tuple((n, n + 1) for n in range(length))) for length in (5, 7)]
    chosen = Observe(heads=(2, 0))
    traced = AttentionRecord({"a": second_pass(pairs, Observe(trace=True, heads=chosen.heads))}, *axes)
    kept = AttentionRecord({"a": second_pass(pairs, Observe(rows="all", heads=chosen.heads))}, *axes)
    for ending in (".svg", ".png", ".jsonl", ".html"):
        for name, record in (("traced", traced), ("kept", kept)):
            record.save(tmp_path / (name + ending))
        assert (tmp_path / f"traced{ending}").read_bytes() == (tmp_path / f"kept{ending}").read_bytes()
    assert json.loads((tmp_path / "traced.jsonl").read_text())["heads"] == {"a": [2, 0]}
    assert page_of(tmp_path / "traced.html").data()[0]["heads"] == {"a": [2, 0]}
    draw(traced, tmp_path / "head.svg", layer="a", head=2, unit="tokens")
    assert "a, head 2" in texts_of((tmp_path / "head.svg").read_text())
    with pytest.raises(ObservationError, match="layer `a` has heads 2, 0 alone, head 1 was asked for"):
        draw(traced, tmp_path / "head.svg", layer="a", head=1)
    assert [link[:2] for link in traced.alignment(special=True)] == [link[:2] for link in kept.alignment(special=True)]


def test_a_long_record_is_written_in_every_way(long: AttentionRecord, tmp_path: Path) -> None:
    for ending in (".svg", ".png", ".jsonl", ".html"):
        long.save(tmp_path / f"a{ending}")
        assert (tmp_path / f"a{ending}").stat().st_size < 2_000_000
    read = json.loads((tmp_path / "a.jsonl").read_text())
    assert list(read["pooled"]) == ["layers.0", "layers.1"]
    first = read["pooled"]["layers.0"]
    assert (first["queries"], first["keys"], first["heads"]) == (1100, 1300, [0, 1])
    shares = torch.tensor(first["shares"])
    assert shares.shape == (2, 96, 80)
    torch.testing.assert_close(shares[1], area_of(long, "layers.0", 1, most=256).shares, rtol=1e-3, atol=1e-30)
    page = page_of(tmp_path / "a.html")
    assert page.count("svg") == page.count("figure") == 2
    assert page.count("image") == 4
    assert page.data() == []
    assert "layers.1, mean of 2 heads" in page.texts["text"]
    [policy] = [a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv")]
    assert policy is not None and policy.endswith("; img-src data:")
    for _, attributes in page.elements:
        assert not {"src", "style", "onclick"} & set(attributes)
        assert (attributes.get("href") or "data:image/png;base64,").startswith("data:image/png;base64,")


def test_a_page_of_both_kinds(long: AttentionRecord, dogs: AttentionRecord, tmp_path: Path) -> None:
    write_page([dogs, long, dogs], tmp_path / "a.html", expected=[[], [], [(0, 0)]])
    page = page_of(tmp_path / "a.html")
    assert [record["place"] for record in page.data()] == [0, 2]
    assert [a["id"] for t, a in page.elements if t == "article"] == ["record-0", "record-1", "record-2"]
    with pytest.raises(ObservationError, match="expected pairs are pairs of words; a record this long"):
        write_page(long, tmp_path / "b.html", expected=[[(0, 0)]])
    with pytest.raises(ObservationError, match="expected pairs are pairs of words; this record is drawn without"):
        draw(long, tmp_path / "b.svg", expected=[[(0, 0)]])
    with pytest.raises(
        ObservationError, match=r"layer `x` was not observed; observed: layers\.0, layers\.1; or choose"
    ):
        draw(long, tmp_path / "b.svg", layer="x")


def test_plots_of_the_whole_of_areas_and_of_a_few_words(long: AttentionRecord, tmp_path: Path) -> None:
    drawing = long.plot("layers.1", 1)
    assert isinstance(drawing, Drawing)
    assert drawing._repr_png_() == drawing.png()
    assert "layers.1, head 1, 96 x 80 cells" in texts_of(drawing.svg())
    assert drawing.save(tmp_path / "a.png").read_bytes() == drawing.png()
    assert drawing.save(str(tmp_path / "a.svg")).read_text() == drawing.svg()
    with pytest.raises(ConfigError, match=r"a\.pdf: ending '\.pdf' is not a picture's; known: \.png, \.svg"):
        drawing.save(tmp_path / "a.pdf")
    zoomed = texts_of(long.plot("layers.1", queries=(600, 700), keys=(900, 1100), item=1).svg())
    assert "layers.1, mean of 2 heads, item 1" in zoomed and "1,000" in zoomed
    close = texts_of(plot(long, "layers.1", 0, queries=(600, 603), keys=(710, 715)).svg())
    assert {"600", "601", "602", "710", "714", "attention weight"} <= set(close)
    words = [
        Axis("", tuple(f"{side}{n}" for n in range(length)), ((0, 0),) * length)
        for side, length in (("q", 1100), ("k", 1300))
    ]
    close = texts_of(long.about(*words).plot("layers.1", 0, queries=(600, 603), keys=(710, 715)).svg())
    assert {"q600", "q602", "k710", "k714"} <= set(close)
    close = texts_of(long.about(words[1], words[0]).plot("layers.1", 0, queries=(600, 603), keys=(710, 715)).svg())
    assert {"600", "710"} <= set(close), "axes of other lengths are those of other layers"


@pytest.mark.parametrize(
    "observation",
    [
        Observation(rows=torch.zeros(1, 2, 0, 0)),
        Observation(rows=torch.zeros(1, 2, 3, 0)),
        Observation(pooled=torch.zeros(1, 2, 0, 5)),
        Observation(pooled=torch.zeros(1, 2, 0, 0)),
        second_pass(pairs_of(0, 1200), Observe(trace=True)),
    ],
    ids=repr,
)
def test_empty_maps_are_drawn_empty(observation: Observation, tmp_path: Path) -> None:
    record = AttentionRecord({"a": observation})
    for ending in (".svg", ".png", ".jsonl", ".html"):
        record.save(tmp_path / f"a{ending}")
    assert record.plot("a").png().startswith(b"\x89PNG")
    ElementTree.fromstring(record.plot("a").svg())


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (Observation(pooled=torch.full((1, 2, 5, 5), torch.nan)), "weights that are not finite; look for NaN"),
        (Observation(pooled=torch.full((1, 2, 5, 5), torch.inf)), "weights that are not finite; look for NaN"),
        (Observation(rows=torch.zeros(1, 0, 3, 5)), "holds no heads"),
        (Observation(rows=torch.zeros(0, 2, 3, 5)), "has no items, item 0 was asked for"),
        (Observation(entropy=torch.zeros(1, 2, 3)), "no "),
    ],
)
def test_what_cannot_be_drawn_is_told(observation: Observation, message: str, tmp_path: Path) -> None:
    record = AttentionRecord({"a": observation})
    for ending in (".svg", ".png", ".jsonl", ".html"):
        with pytest.raises(ObservationError, match=message):
            record.save(tmp_path / f"a{ending}")
    with pytest.raises(ObservationError, match="no"):
        record.plot("a").svg()
    assert list(tmp_path.iterdir()) == []


def test_a_plot_says_what_is_wrong(long: AttentionRecord) -> None:
    with pytest.raises(ObservationError, match=r"layer `layers\.9` was not observed"):
        long.plot("layers.9")
    with pytest.raises(ObservationError, match=r"`layers\.0` has queries 0 to 1100, not 1000 to 1101"):
        long.plot("layers.0", queries=(1000, 1101))


def test_a_browser_offers_the_heads_by_their_numbers(long: AttentionRecord, tmp_path: Path) -> None:
    chosen = AttentionRecord({"a": second_pass(pairs_of(5, 7), Observe(trace=True, heads=(2, 0)))})
    told = []
    for place, records in enumerate(([long, chosen], [long])):
        path = tmp_path / f"{place}.html"
        write_page(records, path)
        told.append(drawn(path, tmp_path))
    assert re.findall(r">(head [0-9]+)<", told[0]) == ["head 0", "head 2"]
    assert "<form" in told[0] and 'hidden=""' not in re.findall(r"<form[^>]*>", told[0])[0]
    assert told[0].count("<button") > 10, "the short record's words, beside the long one's charts"
    assert 'hidden=""' in re.findall(r"<form[^>]*>", told[1])[0], "nothing to choose where there are charts alone"
