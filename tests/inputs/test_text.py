"""Tokenizers: no text is lost, every token knows its place, training repeats exactly."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.errors import ConfigError, DataError, ModelFileError
from regard.inputs.text import SPECIAL_TOKENS, Tokenizer, TokenizerConfig
from regard.inputs.word_splitting import words

TEXTS = [
    "A man in an orange hat starring at something.",
    "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
    "Five people wearing winter jackets and helmets stand in the snow, with snowmobiles in the background.",
    "Fünf Leute in Winterjacken und mit Helmen stehen im Schnee mit Schneemobilen im Hintergrund.",
    "People are fixing the roof of a house. It's 12 o'clock; isn't it? It's 2025!",
    "Leute reparieren das Dach eines Hauses ... für 3,50 € (über 100 Häuser).",
] * 3
KINDS = ["bpe", "unigram"]
HARD = [
    "plain",
    "two  spaces   inside",
    "tab\tand\nnew line",
    "Größe ﬁ ½ …",
    "e\u0301 combining",
    "👩‍👩‍👧 family 🇩🇪",
    "日本語のテキスト",
    "اللغة العربية",
    "<s> </s> <pad> <unk>",
    "▁ and Ġ and Ċ",
    "\u200bzero\u200dwidth",
    "a\u00a0b\u2028c\u0085d",
    "\x00\x1f control",
    "😀",
    "",
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(TEXTS, TokenizerConfig(request.param, 340))


def _covered(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """Every character in a span, once: spans that repeat (several tokens, one character) count once."""
    return [place for start, end in sorted(set(spans)) for place in range(start, end)]


def _check_spans(text: str, spans: list[tuple[int, int]]) -> None:
    """In order, each character but white space in just one span, none of which begins with white space."""
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert spans == sorted(spans)
    assert not any(text[start].isspace() for start, end in spans if start < end)
    covered = _covered(text, spans)
    assert len(covered) == len(set(covered))
    assert {place for place, letter in enumerate(text) if not letter.isspace()} <= set(covered)


def test_the_span_check_can_fail() -> None:
    _check_spans("ab c", [(0, 1), (1, 2), (3, 4)])
    for wrong in ([(0, 1), (3, 4)], [(0, 2), (1, 2), (3, 4)], [(0, 2), (2, 4)], [(3, 4), (0, 2)], [(0, 2), (3, 5)]):
        with pytest.raises(AssertionError):
            _check_spans("ab c", wrong)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(HARD)


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_any_text_comes_back_with_every_token_in_its_place(tokenizer: Tokenizer, text: str) -> None:
    [encoded] = tokenizer.encode([text])
    assert encoded.ids == tokenizer.encode_ids([text])[0]
    assert Tokenizer.UNK not in encoded.ids
    assert not set(encoded.ids) & {Tokenizer.PAD, Tokenizer.BOS, Tokenizer.EOS}
    assert len(encoded.ids) == len(encoded.tokens) == len(encoded.offsets)
    decoded, spans = tokenizer.spans(encoded.ids)
    assert decoded == tokenizer.decode(encoded.ids)
    assert decoded.strip() == text.strip()
    _check_spans(text, encoded.offsets)
    _check_spans(decoded, spans)
    if decoded == text:
        assert spans == encoded.offsets


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_spans_of_any_ids_agree_with_decoding(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also ids whose bytes are no UTF-8, and special ids anywhere, as a model may generate them."""
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))
    text, spans = tokenizer.spans(ids)
    assert text == tokenizer.decode(ids) == tokenizer.decode([identity for identity in ids if identity > 3])
    assert len(spans) == len(ids)
    real = [span for span, identity in zip(spans, ids, strict=True) if identity > 3]
    assert real == sorted(real) == tokenizer.spans([identity for identity in ids if identity > 3])[1]
    raw = b"".join(tokenizer._bytes[identity] for identity in ids).decode("utf-8", errors="replace")
    assert text == raw.removeprefix(" ")
    for identity, (start, end) in zip(ids, spans, strict=True):
        assert 0 <= start <= end <= len(text)
        if identity <= 3:
            assert start == end
        else:
            piece = tokenizer._bytes[identity].decode("utf-8", errors="replace")
            if "\ufffd" not in piece:
                assert text[start:end] == piece.lstrip()


