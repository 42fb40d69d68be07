"""The corpus of ``regard demo translate``: English to German phrases about numbers and dates, made, not collected.

The spellings come from num2words, the names and the order of dates from the locale data in babel, and both are put
into a few short frames. What makes it worth translating:

- German turns tens and units round and writes one word: "twenty-three" becomes "dreiundzwanzig";
- dates change their order and their frame: "on Monday, March 3, 2025" becomes "am Montag, dem 3. März 2025";
- verbs move: "we have counted four books" becomes "wir haben vier Bücher gezählt".

Every phrase knows which characters of its source and target mean the same (`Link`): both sides are composed of the
same labelled parts, and a link is a label that stands on both. Nothing is found by comparing strings.

What held out means: numbers and dates are divided among training, validation and held-out *by value* before a phrase is
made, and a phrase draws all its values from one share. No number in words and no full date of a held-out phrase
occurs in any training or validation phrase, in whatever frame. A value is the whole number ("four hundred and
twenty-three") or the whole date; the morphemes of a held-out number (four, hundred, twenty, three) are seen in
training, also as parts of larger numbers, and so are the weekday, month, day and year of a held-out date. Days and
years are written in digits and are not numbers in this sense.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import itertools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, NamedTuple, TypeVar

from regard.errors import ConfigError, RegardError

Value = TypeVar("Value")
Language = Literal["en", "de"]
Span = tuple[int, int]  # characters: first, one past the last

LARGEST_NUMBER = 9_999
FIRST_DAY, LAST_DAY = datetime.date(1980, 1, 1), datetime.date(2029, 12, 31)
HELD_OUT_SHARE, VALIDATION_SHARE = 0.15, 0.05  # of the numbers of each size, and of the dates

# Words that num2words writes inside longer numbers; `_check_spelling` holds them to it.
HUNDRED = {"en": "hundred", "de": "hundert"}
THOUSAND = {"en": "thousand", "de": "tausend"}
GERMAN_ONE_INSIDE = "ein"  # "eins" alone or last, "ein" before und, hundert and tausend


class Link(NamedTuple):
    """Characters of the source and of the target that mean the same."""

    source_span: Span
    target_span: Span
    kind: str  # "number" (one morpheme of a number in words), "weekday", "month", "day" or "year"


@dataclass(frozen=True)
class Phrase:
    """An English phrase and its German translation."""

    source: str
    target: str
    links: tuple[Link, ...]  # in source order; function words (and, und, dem) and nouns have none
    kind: str  # "number", "range" (two numbers), "date" or "number and date"
    keys: tuple[int | str, ...]  # the values it speaks of: whole numbers, and dates as YYYY-MM-DD


@dataclass(frozen=True)
class DemoCorpus:
    """Three lists that share no number and no date, each free of repeated sources."""

    train: list[Phrase]
    validation: list[Phrase]
    held_out: list[Phrase]


class Part(NamedTuple):
    """A piece of text; the label, where there is one, names what it means, alike in both languages."""

    text: str
    label: str = ""  # "kind:what", unique within one number or date


def number_parts(number: int, language: Language) -> list[Part]:
    """A whole number from 0 to 9,999 in words, as num2words spells it, in labelled parts.

    Each morpheme is a part: a digit before hundred or thousand, those words themselves, tens, units. Numbers below
    twenty have one morpheme. "and", "und", spaces, commas and hyphens carry no label.
    """
    assert 0 <= number <= LARGEST_NUMBER, number
    below_twenty, tens = _number_words(language)
    german = language == "de"
    gap = "" if german else " "

    def digit(value: int) -> str:
        return GERMAN_ONE_INSIDE if german and value == 1 else below_twenty[value]

    parts: list[Part] = []
    thousands, hundreds, rest = number // 1000, number // 100 % 10, number % 100
    if thousands:
        parts += [Part(digit(thousands), "number:thousands"), Part(gap), Part(THOUSAND[language], "number:thousand")]
    if hundreds:
        if thousands:
            parts.append(Part("" if german else ", "))
        parts += [Part(digit(hundreds), "number:hundreds"), Part(gap), Part(HUNDRED[language], "number:hundred")]
    if rest or not parts:
        if parts:
            parts.append(Part("" if german else " and "))
        if rest < 20:
            parts.append(Part(below_twenty[rest], "number:units"))
        elif rest % 10 == 0:
            parts.append(Part(tens[rest // 10], "number:tens"))
        elif german:
            parts += [Part(digit(rest % 10), "number:units"), Part("und"), Part(tens[rest // 10], "number:tens")]
        else:
            parts += [Part(tens[rest // 10], "number:tens"), Part("-"), Part(digit(rest % 10), "number:units")]
    return [part for part in parts if part.text]


def date_parts(date: datetime.date, pattern: str, language: Language) -> list[Part]:
    """A date in labelled parts. pattern: "full" (with weekday) or "long", as babel's locale data has them, or
    "weekday", its name alone."""
    weekdays, months = _calendar_names(language)
    fields = {
        "EEEE": Part(weekdays[date.weekday()], "weekday:name"),
        "MMMM": Part(months[date.month], "month:name"),
        "d": Part(str(date.day), "day:number"),
        "y": Part(str(date.year), "year:number"),
    }
    return [fields.get(piece, Part(piece)) for piece in _date_pattern(pattern, language)]


class Frame(NamedTuple):
    """A pair of sentences with slots: {n} and {m} numbers; {full}, {long} and {weekday} forms of one date."""

    source: str
    target: str
    kind: str
    counts: bool = False  # the number stands before a plural noun
    ascending: bool = False  # the first number is the smaller


# Few nouns: a small subword vocabulary should go to the morphemes of numbers and dates.
LABELLED = {"room": "Zimmer", "page": "Seite", "number": "Nummer"}
COUNTED = {"apples": "Äpfel", "books": "Bücher", "letters": "Briefe"}

FRAMES: tuple[Frame, ...] = (
    Frame("{n}", "{n}", "number"),
    *(Frame(f"{en} {{n}}", f"{de} {{n}}", "number") for en, de in LABELLED.items()),
    *(Frame(f"see {en} {{n}}", f"siehe {de} {{n}}", "number") for en, de in LABELLED.items()),
    *(Frame(f"{{n}} {en}", f"{{n}} {de}", "number", counts=True) for en, de in COUNTED.items()),
    *(
        Frame(f"we have counted {{n}} {en}", f"wir haben {{n}} {de} gezählt", "number", counts=True)
        for en, de in COUNTED.items()
    ),
    Frame("from {n} to {m}", "von {n} bis {m}", "range", ascending=True),
    Frame("{n} or {m}", "{n} oder {m}", "range"),
    Frame("{full}", "{full}", "date"),
    Frame("{long}", "{long}", "date"),
    Frame("on {long}", "am {long}", "date"),
    Frame("on {full}", "am {weekday}, dem {long}", "date"),
    Frame("until {long}", "bis zum {long}", "date"),
    Frame("since {long}", "seit dem {long}", "date"),
    *(Frame(f"{en} {{n}} on {{long}}", f"{de} {{n}} am {{long}}", "number and date") for en, de in LABELLED.items()),
    *(
        Frame(
            f"on {{long}} we counted {{n}} {en}", f"am {{long}} zählten wir {{n}} {de}", "number and date", counts=True
        )
        for en, de in COUNTED.items()
    ),
)

KIND_WEIGHTS = {"number": 50, "range": 10, "date": 30, "number and date": 10}  # per cent of the phrases
SIZE_LIMITS = (100, 1_000, LARGEST_NUMBER + 1)  # numbers are divided and drawn by size: each is below its limit
SIZE_WEIGHTS = (15, 45, 40)  # per cent of the numbers that stand in a phrase of their own
SHORT_SIZE_WEIGHTS = (40, 60)  # beside another number or a date only those below 1,000, which keeps sources short


def compose(frame: Frame, numbers: Sequence[int], date: datetime.date | None) -> Phrase:
    """The phrase that a frame makes of its values: as many numbers, and a date, as it has slots for."""
    values = dict(zip(("n", "m"), numbers, strict=False))
    source, marks = _lay_out(frame.source, values, date, "en")
    target, target_marks = _lay_out(frame.target, values, date, "de")
    links = tuple(
        Link(span, target_marks[label], label.split(":")[1]) for label, span in marks.items() if label in target_marks
    )
    keys: tuple[int | str, ...] = tuple(numbers)
    return Phrase(source, target, links, frame.kind, keys if date is None else (*keys, date.isoformat()))


def _lay_out(
    template: str, numbers: dict[str, int], date: datetime.date | None, language: Language
) -> tuple[str, dict[str, Span]]:
    """The text, and the span of each label; a label is headed by its slot, since two numbers may share labels."""
    text = ""
    marks: dict[str, Span] = {}
    for piece in _template_pieces(template):
        if not piece.startswith("{"):
            slot, parts = "", [Part(piece)]
        elif piece[1:-1] in numbers:
            slot, parts = piece[1:-1], number_parts(numbers[piece[1:-1]], language)
        else:
            assert date is not None, template
            slot, parts = "date", date_parts(date, piece[1:-1], language)
        for part in parts:
            if part.label:
                marks[f"{slot}:{part.label}"] = (len(text), len(text) + len(part.text))
            text += part.text
    return text, marks


def morphemes(phrase: Phrase) -> set[tuple[Language, str]]:
    """The pieces a phrase is made of, by language: its words, and number words cut at the edges of their links."""
    found: set[tuple[Language, str]] = set()
    sides: tuple[tuple[Language, str, list[Span]], ...] = (
        ("en", phrase.source, [link.source_span for link in phrase.links]),
        ("de", phrase.target, [link.target_span for link in phrase.links]),
    )
    for language, text, spans in sides:
        edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
        for first, end in itertools.pairwise(edges):
            found.update((language, piece) for piece in re.findall(r"\w+", text[first:end]))
    return found


def make_corpus(
    seed: int, num_train: int = 12_000, num_held_out: int = 1_200, *, num_validation: int = 500
) -> DemoCorpus:
    """The corpus of a seed; the same seed and sizes make the same phrases, in the same order.

    Training, validation and held-out phrases share no number and no date (see the head of this file for what that
    means). 0 to 20 and the round tens are always for training, so no list lacks the words themselves. Every validation
    and held-out phrase consists of morphemes (see `morphemes`) that occur in training phrases.

    Raises: ConfigError for sizes below 1 or beyond what the frames and values can fill without repeating; RegardError
        when babel or num2words is missing or spells numbers otherwise.
    """
    sizes = {"train": num_train, "validation": num_validation, "held_out": num_held_out}
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"num_{name}: received {size}, expected at least 1 phrase")
    _check_spelling()
    generator = random.Random(seed)
    numbers: dict[str, list[list[int]]] = {name: [] for name in sizes}
    for low, high in itertools.pairwise((0, *SIZE_LIMITS)):
        always = [number for number in range(low, high) if number <= 20 or (number < 100 and number % 10 == 0)]
        shares = _divide(sorted(set(range(low, high)).difference(always)), generator)
        for name, share in shares.items():
            numbers[name].append(always + share if name == "train" else share)
    num_days = (LAST_DAY - FIRST_DAY).days + 1
    dates = _divide([FIRST_DAY + datetime.timedelta(days=day) for day in range(num_days)], generator)

    train = _draw_phrases("train", num_train, numbers["train"], dates["train"], generator, known=None)
    known = {piece for phrase in train for piece in morphemes(phrase)}
    return DemoCorpus(
        train=train,
        validation=_draw_phrases(
            "validation", num_validation, numbers["validation"], dates["validation"], generator, known=known
        ),
        held_out=_draw_phrases(
            "held_out", num_held_out, numbers["held_out"], dates["held_out"], generator, known=known
        ),
    )


def _divide(values: list[Value], generator: random.Random) -> dict[str, list[Value]]:
    """The values in three shares that have none in common."""
    shuffled = generator.sample(values, len(values))
    num_held_out, num_validation = round(len(values) * HELD_OUT_SHARE), round(len(values) * VALIDATION_SHARE)
    return {
        "held_out": shuffled[:num_held_out],
        "validation": shuffled[num_held_out : num_held_out + num_validation],
        "train": shuffled[num_held_out + num_validation :],
    }


def _draw_phrases(
    name: str,
    num_phrases: int,
    numbers: list[list[int]],
    dates: list[datetime.date],
    generator: random.Random,
    *,
    known: set[tuple[Language, str]] | None,
) -> list[Phrase]:
    """Distinct phrases over these values, of known morphemes only where a set is given."""
    phrases: dict[str, Phrase] = {}
    kinds, weights = list(KIND_WEIGHTS), list(KIND_WEIGHTS.values())
    for _ in range(30 * num_phrases + 1_000):  # ends the search where the possible phrases run out
        kind = generator.choices(kinds, weights)[0]
        frame = generator.choice(_frames_of(kind))
        num_numbers = {"number": 1, "range": 2, "date": 0, "number and date": 1}[kind]
        by_size = SIZE_WEIGHTS if kind == "number" else SHORT_SIZE_WEIGHTS
        drawn = [generator.choice(generator.choices(numbers[: len(by_size)], by_size)[0]) for _ in range(num_numbers)]
        date = generator.choice(dates) if kind in ("date", "number and date") else None
        if len(set(drawn)) < num_numbers:
            continue
        # "one hundred and one apples" splits German usage, and one apple is no plural
        if frame.counts and (drawn[0] == 0 or drawn[0] % 100 == 1):
            continue
        phrase = compose(frame, sorted(drawn) if frame.ascending else drawn, date)
        if known is None or morphemes(phrase) <= known:
            phrases.setdefault(phrase.source, phrase)
        if len(phrases) == num_phrases:
            return list(phrases.values())
    of_what = "" if known is None else " made of words that the training phrases contain"
    remedy = f"lower num_{name}" if known is None else f"lower num_{name} or raise num_train"
    raise ConfigError(
        f"num_{name}: received {num_phrases}, found only {len(phrases)} different phrases{of_what}; {remedy}"
    )


@functools.cache
def _frames_of(kind: str) -> tuple[Frame, ...]:
    return tuple(frame for frame in FRAMES if frame.kind == kind)


@functools.cache
def _template_pieces(template: str) -> tuple[str, ...]:
    """Slots with their braces, and the text between them."""
    return tuple(piece for piece in re.split(r"(\{\w+\})", template) if piece)


@functools.cache
def _number_words(language: Language) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words for 0 to 19, and for 0, 10, ... 90 by their tens digit, from num2words."""
    num2words = _require("num2words").num2words
    return (
        tuple(num2words(number, lang=language) for number in range(20)),
        tuple(num2words(10 * digit, lang=language) for digit in range(10)),
    )


