"""Subword, word and character tokenizers: text to ids and back, with the place of every token in the text.

All kinds work on UTF-8 bytes, so that any text can be encoded and none is lost: an unseen letter, an emoji or a
combining mark becomes several byte tokens. `decode(encode(text))` gives the text back exactly, but for

- white space at either end of the text, which is dropped, but where the tokens are characters;
- letter case, with ``lowercase=True``;
- what Unicode normalisation rewrites, with ``normalization`` other than "none" (NFKC turns U+2026 into three dots).

Before any merge the text is cut into words, single digits, runs of one and the same punctuation mark, and white space;
the one space before a piece belongs to it. No token crosses such a cut: "dog." is always "dog" and ".", and 2025 is
four tokens, so that numbers never seen are read like any other. Characters are cut one from the other.

Source of the two subword models: Sennrich, Haddow and Birch 2016 (byte-pair encoding), Kudo 2018 (unigram).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from regard.errors import ConfigError, DataError
from regard.inputs.byte_letters import NUM_BYTES, byte_of_letter, characters, displayed
from regard.inputs.tokenizer_json import JsonTokenizer
from regard.inputs.unigram import learn_pieces

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # their ids are their places here

# Letters with their marks; one digit; one punctuation mark or symbol repeated; white space. Each takes one space before
# it along. The second branch of white space leaves the last space of several to the word that follows.
_PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}| ?([^\s\p{L}\p{M}\p{N}])\1*|\s+(?!\S)|\s"

_CHARACTERS = r"[\s\S]"


@dataclass(frozen=True)
class TokenizerConfig:
    """What kind of tokens to learn, and how many."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    # "bpe": merges of frequent pairs of bytes. "unigram": the likeliest pieces under a unigram model. "characters":
    # each by itself; of those that take several bytes the frequent ones, the others stay bytes. "whole-words": those
    # that are frequent; others are spelled in bytes. That suits speech of few words, which says no part of one.
    kind: Literal["bpe", "unigram", "characters", "whole-words"]
    # Number of ids, with the 4 special ones and the 256 bytes; of characters and whole words the most there may be.
    vocab_size: int
    lowercase: bool = False  # fold letter case away before anything else; decoding cannot bring it back
    normalization: Literal["none", "nfc", "nfkc"] = "none"  # Unicode normal form; "none" keeps every text as it is
    min_frequency: int = 2  # but for unigram: a pair of bytes (or a word) seen less often is never merged

    def __post_init__(self) -> None:
        problems = []
        smallest = len(SPECIAL_TOKENS) + NUM_BYTES
        if self.kind not in _KINDS:
            *names, last = _KINDS
            problems.append(f"tokenizer.kind is {self.kind!r}, expected {', '.join(names)} or {last}")
        if self.vocab_size < smallest:
            problems.append(
                f"tokenizer.vocab_size is {self.vocab_size}, expected at least {smallest}"
                f" ({len(SPECIAL_TOKENS)} special ids and {NUM_BYTES} bytes)"
            )
        if self.normalization not in ("none", "nfc", "nfkc"):
            problems.append(f"tokenizer.normalization is {self.normalization!r}, expected none, nfc or nfkc")
        if self.min_frequency < 1:
            problems.append(f"tokenizer.min_frequency is {self.min_frequency}, expected 1 or more")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def is_exact(self) -> bool:
        """Whether a text is encoded as it stands, white space at its ends included."""
        return _KINDS[self.kind].is_exact


class Encoded(NamedTuple):
    """One text as tokens. The three lists are equally long; special ids are not among them."""

    ids: list[int]
    tokens: list[str]  # as displayed, see Tokenizer.tokens_of
    offsets: list[tuple[int, int]]  # characters of the original text, end exclusive, without the space before


