from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from headless import drawn

from regard.attention.records.record import AttentionRecord
from regard.errors import ObservationError
from regard.lens import write_page
from regard.lens.maps import maps_of

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, and the text of each that holds nothing but text; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def data(self) -> list[dict[str, Any]]:
        return json.loads(self.texts["script"][0])["records"]


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_carries_both_texts_and_every_weight(dogs: AttentionRecord, tmp_path: Path) -> None:
    write_page(dogs, tmp_path / "a.html", title="Dogs", notes=["one", "two"])
    page = page_of(tmp_path / "a.html")
    assert page.texts["title"] == page.texts["h1"] == ["Dogs"]
    assert {"twenty-three dogs are running .", "dreiundzwanzig Hunde laufen .", "one", "two"} <= set(page.texts["p"])
    [data] = page.data()
    for name, weights in maps_of(dogs).layers.items():
        torch.testing.assert_close(torch.tensor(data["layers"][name]), weights, rtol=0, atol=5.1e-5)
    assert data["source_tokens"] == list(dogs.key.tokens)
    assert [unit[0] for unit in data["target_units"]] == ["dreiundzwanzig", "Hunde", "laufen", ".", "</s>"]
    assert data["target_owner"] == [0, 0, 1, 2, 3, 4]


def test_hostile_text_shows_as_text(hostile: AttentionRecord, dogs: AttentionRecord, tmp_path: Path) -> None:
    title, note = "</title><script>alert(1)</script>", "</style><b onclick=x>'\"&amp;"
    write_page([hostile, dogs], tmp_path / "a.html", title=title, notes=note)
    page = page_of(tmp_path / "a.html")
    write_page([dogs, dogs], tmp_path / "b.html", notes="plain")
    assert [name for name, _ in page.elements] == [name for name, _ in page_of(tmp_path / "b.html").elements]
    assert page.texts["title"] == page.texts["h1"] == [title]
    assert {note, hostile.key.text, hostile.query.text} <= set(page.texts["p"])
    assert page.data()[0]["source"] == hostile.key.text
    assert "<" not in page.texts["script"][0]


def test_the_page_needs_nothing_from_outside(dogs: AttentionRecord, tmp_path: Path) -> None:
    write_page(dogs, tmp_path / "a.html")
    page = page_of(tmp_path / "a.html")
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "href", "style", "onclick", "onload"} & set(attributes)
    assert "url(" not in page.texts["style"][0]
    assert "@import" not in page.texts["style"][0]
    [policy] = [a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.texts[kind][-1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_everything_is_labelled(dogs: AttentionRecord, tmp_path: Path) -> None:
    write_page([dogs, dogs, dogs], tmp_path / "a.html")
    page = page_of(tmp_path / "a.html")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] for t, a in page.elements if t == "article"]
    assert len(named) == 3
    assert set(named) <= set(ids)
    assert all(a.get("aria-label") for _, a in page.elements if a.get("role") in ("group", "region"))
    assert page.count("label") == page.count("select") == 3
    assert [a.get("lang") for t, a in page.elements if t == "html"] == ["en"]


def test_expected_pairs_become_places_of_the_map(dogs: AttentionRecord, tmp_path: Path) -> None:
    write_page([dogs, dogs], tmp_path / "a.html", expected=[[(1, 1), (0, 0), (1, 1)], []])
    assert [one["expected"] for one in page_of(tmp_path / "a.html").data()] == [[[0, 0], [1, 1]], []]
    with pytest.raises(ObservationError, match=r"expected: pairs \[\(0, 5\)\].*4 target words and 5 source words"):
        write_page(dogs, tmp_path / "b.html", expected=[[(0, 5)]])
    with pytest.raises(ObservationError, match="expected: 1 alignments for 2 records"):
        write_page([dogs, dogs], tmp_path / "b.html", expected=[[]])
    with pytest.raises(ObservationError, match="there is no record to show"):
        write_page([], tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


def test_the_page_grows_with_the_weights_only(make_record: Any, tmp_path: Path) -> None:
    sizes = []
    for heads in ((1,), (4,), (7,)):
        write_page(make_record("a b c d e " * 9, "v w x y z " * 11, heads=heads), tmp_path / "a.html")
        sizes.append((tmp_path / "a.html").stat().st_size)
    more = 3 * 46 * 56
    assert sizes[1] - sizes[0] == pytest.approx(sizes[2] - sizes[1], rel=0.05)
    assert sizes[1] - sizes[0] < 8 * more


def test_any_script_and_half_a_surrogate_can_be_written(foreign: AttentionRecord, tmp_path: Path) -> None:
    write_page(foreign, tmp_path / "a.html")
    page = page_of(tmp_path / "a.html")
    assert page.data()[0]["target"] == foreign.query.text
    assert foreign.key.text in page.texts["p"]


def test_the_style_sheet_has_a_class_for_every_step(dogs: AttentionRecord, tmp_path: Path) -> None:
    write_page(dogs, tmp_path / "a.html")
    style = page_of(tmp_path / "a.html").texts["style"][0]
    assert [style.count(f".s{step}{{") for step in range(66)] == [2] * 65 + [0]
    assert style.count("{") == style.count("}")


def test_a_browser_draws_the_page(dogs: AttentionRecord, hostile: AttentionRecord, tmp_path: Path) -> None:
    """The page's own script runs under its own policy and draws the same means as Python."""
    write_page([dogs, hostile], tmp_path / "a.html", expected=[[(1, 1)], []])
    elements = drawn(tmp_path / "a.html", tmp_path, awaited="<table")
    table = re.findall(r"<table.*?</table>", elements, re.DOTALL)[0]
    told = [float(weight) for weight in re.findall(r'title="[^"]*: ([0-9.]+)(?: \(expected\))?"', table)]
    words = dogs.over_words([(0, 14), (15, 20), (21, 27), (28, 29)], [(0, 12), (13, 17), (18, 21), (22, 29), (30, 31)])
    assert told == pytest.approx(words.rows().flatten().tolist(), abs=2e-4)
    assert table.count("(expected)") == 1
    page = Page(elements)
    buttons = page.texts["button"]
    assert buttons[:6] == ["twenty-three", "dogs", "are", "running", ".", "</s>"]
    assert page.count("b") == page.count("img") == 0
    assert page.count("path") > 5
