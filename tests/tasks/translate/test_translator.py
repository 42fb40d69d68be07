"""The translator: what it returns, in which order, whatever the batching; how it is kept and loaded."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_translators import LONGEST, SENTENCES, make, padded, phrases, reversed_translation, transformer

from regard.attention.observation import Observe
from regard.decoding.force import force
from regard.decoding.hypotheses import Trail
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, DataError, ModelFileError
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.encoder_decoder import EncoderDecoderConfig
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.tasks import model_directory
from regard.tasks.translate.result import Translation
from regard.tasks.translate.translator import Translator


def equal(one: Translation, other: Translation, tolerance: float = 0.0) -> bool:
    """Same source, text, tokens; score and attention within `tolerance`; and so for all alternatives."""
    if (one.source, one.text, one.tokens, one.finished) != (other.source, other.text, other.tokens, other.finished):
        return False
    if abs(one.score - other.score) > tolerance or len(one.alternatives) != len(other.alternatives):
        return False
    if (one.attention is None) != (other.attention is None):
        return False
    if one.attention is not None and other.attention is not None:
        if (one.attention.query, one.attention.key) != (other.attention.query, other.attention.key):
            return False
        if float((one.attention.rows() - other.attention.rows()).abs().max()) > tolerance:
            return False
    pairs = zip(one.alternatives, other.alternatives, strict=True)
    return all(equal(a, b, tolerance) for a, b in pairs)


def test_the_comparison_can_fail(untrained: Translator) -> None:
    [one, other] = untrained.translate(["A dog", "schön"], beam_size=2, num_best=2)
    assert equal(one, one)
    assert not equal(one, other)
    assert not equal(one, replace(one, score=one.score + 1e-3), 1e-4)
    assert not equal(one, replace(one, attention=None))
    assert not equal(one, replace(one, alternatives=()))


def test_the_trained_model_has_learnt_its_task(trained: Translator) -> None:
    texts = phrases(100, seed=7)
    found = trained.translate(texts)
    assert [one.source for one in found] == texts
    right = sum(one.text == reversed_translation(text) for one, text in zip(found, texts, strict=True))
    assert right >= 95  # so that what follows is about a model that is sure


@pytest.mark.parametrize("options", [{}, {"beam_size": 3, "num_best": 2}])
def test_batching_changes_nothing(trained: Translator, options: dict[str, Any]) -> None:
    texts = phrases(23, seed=11)
    together = trained.translate(texts, **options)
    one_by_one = [trained.translate([text], **options)[0] for text in texts]
    small = trained.translate(texts, batch_tokens=1, **options)
    backwards = trained.translate(texts[::-1], batch_tokens=50, **options)[::-1]
    for other in (one_by_one, small, backwards):
        assert all(equal(a, b, 1e-5) for a, b in zip(together, other, strict=True))


def test_samples_depend_on_a_text_s_number_alone(untrained: Translator) -> None:
    texts = [*SENTENCES, "", "A dog", SENTENCES[0]]
    options: dict[str, Any] = {"sample": True, "num_best": 2, "seed": 5, "max_length": 11}
    together = untrained.translate(texts, **options)
    small = untrained.translate(texts, batch_tokens=1, **options)
    apart = [untrained.translate([text], first_number=number, **options)[0] for number, text in enumerate(texts)]
    for other in (small, apart):
        assert all(equal(a, b, 1e-4) for a, b in zip(together, other, strict=True))
    first, last = together[0], together[-1]
    assert first.text != last.text  # the same text again is drawn anew
    assert not equal(together[0], untrained.translate(texts[:1], **{**options, "seed": 6})[0], 1e-4)

    # However another text was split, this one's draws stay.
    long = [" ".join(SENTENCES), "A dog"]
    split, whole = (untrained.translate(long, split=split, **options)[1] for split in (True, False))
    assert len(untrained.translate(long, **options)[0].tokens) > 11
    assert equal(split, whole, 1e-4)


def test_sampling_options_reach_the_search(untrained: Translator) -> None:
    greedy = untrained.translate(SENTENCES, max_length=9)
    assert all(
        equal(a, b, 1e-5)
        for a, b in zip(greedy, untrained.translate(SENTENCES, max_length=9, sample=True, top_k=1), strict=True)
    )
    assert all(
        a.tokens == b.tokens
        for a, b in zip(
            greedy, untrained.translate(SENTENCES, max_length=9, sample=True, temperature=1e-4), strict=True
        )
    )
    [one] = untrained.translate(["A dog"], max_length=4, min_length=3)
    assert len(one.tokens) == 4


def test_nothing_in_nothing_out(trained: Translator) -> None:
    assert trained.translate([]) == []
    empty, one, blank = trained.translate(["", "one", " \n\t\u2028"])
    assert empty == Translation("", "", 0.0, (), None)
    assert blank == Translation(" \n\t\u2028", "", 0.0, (), None)
    assert one.text == "eins"
    assert one.attention is not None
    assert trained.translate(["", " "], beam_size=2) == [empty, Translation(" ", "", 0.0, (), None)]


def test_outer_white_space_changes_nothing_but_the_places(trained: Translator) -> None:
    plain_text, spaced = trained.translate(["one dog", "  one dog \n"])
    assert (spaced.text, spaced.tokens, spaced.score) == (plain_text.text, plain_text.tokens, plain_text.score)
    assert spaced.attention is not None
    assert spaced.attention.key is not None
    assert [spaced.source[a:b] for a, b in spaced.attention.key.spans] == ["one", "dog", ""]


def test_alternatives_are_an_n_best_list(untrained: Translator) -> None:
    [one] = untrained.translate([SENTENCES[0]], beam_size=5, num_best=4, max_length=9)
    listed = [one, *one.alternatives]
    assert len(listed) == 4
    assert [each.score for each in listed] == sorted((each.score for each in listed), reverse=True)
    assert len({each.tokens for each in listed}) == 4
    assert all(not each.alternatives and each.source == SENTENCES[0] for each in one.alternatives)
    values = json.loads(json.dumps(one.to_json()))
    assert len(values["alternatives"]) == 3
    assert "alternatives" not in untrained.translate([SENTENCES[0]], max_length=3)[0].to_json()


def test_attention_only_when_asked_for(untrained: Translator) -> None:
    with_it, without = (untrained.translate(SENTENCES, max_length=7, attention=wanted) for wanted in (True, False))
    assert all(one.attention is None for one in without)
    assert [one.tokens for one in with_it] == [one.tokens for one in without]


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"beam_size": 5, "num_best": 3}, {"sample": True}])
def test_attention_lines_up_with_tokens_and_text(untrained: Translator, options: dict[str, Any]) -> None:
    for best in untrained.translate(SENTENCES, max_length=13, **options):
        for one in (best, *best.alternatives):
            record = one.attention
            assert record is not None
            assert record.query is not None
            assert record.key is not None
            assert list(record.layers) == ["decoder.layers.0.cross", "decoder.layers.1.cross"]
            for layer in record.layers:
                rows = record[layer].rows
                assert rows is not None
                assert rows.shape == (1, 3, len(one.tokens), len(record.key))
                assert torch.allclose(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-5)
            assert record.query.text == one.text
            assert record.query.tokens == one.tokens
            assert record.key.text == one.source
            # Every letter of the source, those of several bytes too, is inside the places of the source's tokens.
            covered = {place for a, b in record.key.spans for place in range(a, b)}
            assert covered == {place for place, letter in enumerate(one.source) if not letter.isspace()}
            assert record.key.tokens[-1] == "</s>"
            assert record.key.spans[-1] == (len(one.source), len(one.source))
            assert all(0 <= a <= b <= len(one.text) for a, b in record.query.spans)


def test_the_trained_model_looks_at_what_it_translates(trained: Translator) -> None:
    text = "dog two sun six"
    [one] = trained.translate([text], beam_size=5)
    assert one.text == reversed_translation(text)
    record = one.attention
    assert record is not None
    words = record.over_words([(0, 5), (6, 11), (12, 16), (17, 21)], [(0, 3), (4, 7), (8, 11), (12, 15)])
    assert words.query is not None
    assert words.key is not None
    assert words.query.tokens == ("sechs", "Sonne", "zwei", "Hund", "</s>")
    assert words.key.tokens == ("dog", "two", "sun", "six", "</s>")
    rows = words.rows()
    assert torch.allclose(rows.sum(1), torch.ones(5), atol=1e-5)


Watch = Callable[[Translator, str, int], tuple[Translation, list[int], list[int]]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Translates one text by beam search and tells the winner's ids and its place in the beam at every step."""
    trails: list[Trail] = []
    trace = Trail.trace

    def spied(self: Trail, *args: Any) -> Any:
        trails.append(self)
        return trace(self, *args)

    monkeypatch.setattr(Trail, "trace", spied)

    def watch(translator: Translator, text: str, beam_size: int) -> tuple[Translation, list[int], list[int]]:
        trails.clear()
        [one] = translator.translate([text], beam_size=beam_size, max_length=12)
        [trail] = trails
        tokenizer = translator.target_tokenizer
        layout: list[list[int]] = [[]]
        places = [0]
        for parents, tokens in zip(trail.parents, trail.tokens, strict=True):
            layout = [[*layout[parent], token] for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)]
            length = len(layout[0])
            if length < len(one.tokens):
                fits = [
                    place for place, ids in enumerate(layout) if tuple(tokenizer.tokens_of(ids)) == one.tokens[:length]
                ]
                assert len(fits) == 1
                places.append(fits[0])
                before = layout[fits[0]]
        last = [id for id in range(len(tokenizer)) if tokenizer.tokens_of([id])[0] == one.tokens[-1]]
        assert len(last) == 1
        return one, [*before, last[0]], places

    return watch