class Tokenizer(JsonTokenizer):
    """Text to ids and back. Ids 0 to 3 are padding, begin, end and unknown in every tokenizer regard trains."""

    PAD: ClassVar[int] = 0
    BOS: ClassVar[int] = 1
    EOS: ClassVar[int] = 2
    UNK: ClassVar[int] = 3  # never produced by encode: there is a token for every byte

    def __init__(self, inner: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
        self._inner = inner
        self._inner.encode_special_tokens = True  # "</s>" written in a text is four letters, not the end of it
        self.config = config

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
        """Learns the subwords of `texts`, which is read once and need not fit in memory.

        The same texts in the same order and the same configuration give the same tokenizer, on any number of threads.
        Raises: ConfigError when the texts hold fewer subwords than `vocab_size` asks for; DataError without any text.
        """
        inner = tokenizers.Tokenizer(models.BPE())
        inner.normalizer = _normalizer(config)
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_CHARACTERS if config.is_exact else _PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        seen = _Counted(texts)
        kind = _KINDS[config.kind]
        kind.learn(inner, seen, config)
        if not seen.num_characters:
            raise DataError(
                f"tokenizer training: received {seen.num_texts} texts without a single character, expected at least"
                " one text; check the data's path and columns"
            )
        trained = inner.get_vocab_size()
        if trained < config.vocab_size and kind.is_filled:
            raise ConfigError(
                f"tokenizer.vocab_size is {config.vocab_size}, but {seen.num_texts} texts give only {trained} subwords;"
                f" set tokenizer.vocab_size to {trained} or less"
            )
        return cls(inner, config)

    def __len__(self) -> int:
        """Number of ids, special ones included."""
        return self._inner.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text's ids, display tokens and places; see Encoded. An empty text has no tokens.

        Raises: DataError for a text that no UTF-8 can hold (half of a surrogate pair).
        """
        try:
            found = self._inner.encode_batch(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise _unencodable(texts) from error
        return [self._encoded(text, encoding) for text, encoding in zip(texts, found, strict=True)]

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of `encode` alone, several times faster."""
        try:
            found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise _unencodable(texts) from error
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Special ids are skipped wherever they stand; bytes that form no character give U+FFFD."""
        return self.spans(ids)[0]

    def tokens_of(self, ids: Sequence[int]) -> list[str]:
        """How each id is displayed: "▁" for a space, "<0xC3>" for a byte that is no character by itself."""
        return [self._display[identity] for identity in ids]

    def spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The decoded text, and each id's characters in it (end exclusive, without the white space before).

        Several ids that form one character together each span the whole of it. A special id has an empty span at its
        place. This is what lines attention up with generated text.
        """
        pieces = [self._bytes[identity] for identity in ids]
        text, character_of = characters(b"".join(pieces))
        # encode puts one space before every text that is cut into subwords; it is no part of it.
        dropped = 1 if text.startswith(" ") and not self.config.is_exact else 0
        text = text[dropped:]
        spans = []
        position = 0
        for piece in pieces:
            if piece:
                start = max(character_of[position] - dropped, 0)
                position += len(piece)
                end = max(character_of[position - 1] + 1 - dropped, 0)
            else:
                start = end = max(character_of[position - 1] + 1 - dropped, 0) if position else 0
            spans.append((start, end) if self.config.is_exact else _without_leading_space(text, start, end))
        return text, spans

    def content(self) -> dict[str, Any]:
        return {"config": asdict(self.config), "tokenizer": json.loads(self._inner.to_str())}

    @classmethod
    def of_content(cls, content: dict[str, Any]) -> Tokenizer:
        inner = tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"], ensure_ascii=False))
        known = {field.name for field in fields(TokenizerConfig)}
        config = TokenizerConfig(**{key: value for key, value in content["config"].items() if key in known})
        for identity, token in enumerate(SPECIAL_TOKENS):
            if inner.id_to_token(identity) != token:
                raise ValueError(f"id {identity} is {inner.id_to_token(identity)!r}, expected {token!r}")
        return cls(inner, config)

    def __repr__(self) -> str:
        return f"Tokenizer({self.config.kind}, {len(self)} ids)"

    def _encoded(self, text: str, found: tokenizers.Encoding) -> Encoded:
        offsets = found.offsets
        if self.config.normalization != "none":
            offsets = _with_composed(text, offsets)
        if self.config.is_exact:
            return Encoded(found.ids, self.tokens_of(found.ids), list(offsets))
        spans = [_without_leading_space(text, start, end) for start, end in offsets]
        if spans and self._bytes[found.ids[0]] == b" ":
            spans[0] = (offsets[0][0], offsets[0][0])  # the space put before the text alone, which is not in it
        return Encoded(found.ids, self.tokens_of(found.ids), spans)

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes each id stands for; none for a special id."""
        letters = byte_of_letter()
        pieces = [b""] * len(self)
        for piece, identity in self._inner.get_vocab().items():
            if identity >= len(SPECIAL_TOKENS):
                pieces[identity] = bytes(letters[letter] for letter in piece)
        return pieces

    @cached_property
    def _display(self) -> list[str]:
        return [*SPECIAL_TOKENS, *(displayed(piece) for piece in self._bytes[len(SPECIAL_TOKENS) :])]


class _Counted:
    """Passes texts on and counts them, so that an empty corpus is seen although it is streamed."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.num_texts = 0
        self.num_characters = 0  # without outer white space

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.num_texts += 1
            self.num_characters += len(text.strip())
            yield text


def _normalizer(config: TokenizerConfig) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if config.normalization != "none":
        steps.append(normalizers.NFC() if config.normalization == "nfc" else normalizers.NFKC())
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    if config.is_exact:
        return normalizers.Sequence(steps)
    # The space put first makes a word the same token at the start of a text as inside it.
    return normalizers.Sequence([*steps, normalizers.Strip(), normalizers.Prepend(" ")])


def _word_counts(inner: tokenizers.Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each of the words that `inner` cuts `texts` into occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(text)))
    return counts


