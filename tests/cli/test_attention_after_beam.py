"""Attention of a beam's winner is that of its own tokens, whichever places its ancestors had in the beam."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import Command, Trained
from tiny_language import pairs

import regard
from regard.attention.observation import Observe
from regard.decoding.force import force
from regard.decoding.hypotheses import Trail
from regard.inputs.text import Tokenizer
from regard.tasks.translate.translator import Translator

BEAM = 5


def ancestors(monkeypatch: pytest.MonkeyPatch, translator: Translator, source: str) -> tuple[list[int], list[int]]:
    """The winner's tokens, and the place in the beam of each of its proper prefixes, replayed from every choice."""
    histories: list[list[tuple[int, ...]]] = [[()]]
    choose = Trail.choose

    def recorded(trail: Trail, parents: torch.Tensor, tokens: torch.Tensor, log_probs: torch.Tensor) -> None:
        before = histories[-1]
        rows = zip(parents.tolist(), tokens.tolist(), strict=True)
        histories.append([(*before[parent], token) for parent, token in rows])
        choose(trail, parents, tokens, log_probs)

    with monkeypatch.context() as patched:
        patched.setattr(Trail, "choose", recorded)
        [translation] = translator.translate([source], beam_size=BEAM, attention=False)
    ids = winning_ids(translator, translation.tokens)
    return ids, [histories[length].index(tuple(ids[:length])) for length in range(1, len(ids))]


def winning_ids(translator: Translator, tokens: tuple[str, ...]) -> list[int]:
    tokenizer = translator.target_tokenizer
    identity = {token: number for number, token in enumerate(tokenizer.tokens_of(range(len(tokenizer))))}
    return [identity[token] for token in tokens]


def reordered(monkeypatch: pytest.MonkeyPatch, translator: Translator) -> tuple[str, list[int]]:
    """A source whose winner was not first in the beam all along, and the winner's ids, none of them a single byte."""
    for source, _ in pairs(300, 17):
        unusual = source.replace("dog", "hog").replace("cat", "bat").rstrip(" .") + " The."
        ids, places = ancestors(monkeypatch, translator, unusual)
        pieces = translator.target_tokenizer.tokens_of(ids)
        if sum(place > 0 for place in places) >= 2 and not any(piece.startswith("<0x") for piece in pieces):
            return unusual, ids
    raise AssertionError("no beam was reordered: the test would show nothing")


@torch.no_grad()
def test_attention_follows_the_winner_through_the_beam(
    command: Command, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = regard.load(trained.model)
    source, ids = reordered(monkeypatch, translator)
    tokenizer = translator.source_tokenizer
    read = torch.tensor([[*tokenizer.encode_ids([source])[0], Tokenizer.EOS]])
    memories, _ = translator.model.encode(read, torch.tensor([read.shape[1]]))
    forced = force(
        translator.model.decoder, memories, torch.tensor([ids]), bos=Tokenizer.BOS, observe=Observe(rows="all")
    )
    others = [other for other, _ in pairs(7, 23)]
    for company in ([source], [*others[:3], source, *others[3:]]):
        translation = translator.translate(company, beam_size=BEAM)[company.index(source)]
        record = translation.attention
        assert record is not None
        assert winning_ids(translator, translation.tokens) == ids
        assert translation.score == pytest.approx(float(forced.log_prob) / len(ids), abs=1e-5)
        assert list(record.layers)
        for name, observation in record.layers.items():
            expected = forced.attention[name].rows
            assert expected is not None
            assert observation.rows is not None
            torch.testing.assert_close(observation.rows[0], expected[0], atol=1e-5, rtol=0)

        # Tokens, characters and words are the texts'.
        query, key = record.query, record.key
        assert query is not None
        assert key is not None
        assert (query.text, key.text, query.tokens) == (translation.text, source, translation.tokens)
        for axis in (query, key):
            assert axis.tokens[-1] == "</s>"
            for token, (begin, end) in zip(axis.tokens[:-1], axis.spans, strict=False):
                assert axis.text[begin:end] == token.replace("▁", " ").strip()
            assert "".join(axis.text[a:b] for a, b in axis.spans) == axis.text.replace(" ", "")
        words = {axis.text: _words(axis.text) for axis in (query, key)}
        over_words = record.over_words(words[query.text], words[key.text])
        assert over_words.query is not None
        assert over_words.query.tokens == (*query.text.split(), "</s>")
        rows = over_words.rows()
        torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows)))
        torch.testing.assert_close(rows[-1], _summed(record.rows()[-1], key.spans, words[source]))

    path = tmp_path / "a.jsonl"
    assert command("translate", trained.model, source, "--beam-size", BEAM, "--attention", path).status == 0
    [written] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert written["target_tokens"] == list(translation.tokens)
    for name, weights in written["layers"].items():
        rows_of = forced.attention[name].rows
        assert rows_of is not None
        torch.testing.assert_close(torch.tensor(weights), rows_of[0], atol=1e-4, rtol=0)


def _words(text: str) -> list[tuple[int, int]]:
    spans, begin = [], 0
    for word in text.split(" "):
        spans.append((begin, begin + len(word)))
        begin += len(word) + 1
    return spans


def _summed(row: torch.Tensor, spans: tuple[tuple[int, int], ...], words: list[tuple[int, int]]) -> torch.Tensor:
    """The mass on each word and on the end token. A lone space mark has an empty span where its word begins."""
    sums = [0.0] * len(words)
    for weight, (begin, end) in zip(row[:-1].tolist(), spans[:-1], strict=True):
        [owner] = [place for place, (a, b) in enumerate(words) if a <= begin <= end <= b]
        sums[owner] += weight
    return torch.tensor([*sums, float(row[-1])])
