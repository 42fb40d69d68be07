"""Whole words as tokens, for models that copy: a word that the vocabulary lacks is one token still, and can be copied.

A text is cut into words and marks (`regard.inputs.word_splitting.words`). Words apart are the rule; a token that
stands close to its neighbour says so with a joiner at that side. "He (Anna) said: ok." is
``He  (￭  Anna  ￭)  said  ￭:  ok  ￭.``. A word itself carries a joiner only where it follows another word directly, so
that "Anna" is one and the same token wherever it stands. `decode(encode(text))` gives the text back with every run of
white space as one space; letter case is lost with ``lowercase=True`` for words that the vocabulary has.

An unknown word's id is the size of the vocabulary plus a number made of its letters. Source and target of a record thus
agree on an unknown word without seeing each other, and a corpus keeps such ids like any others; only a model that
copies (`regard.models.copying`) can read them.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from regard.errors import ConfigError, DataError
from regard.inputs.text import SPECIAL_TOKENS, Encoded, Tokenizer
from regard.inputs.tokenizer_json import JsonTokenizer
from regard.inputs.word_splitting import words

JOINER = "￭"  # U+FFED; where a text holds one it is read as the mark below
INSTEAD_OF_JOINER = "■"
NUM_UNKNOWN = 1 << 30  # ids of unknown words: two of a record fall together once in a billion


@dataclass(frozen=True)
class WordTokenizerConfig:
    """Which words a vocabulary takes up: the most frequent ones."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    kind: Literal["words"]
    vocab_size: int  # number of ids at most, with the 4 special ones
    lowercase: bool = False  # fold letter case away; an unknown word that is copied keeps its letters as they are
    min_frequency: int = 1  # a word seen less often is left to be copied

    def __post_init__(self) -> None:
        problems = []
        if self.kind != "words":
            problems.append(f"tokenizer.kind is {self.kind!r}, expected words")
        if self.vocab_size <= len(SPECIAL_TOKENS):
            problems.append(
                f"tokenizer.vocab_size is {self.vocab_size}, expected more than the {len(SPECIAL_TOKENS)} special ids"
            )
        if self.min_frequency < 1:
            problems.append(f"tokenizer.min_frequency is {self.min_frequency}, expected 1 or more")
        if problems:
            raise ConfigError("; ".join(problems))


