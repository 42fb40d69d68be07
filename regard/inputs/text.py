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

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from regard.errors import ConfigError, DataError, ModelFileError
from regard.inputs.unigram import learn_pieces

FORMAT_VERSION = 1
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # their ids are their places here
NUM_BYTES = 256  # every byte is a token, so that no text is unknown

# Letters with their marks; one digit; one punctuation mark or symbol repeated; white space. Each takes one space before
# it along. The second branch of white space leaves the last space of several to the word that follows.
_PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}| ?([^\s\p{L}\p{M}\p{N}])\1*|\s+(?!\S)|\s"

_CHARACTERS = r"[\s\S]"

# Numbers with inner separators; French elision before a vowel ("l'" of "l'eau"); words with inner apostrophes and
# hyphens; one mark or symbol repeated.
_WORDS = (
    r"\p{N}+(?:[.,:]\p{N}+)+"
    r"|(?<![\p{L}\p{M}\p{N}_])(?i:[cdjlmnst]|qu|jusqu|lorsqu|puisqu)['’](?=[aàâeéèêëhiîïoôuùûyœæAÀÂEÉÈÊËHIÎÏOÔUÙÛYŒÆ])"
    r"|[\p{L}\p{M}\p{N}_]+(?:['’\-][\p{L}\p{M}\p{N}_]+)*"
    r"|([^\s\p{L}\p{M}\p{N}_])\1*"
)


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
        if self.kind not in ("bpe", "unigram", "characters", "whole-words"):
            problems.append(f"tokenizer.kind is {self.kind!r}, expected bpe, unigram, characters or whole-words")
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
        return self.kind == "characters"


class Encoded(NamedTuple):
    """One text as tokens. The three lists are equally long; special ids are not among them."""

    ids: list[int]
    tokens: list[str]  # as displayed, see Tokenizer.tokens_of
    offsets: list[tuple[int, int]]  # characters of the original text, end exclusive, without the space before


class Tokenizer:
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
        if config.kind == "whole-words":
            inner.model = _word_model(inner, seen, config)
        elif config.kind != "unigram":
            trainer = trainers.BpeTrainer(
                vocab_size=config.vocab_size,
                min_frequency=config.min_frequency,
                special_tokens=list(SPECIAL_TOKENS),
                initial_alphabet=sorted(_byte_of_letter()),
                show_progress=False,
            )
            inner.train_from_iterator(seen, trainer)
        else:
            inner.model = _unigram_model(inner, seen, config.vocab_size)
        if not seen.num_characters:
            raise DataError(
                f"tokenizer training: received {seen.num_texts} texts without a single character, expected at least"
                " one text; check the data's path and columns"
            )
        trained = inner.get_vocab_size()
        if trained < config.vocab_size and config.kind not in ("characters", "whole-words"):
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
        text, character_of = _characters(b"".join(pieces))
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

    def to_json(self) -> str:
        """Everything needed to build this tokenizer again, as one JSON object."""
        content = {
            "format_version": FORMAT_VERSION,
            "config": asdict(self.config),
            "tokenizer": json.loads(self._inner.to_str()),
        }
        return json.dumps(content, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, content: str, *, name: str = "tokenizer") -> Tokenizer:
        """The tokenizer that `to_json` described; `name` is what error messages call it.

        Raises: ModelFileError when `content` is damaged or of a newer format.
        """
        try:
            parsed = json.loads(content)
            version = parsed["format_version"]
            if version == FORMAT_VERSION:
                inner = tokenizers.Tokenizer.from_str(json.dumps(parsed["tokenizer"], ensure_ascii=False))
                known = {field.name for field in fields(TokenizerConfig)}
                config = TokenizerConfig(**{key: value for key, value in parsed["config"].items() if key in known})
                for identity, token in enumerate(SPECIAL_TOKENS):
                    if inner.id_to_token(identity) != token:
                        raise ValueError(f"id {identity} is {inner.id_to_token(identity)!r}, expected {token!r}")
                return cls(inner, config)
        except Exception as error:  # tokenizers raises plain Exception for what it cannot parse
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(
                f"{name}: damaged tokenizer ({type(error).__name__}: {reason}), expected a file regard wrote;"
                " copy it again or train anew"
            ) from error
        raise ModelFileError(
            f"{name}: tokenizer format {version!r}, this regard reads up to {FORMAT_VERSION}; update regard"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to `path`, whole or not at all."""
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(self.to_json(), encoding="utf-8")
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer saved at `path`. Raises: ModelFileError when it is missing or damaged."""
        try:
            content = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{path}: damaged tokenizer ({error}), expected UTF-8 text; copy it again or train anew"
            ) from error
        except OSError as error:
            raise ModelFileError(
                f"{path}: cannot read the tokenizer ({error.strerror}); give the path of a file that Tokenizer.save"
                " wrote"
            ) from error
        return cls.from_json(content, name=str(path))

    def fingerprint(self) -> str:
        """SHA-256 of `to_json`, in hexadecimal: equal exactly when two tokenizers are."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __reduce__(self) -> tuple[Any, ...]:
        return (Tokenizer.from_json, (self.to_json(),))

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
        letters = _byte_of_letter()
        pieces = [b""] * len(self)
        for piece, identity in self._inner.get_vocab().items():
            if identity >= len(SPECIAL_TOKENS):
                pieces[identity] = bytes(letters[letter] for letter in piece)
        return pieces

    @cached_property
    def _display(self) -> list[str]:
        return [*SPECIAL_TOKENS, *(_displayed(piece) for piece in self._bytes[len(SPECIAL_TOKENS) :])]


def words(text: str) -> list[tuple[int, int]]:
    """Character spans of the words and marks of `text`, end exclusive, in order.

    "dog." is two, "3,5" and "12:30" one, "well-known" and "don't" one. A French article or pronoun elided before a
    vowel is its own word ("l'" and "eau"). A mark repeated is one ("..."). White space is in no span. Writing without
    spaces (Chinese, Thai) is not cut into words.
    """
    return [span for _, span in _word_splitter.pre_tokenize_str(text)]


_word_splitter = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)


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


def _unigram_model(inner: tokenizers.Tokenizer, texts: Iterable[str], vocab_size: int) -> models.Unigram:
    """Learnt from the words that `inner` cuts `texts` into."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(text)))
    letters = _byte_of_letter()
    later_bytes = [letter for letter, byte in letters.items() if 0x80 <= byte < 0xC0]
    pieces = learn_pieces(words, vocab_size - len(SPECIAL_TOKENS), letters=letters, inside=later_bytes)
    # Few enough digits that reading them back from JSON gives the same number.
    scored = [(piece, round(score, 6)) for piece, score in pieces]
    return models.Unigram([*((token, 0.0) for token in SPECIAL_TOKENS), *scored], Tokenizer.UNK)


