"""The demo of summaries: its reports, its figures, what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regard.attention.observation import Observation
from regard.attention.records.record import AttentionRecord, Axis
from regard.errors import DataError
from regard.inputs.word_splitting import words
from regard.tasks.summarize import demo
from regard.tasks.summarize.demo_corpus import KINDS, DemoCorpus, Fact, Report, make_corpus
from regard.tasks.summarize.demo_facts import facts_found
from regard.tasks.summarize.result import Summary, SummaryWord


@pytest.fixture(scope="module")
def corpus() -> DemoCorpus:
    return make_corpus(3, num_train=500, num_validation=10, num_held_out=30)


def test_every_fact_stands_where_it_is_said_to(corpus: DemoCorpus) -> None:
    for report in [*corpus.train, *corpus.held_out]:
        assert report.target in report.right
        assert len(report.right) == 2
        texts = [report.source[begin:end] for begin, end in report.sentences]
        assert " ".join(texts) == report.source
        assert 4 <= len(texts) <= 6
        for fact in report.facts:
            assert report.target[slice(*fact.span)] == fact.value
            assert fact.sentences
            for place, text in enumerate(texts):
                own = {text[begin:end].lower() for begin, end in words(text)}
                if place in fact.sentences:
                    assert fact.value.lower() in own
        assert any(fact.is_name for fact in report.facts)
    assert {report.kind for report in corpus.held_out} == {kind.name for kind in KINDS}


def test_no_name_of_a_held_out_report_is_in_any_other(corpus: DemoCorpus) -> None:
    texts = [f"{report.source} {report.target}" for report in corpus.train + corpus.validation]
    seen = {word.strip(".,") for text in texts for word in text.split()}
    names = [fact.value for report in corpus.held_out for fact in report.facts if fact.is_name]
    assert len(names) > 30
    assert not set(names) & seen


def test_the_corpus_is_its_seeds() -> None:
    sizes = {"num_train": 10, "num_validation": 2, "num_held_out": 2}
    assert make_corpus(1, **sizes) == make_corpus(1, **sizes) != make_corpus(2, **sizes)


def a_summary(report: Report, text: str, looked_at: int) -> Summary:
    """A summary all of whose tokens look at one word of the document."""
    query = Axis(text, tuple(text.split()), tuple(words(text)))
    key = Axis(report.source, tuple(report.source.split()), tuple(words(report.source)))
    rows = torch.zeros(1, 1, len(query), len(key))
    rows[..., looked_at] = 1.0
    record = AttentionRecord({"decoder.copy": Observation(rows=rows, row_index=torch.arange(len(query)))}, query, key)
    said = tuple(SummaryWord(text[a:b], (a, b), 1.0, None) for a, b in words(text))
    return Summary(report.source, text, 0.0, query.tokens, said, record, "decoder.copy")


def test_figures_by_hand() -> None:
    facts = (Fact("winner", "Ann", (0, 3), (0,), True), Fact("score", "two", (9, 12), (1,), False))
    report = Report("Ann won\nTo two", "Ann wins two", facts, ((0, 7), (8, 14)), frozenset({"Ann wins two"}), "match")
    right, wrong = a_summary(report, "Ann wins two", 0), a_summary(report, "Bob wins two", 3)
    found = facts_found([report, report], [right, wrong])
    assert (found.right, found.names, found.chance) == (0.5, 0.5, 0.5)
    # Ann is looked up where it is said; "two" once in the wrong sentence, once in the right one.
    assert (found.num_facts, found.attention) == (3, pytest.approx(2 / 3))
    assert (found.num_names, found.num_reports) == (2, 2)


def test_a_demo_of_two_steps(corpus: DemoCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "make_corpus", lambda seed, num_held_out: corpus)
    folder = tmp_path / "demo"
    shown = demo.demo(folder, num_steps=2)
    assert sorted(path.name for path in folder.iterdir()) == ["copied.html", "copied.png", "run", "text"]
    text = (folder / "text" / "train.tsv").read_text(encoding="utf-8").splitlines()
    assert text[0] == "source\ttarget"
    assert len(text) == 501
    assert shown.found.num_reports == 30
    assert {"right", "names", "attention", "chance", "train_seconds"} <= shown.to_json().keys()
    assert any("chance" in line for line in shown.lines())
    page = shown.page.read_text(encoding="utf-8")
    assert "regard demo: reports to headlines" in page
    (folder / "mine.txt").touch()
    with pytest.raises(DataError, match=r"holds mine.txt, which is of no demo; give a new or empty folder"):
        demo.demo(folder, num_steps=2)