def test_attention_under_a_beam_follows_the_winner_through_reordering(untrained: Translator, watched: Watch) -> None:
    """Forcing the winner's tokens, one path without any beam, must show the same attention."""
    num_reordered = 0
    for text in [*SENTENCES, "dog", "Katze Hund", "😀😀", "schön café lacht"]:
        one, ids, places = watched(untrained, text, 5)
        num_reordered += any(a != b for a, b in itertools.pairwise(places[1:]))
        [encoded] = untrained.source_tokenizer.encode_ids([text])
        source, lengths = padded([[*encoded, Tokenizer.EOS]])
        with torch.no_grad():
            memories, _ = untrained.model.encode(source, lengths)
            forced = force(
                untrained.model.decoder, memories, torch.tensor([ids]), bos=Tokenizer.BOS, observe=Observe(rows="all")
            )
        assert one.attention is not None
        for layer, seen in forced.attention.items():
            rows = one.attention[layer].rows
            assert rows is not None
            assert seen.rows is not None
            assert torch.allclose(rows, seen.rows, atol=1e-5)
        assert one.score == pytest.approx(float(forced.log_prob[0]) / len(ids), abs=1e-5)
    assert num_reordered >= 3  # or nothing was tested


# -- long text ---------------------------------------------------------------------------------------------------------