def _word_model(inner: tokenizers.Tokenizer, texts: Iterable[str], config: TokenizerConfig) -> models.BPE:
    """Byte pairs without any merge, in which the frequent words of `texts` are whole; ties in the order of letters."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(text)))
    pieces = [*SPECIAL_TOKENS, *sorted(_byte_of_letter())]
    known = set(pieces)
    for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if len(pieces) < config.vocab_size and count >= config.min_frequency and word not in known:
            pieces.append(word)
    return models.BPE({piece: place for place, piece in enumerate(pieces)}, [], ignore_merges=True)


def _byte_of_letter() -> dict[str, int]:
    """The byte behind each letter of the byte-level alphabet: printable bytes stand for themselves, the rest follow
    from U+0100 on (Radford et al. 2019, the alphabet of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(NUM_BYTES) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}


def _characters(data: bytes) -> tuple[str, list[int]]:
    """`data` as text with U+FFFD for what is no UTF-8, and for every byte the index of the character it is in."""
    parts: list[str] = []
    character_of: list[int] = []
    start = num_characters = 0
    while start < len(data):
        try:
            good, bad_end = data[start:].decode("utf-8"), len(data)
            bad_start = bad_end
        except UnicodeDecodeError as error:
            bad_start, bad_end = start + error.start, start + error.end
            good = data[start:bad_start].decode("utf-8")
        for character in good:
            character_of += [num_characters] * len(character.encode("utf-8"))
            num_characters += 1
        parts.append(good)
        if bad_start < bad_end:
            character_of += [num_characters] * (bad_end - bad_start)
            num_characters += 1
            parts.append("\ufffd")
        start = bad_end
    return "".join(parts), character_of


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


def _displayed(piece: bytes) -> str:
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(_displayed_byte(byte) for byte in piece)
    return "".join(
        "▁" if letter == " " else letter if unicodedata.category(letter)[0] != "C" else repr(letter)[1:-1]
        for letter in text
    )


def _displayed_byte(byte: int) -> str:
    return "▁" if byte == 0x20 else chr(byte) if 0x21 <= byte < 0x7F else f"<0x{byte:02X}>"
