"""A trained summarizer: what comes back, where words came from, and documents of every kind."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_reports import TEST

import regard
from regard.errors import ConfigError, DataError, ModelFileError, ObservationError
from regard.tasks.summarize.result import words_of_summary
from regard.tasks.summarize.showing import copied_links, show
from regard.tasks.summarize.summarizer import Summarizer

DOCUMENTS = [document for document, _ in TEST]
SUMMARIES = [summary for _, summary in TEST]


def test_names_never_seen_are_copied_and_it_is_said_from_where(summarizer: Summarizer) -> None:
    for found, document, wanted in zip(summarizer.summarize(DOCUMENTS), DOCUMENTS, SUMMARIES, strict=True):
        assert found.text == wanted
        winner, beat, loser = found.words
        assert [winner.text, beat.text, loser.text] == wanted.split()
        assert winner.is_copied and loser.is_copied and not beat.is_copied
        for word in (winner, loser):
            assert word.source_span is not None and word.copied is not None
            assert document[slice(*word.source_span)] == word.text
            assert word.copied == 1.0, "a word beyond the vocabulary can but be copied"
        assert found.copy_rate == pytest.approx(2 / 3)
        assert found.pointing == "decoder.layers.0.cross"
        record = found.attention
        assert record is not None and record.key is not None and record.query is not None
        assert record.key.text == document
        weights = record.rows()
        assert weights.shape == (len(found.tokens), len(record.key))
        assert record.key.tokens[int(weights[0].argmax())] == winner.text
        assert not found.is_cut and found.finished and found.num_read == len(document)


def test_a_batch_is_its_documents_alone(summarizer: Summarizer) -> None:
    together = summarizer.summarize(["", *DOCUMENTS[:7], " \n"], num_best=3, batch_tokens=60)
    for document, found in zip(["", *DOCUMENTS[:7], " \n"], together, strict=True):
        [alone] = summarizer.summarize([document], num_best=3)
        assert (alone.text, alone.tokens) == (found.text, found.tokens)
        assert [other.text for other in alone.alternatives] == [other.text for other in found.alternatives]
        assert alone.score == pytest.approx(found.score, abs=1e-5)
    assert together[0].text == together[-1].text == ""
    assert together[0].words == () and together[0].attention is None
    assert len(together[1].alternatives) == 2


def test_a_document_of_a_million_words_is_read_as_far_as_the_model_goes(summarizer: Summarizer) -> None:
    document = "  " + DOCUMENTS[0] + " So it was. And so on and so on" * 150_000
    began = time.process_time()
    [found] = summarizer.summarize([document])
    assert time.process_time() - began < 5.0
    assert found.is_cut
    assert found.num_read < 300
    assert found.attention is not None and found.attention.key is not None
    assert len(found.attention.key) == 40
    assert len(found.attention.key.text) == found.num_read
    assert found.text


@pytest.mark.parametrize("document", ["x" * 100_000, "\u200b", "!?", "\x01\x02\x03", "日本語のテキスト", "a\tb\r\nc"])
def test_odd_documents_give_some_answer(document: str, summarizer: Summarizer) -> None:
    [found] = summarizer.summarize([document])
    assert isinstance(found.text, str)
    json.dumps(found.to_json())


def test_lengths_are_obeyed(summarizer: Summarizer) -> None:
    [short] = summarizer.summarize(DOCUMENTS[:1], max_length=2)
    assert len(short.tokens) == 2 and not short.finished
    [long] = summarizer.summarize(DOCUMENTS[:1], min_length=6)
    assert len(long.tokens) >= 7


def test_saved_and_loaded(summarizer: Summarizer, tmp_path: Path) -> None:
    summarizer.save(tmp_path / "model", "a card")
    again = regard.load(tmp_path / "model", dtype="float64")
    assert [found.text for found in again.summarize(DOCUMENTS)] == SUMMARIES
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: missing"):
        regard.load(tmp_path / "model")


def test_mistakes_are_refused(summarizer: Summarizer) -> None:
    with pytest.raises(DataError, match=r"expected a list of strings, as in summarize\(\['A long text.'\]\)"):
        summarizer.summarize("one text")
    with pytest.raises(DataError, match="no proper Unicode text"):
        summarizer.summarize(["half \ud800"])
    with pytest.raises(ConfigError, match="unknown key `beam`"):
        summarizer.summarize(["a"], beam=3)
    with pytest.raises(ConfigError, match="options is dict"):
        summarizer.summarize(["a"], {"beam_size": 2})  # type: ignore[arg-type]


def test_a_page_and_a_picture_outline_what_was_copied(summarizer: Summarizer, tmp_path: Path) -> None:
    found = summarizer.summarize(DOCUMENTS[:2])
    for name in ("why.html", "why.png", "why.svg", "why.jsonl"):
        show(found, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 100
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert "copied (100%) from characters" in page
    assert "beat: generated" in page
    from regard.inputs.word_splitting import words

    for summary in found:
        links = copied_links(summary)
        assert [place for place, _ in links] == [0, 2]
        for place, at in links:
            begin, end = words(summary.source)[at]
            assert summary.source[begin:end] == summary.words[place].text
    with pytest.raises(ObservationError, match="a summary without attention"):
        show(summarizer.summarize(DOCUMENTS[:1], attention=False), tmp_path / "why.html")


def test_words_of_subwords() -> None:
    """ "Annabel was" of tokens "Ann", "abel", " was": copied as a whole, from the stretch that its pieces make."""
    spans, places = [(0, 3), (3, 7), (8, 11)], [(10, 13), (13, 17), (30, 33)]
    first, second = words_of_summary("Annabel was", spans, [0.9, 0.6, 0.4], places)
    assert (first.text, first.span, first.copied, first.source_span) == ("Annabel", (0, 7), 0.6, (10, 17))
    assert (second.copied, second.source_span) == (0.4, None)
    [scattered, _] = words_of_summary("Annabel was", spans, [0.9, 0.6, 0.4], [(10, 13), (2, 6), None])
    assert scattered.source_span == (10, 13), "where its first piece stood"
    assert [word.copied for word in words_of_summary("Annabel was", spans, None, [None] * 3)] == [None, None]


def test_the_part_of_copying_is_the_mixtures(summarizer: Summarizer) -> None:
    """A model whose gate is turned to generating says so of the same words."""
    decoder = summarizer.model.decoder
    bias = decoder.gate.bias.detach().clone()  # type: ignore[union-attr]
    try:
        with torch.no_grad():
            decoder.gate.bias.fill_(50.0)  # type: ignore[union-attr]
        [found] = summarizer.summarize(DOCUMENTS[:1], max_length=4)
        assert not any(word.is_copied for word in found.words)
    finally:
        with torch.no_grad():
            decoder.gate.bias.copy_(bias)  # type: ignore[union-attr]
    [again] = summarizer.summarize(DOCUMENTS[:1])
    assert replace(again).text == SUMMARIES[0]