def test_a_long_text_is_translated_piece_by_piece(trained: Translator) -> None:
    pieces = ["one dog two", "six cat", "sun sun five two", "one"]
    text = f"{pieces[0]}, {pieces[1]};\u2003 {pieces[2]} {pieces[3]}"
    limited = trained.translate([text, "dog"], beam_size=2, num_best=2)
    parts = trained.translate([f"{pieces[0]},", f"{pieces[1]};", pieces[2], pieces[3]], beam_size=2, num_best=2)
    whole, short = limited
    assert short.text == "Hund"
    assert whole.source == text
    assert whole.text == " ".join(part.text for part in parts)
    assert whole.tokens == tuple(token for part in parts for token in part.tokens)
    assert len(whole.alternatives) == 1
    assert whole.alternatives[0].text == " ".join(part.alternatives[0].text for part in parts)
    mean = sum(part.score * len(part.tokens) for part in parts) / len(whole.tokens)
    assert whole.score == pytest.approx(mean, abs=1e-5)
    assert whole.finished == all(part.finished for part in parts)

    for joint, ranked in ((whole, parts), (whole.alternatives[0], [part.alternatives[0] for part in parts])):
        record = joint.attention
        assert record is not None
        assert record.query is not None
        assert record.key is not None
        assert record.query.tokens == joint.tokens
        assert [text[a:b] for a, b in record.key.spans if b > a] == [
            text_[a:b]
            for part, text_ in ((part, part.source) for part in ranked)
            if part.attention is not None and part.attention.key is not None
            for a, b in part.attention.key.spans
            if b > a
        ]
        assert "".join(text[a:b] for a, b in record.key.spans) == "".join(text.split())
        rows = record["decoder.layers.0.cross"].rows
        assert rows is not None
        assert torch.allclose(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-5)
        top = left = 0
        for part in ranked:
            assert part.attention is not None
            block = part.attention["decoder.layers.0.cross"].rows
            assert block is not None
            bottom, right = top + block.shape[2], left + block.shape[3]
            assert torch.allclose(rows[:, :, top:bottom, left:right], block, atol=1e-5)
            top, left = bottom, right
        assert rows.shape[2:] == (top, left)