def _learn_merges(inner: tokenizers.Tokenizer, texts: Iterable[str], config: TokenizerConfig) -> None:
    """Byte pairs; of texts that are cut into characters, the bytes of each character."""
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(byte_of_letter()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)


def _learn_unigram(inner: tokenizers.Tokenizer, texts: Iterable[str], config: TokenizerConfig) -> None:
    letters = byte_of_letter()
    later_bytes = [letter for letter, byte in letters.items() if 0x80 <= byte < 0xC0]
    counts = _word_counts(inner, texts)
    pieces = learn_pieces(counts, config.vocab_size - len(SPECIAL_TOKENS), letters=letters, inside=later_bytes)
    # Few enough digits that reading them back from JSON gives the same number.
    scored = [(piece, round(score, 6)) for piece, score in pieces]
    inner.model = models.Unigram([*((token, 0.0) for token in SPECIAL_TOKENS), *scored], Tokenizer.UNK)


def _learn_words(inner: tokenizers.Tokenizer, texts: Iterable[str], config: TokenizerConfig) -> None:
    """Byte pairs without any merge, in which the frequent words of `texts` are whole; ties in the order of letters."""
    pieces = [*SPECIAL_TOKENS, *sorted(byte_of_letter())]
    known = set(pieces)
    for word, count in sorted(_word_counts(inner, texts).items(), key=lambda item: (-item[1], item[0])):
        if len(pieces) < config.vocab_size and count >= config.min_frequency and word not in known:
            pieces.append(word)
    inner.model = models.BPE({piece: place for place, piece in enumerate(pieces)}, [], ignore_merges=True)


class _Kind(NamedTuple):
    """learn: gives a tokenizer, which normalises and cuts already, its model. is_exact: see `TokenizerConfig.is_exact`;
    texts are then cut into characters. is_filled: whether the vocabulary must be as large as was asked for."""

    learn: Callable[[tokenizers.Tokenizer, Iterable[str], TokenizerConfig], None]
    is_exact: bool
    is_filled: bool


_KINDS = {
    "bpe": _Kind(_learn_merges, is_exact=False, is_filled=True),
    "unigram": _Kind(_learn_unigram, is_exact=False, is_filled=True),
    "characters": _Kind(_learn_merges, is_exact=True, is_filled=False),
    "whole-words": _Kind(_learn_words, is_exact=False, is_filled=False),
}


def _with_composed(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """`offsets` with what normalisation composed into a token's last character, which tokenizers leaves out."""
    extended = []
    following = begin = len(text)  # where the next tokens begin: those elsewhere than this one, those at one place
    for start, end in reversed(offsets):
        if start != begin:
            following, begin = begin, start
        while end < following and not text[end].isspace():
            end += 1
        extended.append((start, end))
    return extended[::-1]


def _unencodable(texts: Sequence[str]) -> Exception:
    """The error for the first of `texts` that is no proper text."""
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            return TypeError(f"encoding: text {number} is a {type(text).__name__}, expected str")
        place = next((place for place, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
        if place is not None:
            return DataError(
                f"encoding: text {number} has half a surrogate pair, U+{ord(text[place]):04X}, at character {place};"
                " expected Unicode text; decode it properly first"
            )
    return TypeError("encoding: received something else than a sequence of str")


def _without_leading_space(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    return start, end