def test_spans_around_special_tokens_and_split_characters() -> None:
    tokenizer = Tokenizer.train(["a"], TokenizerConfig("bpe", 260))  # bytes alone
    [ids] = tokenizer.encode_ids(["é b"])
    assert tokenizer.tokens_of(ids) == ["▁", "<0xC3>", "<0xA9>", "▁", "b"]
    generated = [Tokenizer.BOS, *ids[:3], Tokenizer.UNK, *ids[3:], Tokenizer.EOS, Tokenizer.PAD]
    text, spans = tokenizer.spans(generated)
    assert text == "é b"
    assert spans == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 1), (2, 2), (2, 3), (3, 3), (3, 3)]
    assert tokenizer.tokens_of(generated)[0] == "<s>"
    text, spans = tokenizer.spans([ids[1], ids[4]])  # half a character
    assert (text, spans) == ("\ufffdb", [(0, 1), (1, 2)])


def test_offsets_worked_by_hand(tokenizer: Tokenizer) -> None:
    text = "  Ein Mann,  Hut. "
    [encoded] = tokenizer.encode([text])
    pieces = [text[start:end] for start, end in encoded.offsets]
    assert "".join(pieces) == "EinMann,Hut."
    assert pieces[-1] == "."
    assert encoded.tokens[0].startswith("▁")
    assert len(tokenizer.encode([])) == 0


def test_no_token_crosses_from_letters_to_marks_or_between_digits(tokenizer: Tokenizer) -> None:
    for piece in tokenizer._bytes:
        text = piece.decode("utf-8", errors="ignore").removeprefix(" ")
        kinds = {"letter" if unicodedata.category(c)[0] in "LM" else "digit" if c.isdigit() else "mark" for c in text}
        assert len(kinds) <= 1, text
        if kinds == {"digit"}:
            assert len(text) == 1
    [encoded] = tokenizer.encode(["snow."])
    assert encoded.tokens[-1] == "."


def test_special_ids_are_fixed(tokenizer: Tokenizer) -> None:
    assert (Tokenizer.PAD, Tokenizer.BOS, Tokenizer.EOS, Tokenizer.UNK) == (0, 1, 2, 3)
    assert tokenizer.tokens_of([0, 1, 2, 3]) == list(SPECIAL_TOKENS)
    assert len(tokenizer) == 340
    assert len(set(tokenizer._bytes[4:])) == 336


@pytest.mark.parametrize("normalization", ["nfc", "nfkc"])
@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_normalisation_changes_text_as_unicode_says(normalization: str, text: str) -> None:
    tokenizer = _BYTES[normalization]
    [encoded] = tokenizer.encode([text])
    # Newer or older Unicode tables than Python's differ in characters that either does not know.
    if all(unicodedata.category(letter) != "Cn" for letter in text):
        expected = unicodedata.normalize(_FORMS[normalization], text)
        assert tokenizer.decode(encoded.ids).strip() == expected.strip()
    assert all(0 <= start <= end <= len(text) for start, end in encoded.offsets)


_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}
_BYTES = {
    normalization: Tokenizer.train(["a"], TokenizerConfig("bpe", 260, normalization=normalization))
    for normalization in ("nfc", "nfkc")
}


def test_composed_characters_span_all_their_parts() -> None:
    [encoded] = _BYTES["nfc"].encode(["xe\u0301 y"])
    assert encoded.tokens == ["▁", "x", "<0xC3>", "<0xA9>", "▁", "y"]
    assert encoded.offsets == [(0, 0), (0, 1), (1, 3), (1, 3), (4, 4), (4, 5)]
    [encoded] = _BYTES["nfkc"].encode(["…!"])
    assert encoded.tokens == ["▁", ".", ".", ".", "!"]
    assert encoded.offsets == [(0, 0), (0, 1), (0, 1), (0, 1), (1, 2)]


def test_lowercase_is_lost_and_places_are_not() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig("bpe", 300, lowercase=True))
    text = "FÜNF İstanbul"
    [encoded] = tokenizer.encode([text])
    assert tokenizer.decode(encoded.ids) == "fünf i̇stanbul"
    _check_spans(text, encoded.offsets)


@pytest.mark.parametrize("kind", KINDS)
def test_training_repeats_exactly_in_another_process(kind: str) -> None:
    config = TokenizerConfig(kind, 320)  # type: ignore[arg-type]
    here = Tokenizer.train(iter(TEXTS), config).fingerprint()
    program = (
        "import sys, json; from regard.inputs.text import *;"
        f"print(Tokenizer.train(json.load(sys.stdin), TokenizerConfig({kind!r}, 320)).fingerprint())"
    )
    root = Path(__file__).resolve().parents[2]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(TEXTS),
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={"PYTHONPATH": str(root), "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed},
            timeout=120,
        )
        assert done.stdout.strip() == here
    assert Tokenizer.train(TEXTS[1:], config).fingerprint() != here