@functools.cache
def _check_spelling() -> None:
    """Hold the composition to num2words where every joint occurs; another version of it might spell otherwise."""
    num2words = _require("num2words").num2words
    languages: tuple[Language, ...] = ("en", "de")
    for language in languages:
        for number in (1_121, 3_001, 4_000, 5_671, 9_110):
            composed, spelled = _text(number_parts(number, language)), num2words(number, lang=language)
            if composed != spelled:
                raise RegardError(
                    f"the demo corpus expects {composed!r} for {number}, the installed num2words writes {spelled!r}:"
                    " pip install num2words==0.5.14"
                )


@functools.cache
def _calendar_names(language: Language) -> tuple[dict[int, str], dict[int, str]]:
    """Weekday names from 0 for Monday, month names from 1 for January, from babel."""
    dates = _require("babel.dates")
    return dict(dates.get_day_names("wide", locale=language)), dict(dates.get_month_names("wide", locale=language))


@functools.cache
def _date_pattern(pattern: str, language: Language) -> tuple[str, ...]:
    """A pattern of the locale data in pieces: runs of one letter are fields, all else is text."""
    if pattern == "weekday":
        return ("EEEE",)
    written = _require("babel.dates").get_date_format(pattern, locale=language).pattern
    pieces = tuple(re.findall(r"E+|M+|d+|y+|[^EMdy]+", written))
    unknown = [piece for piece in pieces if piece[0] in "EMdy" and piece not in ("EEEE", "MMMM", "d", "y")]
    if unknown or "'" in written:
        raise RegardError(
            f"the demo corpus cannot read babel's {pattern} date pattern {written!r} for {language!r}:"
            " pip install babel==2.18.0"
        )
    return pieces


def _text(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts)


def _require(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RegardError(
            "the translation demo needs the packages babel and num2words: pip install babel num2words"
        ) from error