class WordTokenizer(JsonTokenizer):
    """Text to ids of words and back. The special ids are those of `Tokenizer`."""

    def __init__(self, vocabulary: Sequence[str], config: WordTokenizerConfig) -> None:
        """vocabulary: the tokens with their joiners, special ones first; an id is a place in it."""
        self.config = config
        self._tokens = list(vocabulary)
        self._ids = {token: identity for identity, token in enumerate(self._tokens) if identity >= len(SPECIAL_TOKENS)}

    @classmethod
    def train(cls, texts: Iterable[str], config: WordTokenizerConfig) -> WordTokenizer:
        """The most frequent words of `texts`, equally frequent ones in the order of their letters.

        Raises: DataError without any word.
        """
        counts: Counter[str] = Counter()
        num_texts = 0
        for text in texts:
            num_texts += 1
            counts.update(_folded(token, config) for token, _ in joined_words(text))
        if not counts:
            raise DataError(
                f"tokenizer training: received {num_texts} texts without a single word, expected at least one; check"
                " the data's path and columns"
            )
        frequent = sorted(
            (token for token, count in counts.items() if count >= config.min_frequency),
            key=lambda token: (-counts[token], token),
        )
        return cls([*SPECIAL_TOKENS, *frequent[: config.vocab_size - len(SPECIAL_TOKENS)]], config)

    def __len__(self) -> int:
        """Number of ids in the vocabulary, special ones included."""
        return len(self._tokens)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text's ids, tokens as they stand in the text, and their characters in it, end exclusive."""
        found = []
        for text in texts:
            cut = joined_words(text)
            found.append(
                Encoded(
                    [self._id(token) for token, _ in cut], [_core(token) for token, _ in cut], [at for _, at in cut]
                )
            )
        return found

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of `encode` alone."""
        return [[self._id(token) for token, _ in joined_words(text)] for text in texts]

    def unknown_words(self, text: str) -> dict[int, str]:
        """What `spans` wants to know: the id of each unknown word of `text` -> the word as it first stands there."""
        found: dict[int, str] = {}
        for token, _ in joined_words(text):
            identity = self._id(token)
            if identity >= len(self):
                found.setdefault(identity, token)
        return found

    def decode(self, ids: Sequence[int], unknown: Mapping[int, str] | None = None) -> str:
        """The text of `ids`; see `spans`."""
        return self.spans(ids, unknown)[0]

    def tokens_of(self, ids: Sequence[int], unknown: Mapping[int, str] | None = None) -> list[str]:
        """How each id is displayed: the word without its joiners."""
        return [_core(self._token(identity, unknown or {})) for identity in ids]

    def spans(self, ids: Sequence[int], unknown: Mapping[int, str] | None = None) -> tuple[str, list[tuple[int, int]]]:
        """The text of `ids`, and each id's characters in it, end exclusive.

        unknown: the words that ids beyond the vocabulary stand for, as `unknown_words` gives them; one that is not
        among them, and UNK, read "<unk>". Padding, begin and end have empty spans at their places.
        """
        text, spans = "", []
        close = True  # whether the next token stands close to what is there
        for identity in ids:
            if identity < len(SPECIAL_TOKENS) and identity != Tokenizer.UNK:
                spans.append((len(text), len(text)))
                continue
            token = self._token(identity, unknown or {})
            core = _core(token)
            gap = "" if close or token.startswith(JOINER) else " "
            begin = len(text) + len(gap)
            text += gap + core
            spans.append((begin, begin + len(core)))
            close = token.endswith(JOINER)
        return text, spans

    def content(self) -> dict[str, Any]:
        return {"config": asdict(self.config), "words": self._tokens}

    @classmethod
    def of_content(cls, content: dict[str, Any]) -> WordTokenizer:
        known = {field.name for field in fields(WordTokenizerConfig)}
        config = WordTokenizerConfig(**{key: value for key, value in content["config"].items() if key in known})
        vocabulary = content["words"]
        if tuple(vocabulary[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS or not all(
            isinstance(word, str) for word in vocabulary
        ):
            raise ValueError("its words are not special tokens and text")
        return cls(vocabulary, config)

    def __repr__(self) -> str:
        return f"WordTokenizer({len(self)} ids)"

    def _id(self, token: str) -> int:
        folded = _folded(token, self.config)
        identity = self._ids.get(folded)
        return len(self) + zlib.crc32(folded.encode()) % NUM_UNKNOWN if identity is None else identity

    def _token(self, identity: int, unknown: Mapping[int, str]) -> str:
        if identity < len(self):
            return self._tokens[identity]
        return unknown.get(identity, SPECIAL_TOKENS[Tokenizer.UNK])


def joined_words(text: str) -> list[tuple[str, tuple[int, int]]]:
    """The words and marks of `text` with their joiners, and their characters in it, end exclusive.

    A joiner stands on the mark, whichever side that is; between two words, on the second.
    Raises: DataError for a text that no UTF-8 can hold (half of a surrogate pair).
    """
    try:
        places = words(text)
    except (TypeError, UnicodeEncodeError) as error:
        raise DataError("encoding: received no proper Unicode text; decode it properly first") from error
    pieces = [text[begin:end].replace(JOINER, INSTEAD_OF_JOINER) for begin, end in places]
    is_mark = [not piece[-1].isalnum() and not piece[0].isalnum() for piece in pieces]
    before, after = [""] * len(pieces), [""] * len(pieces)
    for place in range(1, len(pieces)):
        if places[place][0] == places[place - 1][1]:
            if is_mark[place - 1] and not is_mark[place]:
                after[place - 1] = JOINER
            else:
                before[place] = JOINER
    return [(left + piece + right, at) for left, piece, right, at in zip(before, pieces, after, places, strict=True)]


def _core(token: str) -> str:
    return token if token == JOINER else token.removeprefix(JOINER).removesuffix(JOINER)


def _folded(token: str, config: WordTokenizerConfig) -> str:
    return token.lower() if config.lowercase else token