def test_without_splitting_a_long_text_stays_one(trained: Translator) -> None:
    text = "one dog two six cat sun"
    [whole] = trained.translate([text], split=False)
    assert whole.attention is not None
    assert whole.attention.key is not None
    assert len(whole.attention.key) > LONGEST


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zzz": 3}, r"^translate: unknown key `zzz`, known here: beam_size, "),
        ({"beam_sise": 3}, r"^translate: unknown key `beam_sise`, did you mean `beam_size`\?$"),
        ({"beam_size": "3"}, r'^translate: key `beam_size` is "3": expected a whole number$'),
        ({"beam_size": 0}, r"^decoding: beam_size is 0"),
        ({"num_best": 2, "beam_size": 1}, r"^decoding: num_best 2 exceeds beam_size 1"),
        ({"top_k": 3}, r"^decoding: top_k 3 without sample"),
    ],
)
def test_options_that_cannot_work(trained: Translator, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trained.translate(["one"], **changes)


@pytest.mark.parametrize("texts", ["one", ["one", 2], [b"one"], [None]])
def test_what_is_no_list_of_texts(trained: Translator, texts: Any) -> None:
    with pytest.raises(DataError, match=r"^translate: expected a list of strings, as in translate\(\['A dog\.'\]\)$"):
        trained.translate(texts)


def test_half_a_surrogate_pair(trained: Translator) -> None:
    with pytest.raises(DataError, match=r"half a surrogate pair, U\+D83D"):
        trained.translate(["one", "a \ud83d"])


# -- the model directory -----------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(trained: Translator, tmp_path: Path) -> None:
    trained.save(tmp_path / "model", "# A card\n")
    assert (tmp_path / "model" / "README.md").read_text() == "# A card\n"
    loaded = Translator.load(model_directory.read(tmp_path / "model"), "cpu", torch.float32)
    assert loaded.config == trained.config
    assert not loaded.model.training
    options = DecodingOptions(beam_size=3, num_best=2)
    texts = [*phrases(5, seed=3), "", "one dog, two cat six. sun"]
    found = zip(loaded.translate(texts, options), trained.translate(texts, options), strict=True)
    assert all(equal(one, other) for one, other in found)


def test_a_joint_tokenizer_is_kept_once(untrained: Translator, trained: Translator, tmp_path: Path) -> None:
    untrained.save(tmp_path / "joint")
    trained.save(tmp_path / "apart")
    assert [path.name for path in sorted((tmp_path / "joint").glob("tok*"))] == ["tokenizer.json"]
    names = ["tokenizer.source.json", "tokenizer.target.json"]
    assert [path.name for path in sorted((tmp_path / "apart").glob("tok*"))] == names


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
def test_other_dtypes(trained: Translator, tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    trained.save(tmp_path / "model")
    loaded = Translator.load(model_directory.read(tmp_path / "model"), "cpu", dtype)
    texts = phrases(9, seed=5)
    for one, other in zip(loaded.translate(texts), trained.translate(texts), strict=True):
        assert one.tokens == other.tokens
        assert one.score == pytest.approx(other.score, abs=tolerance)
        assert one.attention is not None
        rows = one.attention["decoder.layers.0.cross"].rows
        assert rows is not None
        assert rows.dtype == torch.float32
        assert torch.allclose(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=tolerance / 10)


def test_the_recurrent_family_speaks_the_same_protocol(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(SENTENCES, TokenizerConfig("unigram", 265, min_frequency=1))
    config = EncoderDecoderConfig(
        RecurrentEncoderConfig("recurrent", 10), AttentionRNNConfig("attention-rnn", 14, attention_dim=6)
    )
    translator = make(tokenizer, tokenizer, config, 9, seed=2)
    translator.save(tmp_path / "model")
    loaded = Translator.load(model_directory.read(tmp_path / "model"), "cpu", torch.float32)
    options: dict[str, Any] = {"beam_size": 4, "num_best": 2, "max_length": 7}
    found = loaded.translate(SENTENCES, **options)
    assert all(equal(a, b) for a, b in zip(found, translator.translate(SENTENCES, **options), strict=True))
    for one in found:
        assert one.attention is not None
        rows = one.attention.rows()
        assert rows.shape[0] == len(one.tokens)
        assert torch.allclose(rows.sum(1), torch.ones(len(rows)), atol=1e-5)


Damage = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda about: about.pop("model"), r"damaged \(key `model` is missing, add it\)"),
        (
            lambda about: about["model"]["encoder"].update(model_dim="6"),
            r'`model.encoder.model_dim` is "6": expected a wh',
        ),
        (
            lambda about: about["model"]["encoder"].update(dropout=7),
            r"model.encoder.dropout is 7.0, expected 0 to below 1",
        ),
        (
            lambda about: about["model"]["encoder"].update(num_layer=1),
            r"unknown key `model.encoder.num_layer`, did you",
        ),
        (lambda about: about["model"]["decoder"]["attention"].update(heads=7), r"no multiple of heads 7"),
        (lambda about: about.update(longest_source=0), r"longest_source is 0, expected 1 or more"),
        (lambda about: about["decoding"].update(beam_size=0), r"beam_size is 0"),
        (
            lambda about: about.update(tokenizers={"source": "tokenizer.json"}),
            r"the tokenizer of the target is missing",
        ),
        (lambda about: about.update(tokenizers=None), r"the tokenizer of the source is missing"),
        (
            lambda about: about["model"]["encoder"].update(model_dim=60),
            r"weights do not fit the configuration, e\.g\. ",
        ),
        (lambda about: about["model"]["decoder"].update(num_layers=1), r"\d+ weights do not fit .* expected missing"),
    ],
)
def test_a_damaged_configuration_is_a_fault_of_the_file(
    untrained: Translator, tmp_path: Path, damage: Damage, message: str
) -> None:
    untrained.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    about = json.loads(path.read_text())
    damage(about)
    about.pop("config_sha256")  # changed on purpose
    path.write_text(json.dumps(about))
    with pytest.raises(ModelFileError, match=message) as failure:
        Translator.load(model_directory.read(tmp_path / "model"), "cpu", torch.float32)
    text = str(failure.value)
    assert text.startswith(str(tmp_path / "model"))
    assert text.count(str(tmp_path)) == 1
    assert "again" in text
    assert "\n" not in text