@pytest.mark.parametrize("kind", KINDS)
def test_too_large_a_vocabulary_says_how_many_there_are(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size is 9000, but 18 texts give only (\d+) subwords; set") as caught:
        Tokenizer.train(TEXTS, TokenizerConfig(kind, 9000))  # type: ignore[arg-type]
    remedy = int(str(caught.value).split(" to ")[1].split()[0])
    assert len(Tokenizer.train(TEXTS, TokenizerConfig(kind, remedy))) == remedy  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Tokenizer.train(TEXTS, TokenizerConfig(kind, remedy + 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_corpora_are_refused(kind: str) -> None:
    config = TokenizerConfig(kind, 300)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="received 0 texts"):
        Tokenizer.train([], config)
    with pytest.raises(DataError, match="received 2 texts without a single character"):
        Tokenizer.train(["", "  \n"], config)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_while_reading_texts_passes_through(kind: str) -> None:
    def texts() -> Iterator[str]:
        yield "fine"
        raise DataError("a.tsv:2: empty source")

    with pytest.raises(DataError, match=r"a\.tsv:2"):
        Tokenizer.train(texts(), TokenizerConfig(kind, 300))  # type: ignore[arg-type]


def test_configuration_mistakes_are_listed_together() -> None:
    with pytest.raises(
        ConfigError, match=r"kind is 'wordpiece'.*vocab_size is 100.*at least 260.*'nfd'.*min_frequency"
    ):
        TokenizerConfig("wordpiece", 100, normalization="nfd", min_frequency=0)  # type: ignore[arg-type]


def test_half_a_surrogate_pair_is_named(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_ids):
        with pytest.raises(DataError, match=r"text 2 has half a surrogate pair, U\+D83D, at character 1"):
            encode(["fine", "x\ud83d"])
        with pytest.raises(TypeError, match="text 1 is a int"):
            encode([5])  # type: ignore[list-item]


def test_saving_and_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    for copy in (Tokenizer.load(path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy == tokenizer
        assert copy.fingerprint() == tokenizer.fingerprint()
        assert copy.config == tokenizer.config
        assert copy.encode(HARD) == tokenizer.encode(HARD)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]
    other = Tokenizer.train(TEXTS, TokenizerConfig("bpe", 300))
    assert other != tokenizer
    assert other.fingerprint() != tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the tokenizer .*give the path"),
        (b"", "damaged tokenizer"),
        (b"\xff\xfe", "damaged tokenizer"),
        (b"[]", "damaged tokenizer"),
        (b'{"format_version": 99}', "format 99, this regard reads up to 1; update"),
        (b'{"format_version": 1, "config": {}, "tokenizer": {}}', "damaged tokenizer"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"tokenizer.json: .*{message}") as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_other_special_ids_is_refused(tokenizer: Tokenizer) -> None:
    content = tokenizer.to_json().replace("<pad>", "<gap>")
    with pytest.raises(ModelFileError, match="id 0 is '<gap>', expected '<pad>'"):
        Tokenizer.from_json(content)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog.", ["The", "dog", "."]),
        ("3,5 or 1.000,25 at 12:30, 7.", ["3,5", "or", "1.000,25", "at", "12:30", ",", "7", "."]),
        ("I don't, I'm O'Brien", ["I", "don't", ",", "I'm", "O'Brien"]),
        ("l'eau qu’il d'hiver aujourd'hui", ["l'", "eau", "qu’", "il", "d'", "hiver", "aujourd'hui"]),
        ("well-known - rock'n'roll", ["well-known", "-", "rock'n'roll"]),
        ("Größe e\u0301te\u0301 (x_1)", ["Größe", "e\u0301te\u0301", "(", "x_1", ")"]),
        ("what?! no... “so”", ["what", "?", "!", "no", "...", "“", "so", "”"]),
        ("B2B 4x4 😀", ["B2B", "4x4", "😀"]),
        ("'quoted'", ["'", "quoted", "'"]),
        ("Привет, мир", ["Привет", ",", "мир"]),
        ("a\u00a0b\u2028c", ["a", "b", "c"]),
        ("  ", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in words(text)] == expected


@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_words_cover_all_but_white_space(text: str) -> None:
    spans = words(text)
    assert spans == sorted(spans)
    covered = [place for start, end in spans for place in range(start, end)]
    assert covered == sorted(set(covered))
    assert all(text[place].isspace() for place in set(range(len(text))) - set(covered))


def test_multi30k_comes_back_whole(shared_data: Path) -> None:
    lines = [
        line
        for language in ("en", "de", "fr", "cs")
        for line in (shared_data / "multi30k" / f"val.{language}").read_text(encoding="utf-8").split("\n")
        if line
    ]
    tokenizer = Tokenizer.train(lines, TokenizerConfig("bpe", 3000))
    ids = tokenizer.encode_ids(lines)
    assert [tokenizer.decode(row) for row in ids] == [line.strip() for line in lines]
    assert sum(map(len, ids)) / sum(len(words(line)) for line in lines) < 1.8
