from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.errors import ConfigError, DataError, ModelFileError
from regard.inputs.text import Tokenizer
from regard.inputs.tokenizers import tokenizer_from_json, train_tokenizer
from regard.inputs.words import WordTokenizer, WordTokenizerConfig, joined_words

TEXTS = ["The cat saw the dog.", "The dog saw (the cat)!", "a cat, a dog"]


def trained(vocab_size: int = 100, **options: object) -> WordTokenizer:
    return WordTokenizer.train(TEXTS, WordTokenizerConfig("words", vocab_size, **options))  # type: ignore[arg-type]


def tokens(text: str) -> list[str]:
    return [token for token, _ in joined_words(text)]


def test_joiners_stand_on_marks() -> None:
    assert tokens("He (Anna) said: ok.") == ["He", "(￭", "Anna", "￭)", "said", "￭:", "ok", "￭."]
    assert tokens("l'eau -- 12:30, $5") == ["l'", "￭eau", "--", "12:30", "￭,", "$￭", "5"]
    assert tokens("a@b") == ["a", "￭@￭", "b"]
    assert tokens(" \n ") == []


@settings(deadline=None, max_examples=150)
@given(st.text(alphabet=st.sampled_from("ab1Zé,.'-(￭ \n\t日"), max_size=30))
def test_every_text_comes_back_but_for_its_white_space(text: str) -> None:
    tokenizer = trained()
    [found] = tokenizer.encode([text])
    wanted = " ".join(text.replace("￭", "■").split())
    decoded, spans = tokenizer.spans(found.ids, tokenizer.unknown_words(text))
    assert decoded == wanted
    assert tokenizer.encode_ids([text]) == [found.ids]
    for token, (begin, end), (first, last) in zip(found.tokens, found.offsets, spans, strict=True):
        assert text[begin:end].replace("￭", "■") == token == decoded[first:last]


def test_the_frequent_words_are_the_vocabulary() -> None:
    tokenizer = trained(8)
    assert tokenizer.tokens_of(range(8)) == ["<pad>", "<s>", "</s>", "<unk>", "cat", "dog", "The", "a"]
    assert len(trained(100, min_frequency=3)) == 6
    assert len(trained(100, lowercase=True)) == len(trained(100)) - 1


def test_unknown_words_are_numbered_by_their_letters() -> None:
    tokenizer = trained(lowercase=True)
    source, target = tokenizer.encode_ids(["Zork saw the Fizz (zork).", "fizz saw Zork"])
    assert source[0] == source[5] == target[2] >= len(tokenizer)
    assert source[3] == target[0] >= len(tokenizer) != source[0]
    known = tokenizer.unknown_words("Zork saw the Fizz (zork).")
    assert known == {source[0]: "Zork", source[3]: "Fizz"}, "as they first stand there"
    assert tokenizer.decode(target, known) == "Fizz saw Zork"
    assert tokenizer.decode(target) == "<unk> saw <unk>"
    assert tokenizer.tokens_of([*target, Tokenizer.EOS], known) == ["Fizz", "saw", "Zork", "</s>"]
    assert tokenizer.spans([Tokenizer.BOS, target[1], Tokenizer.EOS]) == ("saw", [(0, 0), (0, 3), (3, 3)])


def test_kept_and_read_again(tmp_path: Path) -> None:
    tokenizer = trained()
    tokenizer.save(tmp_path / "words.json")
    assert WordTokenizer.load(tmp_path / "words.json") == tokenizer
    with pytest.raises(ModelFileError, match=r"No such file or directory\); give the path of .* WordTokenizer\.save"):
        WordTokenizer.load(tmp_path / "none.json")
    content = (tmp_path / "words.json").read_text(encoding="utf-8")
    assert tokenizer_from_json(content) == tokenizer == pickle.loads(pickle.dumps(tokenizer))
    assert tokenizer.fingerprint() == WordTokenizer.from_json(content).fingerprint() != trained(9).fingerprint()
    subwords = train_tokenizer(TEXTS, Tokenizer.train(TEXTS, trained_bytes()).config)
    assert tokenizer_from_json(subwords.to_json()) == subwords
    assert isinstance(train_tokenizer(TEXTS, tokenizer.config), WordTokenizer)


def test_it_is_written_as_ever() -> None:
    """Runs begun with an earlier version compare these bytes."""
    assert trained(6).to_json() == (
        '{"config": {"kind": "words", "lowercase": false, "min_frequency": 1, "vocab_size": 6}, "format_version": 1,'
        ' "words": ["<pad>", "<s>", "</s>", "<unk>", "cat", "dog"]}'
    )


def trained_bytes() -> object:
    from regard.inputs.text import TokenizerConfig

    return TokenizerConfig("bpe", 261)


def test_what_is_wrong_is_said() -> None:
    content = json.loads(trained().to_json())
    for damaged in ("{", json.dumps(content | {"words": ["a"]}), json.dumps(content | {"words": None})):
        with pytest.raises(ModelFileError, match="here: damaged tokenizer"):
            tokenizer_from_json(damaged, name="here")
    with pytest.raises(ModelFileError, match="tokenizer format 9, this regard reads up to 1"):
        tokenizer_from_json(json.dumps(content | {"format_version": 9}))
    with pytest.raises(
        ConfigError, match=r"vocab_size is 4, expected more than the 4 special ids; tokenizer\.min_freq"
    ):
        WordTokenizerConfig("words", 4, min_frequency=0)
    with pytest.raises(DataError, match="received 2 texts without a single word"):
        WordTokenizer.train([" ", ""], trained().config)
    with pytest.raises(DataError, match="no proper Unicode text"):
        trained().encode(["half \ud800 of a pair"])
