"""The demo's own parts: what it trains on, how it reads attention, what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from num2words import num2words

from regard.tasks import model_directory
from regard.tasks.translate import demo
from regard.tasks.translate.demo_corpus import DemoCorpus, make_corpus
from regard.tasks.translate.translator import Translator


@pytest.fixture(scope="module")
def corpus() -> DemoCorpus:
    return make_corpus(1, 1_009, 53, num_validation=11)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, corpus: DemoCorpus) -> tuple[Path, demo.Demo]:
    """A demo of two steps."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "make_corpus", lambda seed, num_held_out: corpus)
        return folder, demo.demo(folder, num_steps=2)


def test_no_held_out_number_or_date_is_in_the_files_it_learns_from(
    shown: tuple[Path, demo.Demo], corpus: DemoCorpus
) -> None:
    folder, _ = shown
    text = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (folder / "text").iterdir()}
    assert sorted(text) == ["train.de", "train.en", "validation.de", "validation.en"]
    assert len(text["train.en"]) == len(text["train.de"]) == 1_009
    lines = {line for file in text.values() for line in file}
    learnt = "\n".join(lines)
    words = set(re.findall(r"\w+", learnt))  # a German number is one word
    dates = set(re.findall(r"[A-Z][a-z]+ \d{1,2}, \d{4}|\d{1,2}\. [A-Zäöü][a-zäöü]+ \d{4}", learnt))
    assert num2words(7, lang="de") in words
    assert len(dates) > 100
    for phrase in corpus.held_out:
        assert not {phrase.source, phrase.target} & lines
        numbers = {num2words(key, lang="de") for key in phrase.keys if isinstance(key, int)}
        assert not numbers & words
        spoken = re.findall(r"[A-Z][a-z]+ \d{1,2}, \d{4}|\d{1,2}\. [A-Zäöü][a-zäöü]+ \d{4}", str(phrase))
        assert len(spoken) >= 2 * sum(isinstance(key, str) for key in phrase.keys)
        assert not set(spoken) & dates


def test_the_read_attention_is_that_of_the_reference(shown: tuple[Path, demo.Demo], corpus: DemoCorpus) -> None:
    folder, _ = shown
    translator = Translator.load(model_directory.read(folder / "run" / "model"), "cpu", torch.float32)
    phrases = corpus.held_out[:17]
    maps, sources, targets = demo._forced_attention(translator, phrases)
    for weights, source, target, phrase in zip(maps, sources, targets, phrases, strict=True):
        assert weights.shape == (len(target), len(source))
        assert abs(weights.sum(-1) - 1).max() < 1e-5
        assert source[-1] == target[-1] == (0, 0)
        for spans, text in ((source, phrase.source), (target, phrase.target)):
            covered = sorted({place for a, b in spans for place in range(a, b)})  # bytes of one letter share it
            assert "".join(text[place] for place in covered) == text.replace(" ", "")
    alone, _, _ = demo._forced_attention(translator, phrases[3:4])
    torch.testing.assert_close(torch.as_tensor(alone[0]), torch.as_tensor(maps[3]), atol=1e-5, rtol=0)


def test_what_is_shown(shown: tuple[Path, demo.Demo], corpus: DemoCorpus) -> None:
    folder, found = shown
    assert found.num_held_out == 53
    assert len(found.examples) == 4
    assert len({phrase.kind for phrase, _ in found.examples}) > 1
    assert all(phrase in corpus.held_out for phrase, _ in found.examples)
    assert (found.page, found.picture) == (folder / "alignment.html", folder / "alignment.png")
    first = found.examples[0][0]
    assert "-" in first.source  # tens and units, which German turns round


def test_pieces_cover_the_text_and_hold_the_linked_parts(corpus: DemoCorpus) -> None:
    for phrase in corpus.held_out:
        for text, linked in (
            (phrase.source, [link.source_span for link in phrase.links]),
            (phrase.target, [link.target_span for link in phrase.links]),
        ):
            pieces = demo._pieces(text, linked)
            assert set(linked) <= set(pieces)
            assert pieces == sorted(pieces)
            assert "".join(text[a:b] for a, b in pieces) == text.replace(" ", "")