def test_weights_of_another_model(untrained: Translator, tmp_path: Path) -> None:
    untrained.save(tmp_path / "model")
    directory = model_directory.read(tmp_path / "model")
    name = next(iter(directory.weights))
    directory.weights[name] = torch.zeros(2, 3)
    with pytest.raises(
        ModelFileError, match=rf"1 weights do not fit the configuration, e\.g\. {name} \(\[2, 3\], expected"
    ):
        Translator.load(directory, "cpu", torch.float32)


def test_a_configuration_that_cannot_be(trained: Translator) -> None:
    with pytest.raises(ConfigError, match=r"^longest_source is 0, expected 1 or more$"):
        replace(trained.config, longest_source=0)
    assert transformer(6, 1, 2, 5) == transformer(6, 1, 2, 5)


def test_a_model_of_single_sentences_loses_none_of_several(trained: Translator) -> None:
    """However short the text: a model that never saw two sentences would translate one of them."""
    longest = replace(trained.config, longest_source=50)
    translator = Translator(trained.model, trained.source_tokenizer, trained.target_tokenizer, longest)
    text = "dog cat. Bird dog."
    assert translator._count(text) <= 50
    single = [one.text for one in translator.translate(["dog cat.", "Bird dog."], attention=False)]
    assert translator.config.sentence_level
    [both] = translator.translate([text], attention=False)
    assert both.text == " ".join(single)
    assert both.tokens.count("</s>") == 2  # each was translated, and ended, by itself


def test_any_iterable_of_texts_is_translated(trained: Translator) -> None:
    texts = ["dog cat", "bird"]
    assert [one.text for one in trained.translate(iter(texts))] == [one.text for one in trained.translate(texts)]
