"""The demo corpus: spelling, links by construction, and values that stay apart."""

from __future__ import annotations

import datetime
import itertools
import re
import sys

import pytest
from babel.dates import format_date
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import num2words

from regard.errors import ConfigError, RegardError
from regard.tasks.translate import demo_corpus
from regard.tasks.translate.demo_corpus import (
    FIRST_DAY,
    FRAMES,
    LARGEST_NUMBER,
    LAST_DAY,
    DemoCorpus,
    Language,
    Phrase,
    compose,
    date_parts,
    make_corpus,
    morphemes,
    number_parts,
)

LANGUAGES: tuple[Language, ...] = ("en", "de")
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module", params=SEEDS)
def corpus(request: pytest.FixtureRequest) -> DemoCorpus:
    return make_corpus(request.param, 6_000, 1_009, num_validation=211)


@pytest.mark.parametrize("language", LANGUAGES)
def test_composition_is_num2words_for_every_number(language: Language) -> None:
    for number in range(LARGEST_NUMBER + 1):
        parts = number_parts(number, language)
        assert "".join(part.text for part in parts) == num2words(number, lang=language)


def test_every_number_has_the_same_labels_in_both_languages() -> None:
    for number in range(LARGEST_NUMBER + 1):
        labels = {
            language: [part.label for part in number_parts(number, language) if part.label] for language in LANGUAGES
        }
        assert len(set(labels["en"])) == len(labels["en"]) > 0
        assert sorted(labels["en"]) == sorted(labels["de"])


@given(st.dates(FIRST_DAY, LAST_DAY), st.sampled_from(["full", "long"]), st.sampled_from(LANGUAGES))
@settings(max_examples=300, deadline=None)
def test_dates_are_babels(date: datetime.date, pattern: str, language: Language) -> None:
    parts = date_parts(date, pattern, language)
    assert "".join(part.text for part in parts) == format_date(date, pattern, locale=language)


def frame_with(source: str) -> demo_corpus.Frame:
    [found] = [frame for frame in FRAMES if frame.source == source]
    return found


def linked(phrase: Phrase, kind: str | None = None) -> list[tuple[str, str]]:
    return [
        (phrase.source[slice(*link.source_span)], phrase.target[slice(*link.target_span)])
        for link in phrase.links
        if kind in (None, link.kind)
    ]


def test_a_number_by_hand() -> None:
    phrase = compose(frame_with("we have counted {n} books"), [3423], None)
    assert phrase.source == "we have counted three thousand, four hundred and twenty-three books"
    assert phrase.target == "wir haben dreitausendvierhundertdreiundzwanzig Bücher gezählt"
    assert linked(phrase) == [
        ("three", "drei"),
        ("thousand", "tausend"),
        ("four", "vier"),
        ("hundred", "hundert"),
        ("twenty", "zwanzig"),
        ("three", "drei"),
    ]
    first, *_, last = phrase.links
    assert first.target_span == (10, 14) and last.target_span == (32, 36)
    assert (phrase.kind, phrase.keys) == ("number", (3423,))
    assert {("de", "und"), ("de", "drei"), ("en", "and"), ("en", "twenty")} <= morphemes(phrase)
    assert all("drei" not in piece or piece == "drei" for _, piece in morphemes(phrase))


def test_one_and_teens_by_hand() -> None:
    assert linked(compose(FRAMES[0], [1], None)) == [("one", "eins")]
    assert linked(compose(FRAMES[0], [1111], None)) == [
        ("one", "ein"),
        ("thousand", "tausend"),
        ("one", "ein"),
        ("hundred", "hundert"),
        ("eleven", "elf"),
    ]
    assert linked(compose(FRAMES[0], [101], None))[-1] == ("one", "eins")
    assert linked(compose(FRAMES[0], [81], None)) == [("eighty", "achtzig"), ("one", "ein")]


def test_a_range_keeps_its_numbers_apart() -> None:
    phrase = compose(frame_with("from {n} to {m}"), [23, 32], None)
    assert (phrase.source, phrase.target) == (
        "from twenty-three to thirty-two",
        "von dreiundzwanzig bis zweiunddreißig",
    )
    assert linked(phrase) == [("twenty", "zwanzig"), ("three", "drei"), ("thirty", "dreißig"), ("two", "zwei")]


def test_a_date_by_hand() -> None:
    phrase = compose(frame_with("on {full}"), [], datetime.date(2025, 3, 3))
    assert phrase.source == "on Monday, March 3, 2025"
    assert phrase.target == "am Montag, dem 3. März 2025"
    assert linked(phrase) == [("Monday", "Montag"), ("March", "März"), ("3", "3"), ("2025", "2025")]
    assert [link.kind for link in phrase.links] == ["weekday", "month", "day", "year"]
    assert (phrase.kind, phrase.keys) == ("date", ("2025-03-03",))
    assert linked(phrase, "number") == []


def test_a_number_beside_a_date() -> None:
    phrase = compose(frame_with("on {long} we counted {n} apples"), [21], datetime.date(1999, 12, 7))
    assert phrase.source == "on December 7, 1999 we counted twenty-one apples"
    assert phrase.target == "am 7. Dezember 1999 zählten wir einundzwanzig Äpfel"
    assert phrase.keys == (21, "1999-12-07")
    assert linked(phrase, "number") == [("twenty", "zwanzig"), ("one", "ein")]


@pytest.fixture(scope="module")
def numbers_in_words() -> dict[str, int]:
    return {num2words(number): number for number in range(LARGEST_NUMBER + 1)}


def read_values(source: str, numbers_in_words: dict[str, int]) -> set[int | str]:
    """The numbers and dates of an English phrase, read from its text alone."""
    values: set[int | str] = set()
    for month, day, year in re.findall(r"([A-Z][a-z]+) (\d+), (\d{4})", source):
        values.add(datetime.datetime.strptime(f"{day} {month} {year}", "%d %B %Y").date().isoformat())
    rest = re.sub(r"([A-Z][a-z]+day, )?[A-Z][a-z]+ \d+, \d{4}", "|", source)
    frame_words = r"\b(room|page|number|see|apples|books|letters|we|have|counted|from|to|or|on|until|since)\b"
    for piece in re.split(rf"{frame_words}|\|", rest):
        if (
            piece
            and piece.strip()
            and piece.strip() not in demo_corpus.LABELLED
            and not re.fullmatch(frame_words, piece)
        ):
            values.add(numbers_in_words[piece.strip()])
    return values


def test_held_out_values_occur_nowhere_else(corpus: DemoCorpus, numbers_in_words: dict[str, int]) -> None:
    parts = {"train": corpus.train, "validation": corpus.validation, "held_out": corpus.held_out}
    values = {name: {key for phrase in phrases for key in phrase.keys} for name, phrases in parts.items()}
    read = {
        name: set().union(*(read_values(phrase.source, numbers_in_words) for phrase in phrases))
        for name, phrases in parts.items()
    }
    assert read == values  # the keys say all that the texts say
    assert not values["held_out"] & (values["train"] | values["validation"])
    assert not values["validation"] & values["train"]
    assert all(number in values["train"] | {number} for number in range(21))
    assert not any(key in values["held_out"] for key in range(21))


def test_held_out_phrases_are_made_of_trained_morphemes(corpus: DemoCorpus) -> None:
    known = {piece for phrase in corpus.train for piece in morphemes(phrase)}
    for phrase in corpus.held_out + corpus.validation:
        assert morphemes(phrase) <= known, phrase


def test_sizes_variety_and_no_repetition(corpus: DemoCorpus) -> None:
    for phrases, size in ((corpus.train, 6_000), (corpus.validation, 211), (corpus.held_out, 1_009)):
        assert len(phrases) == size == len({phrase.source for phrase in phrases})
    for phrases in (corpus.train, corpus.held_out):
        assert {phrase.kind for phrase in phrases} == {"number", "range", "date", "number and date"}
        shares = [sum(phrase.kind == kind for phrase in phrases) / len(phrases) for kind in demo_corpus.KIND_WEIGHTS]
        assert shares == pytest.approx([0.5, 0.1, 0.3, 0.1], abs=0.06)
    assert max(len(re.findall(r"\w+", phrase.source)) for phrase in corpus.train) <= 12


def test_links_of_a_corpus_lie_inside_and_apart(corpus: DemoCorpus) -> None:
    pairs = {pair for phrase in corpus.train for pair in linked(phrase, "number")}
    assert len({source for source, _ in pairs}) == len(pairs) - 1  # "one" alone has two German forms, ein and eins
    for phrase in corpus.train + corpus.held_out:
        assert any(link.kind == "number" for link in phrase.links) == (phrase.kind != "date")
        for text, spans in (
            (phrase.source, sorted(link.source_span for link in phrase.links)),
            (phrase.target, sorted(link.target_span for link in phrase.links)),
        ):
            assert all(0 <= first < end <= len(text) for first, end in spans)
            assert all(end <= later for (_, end), (later, _) in itertools.pairwise(spans))


def test_counted_nouns_are_plural_on_both_sides(corpus: DemoCorpus) -> None:
    counted = [phrase for phrase in corpus.train if re.search("apples|books|letters", phrase.source)]
    assert len(counted) > 500
    for phrase in counted:
        number = phrase.keys[0]
        assert isinstance(number, int) and number >= 2 and number % 100 != 1


def test_a_seed_fixes_the_corpus() -> None:
    first, again, other = (make_corpus(seed, 307, 53, num_validation=11) for seed in (5, 5, 6))
    assert first == again
    assert first.train != other.train and first.held_out != other.held_out


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 5), "num_train: received 0, expected at least 1 phrase"),
        ((5, -1), "num_held_out: received -1, expected at least 1 phrase"),
        (
            (1, 20),
            (
                "num_validation: received 500, found only 0 different phrases made of words that the training phrases"
                " contain; lower num_validation or raise num_train"
            ),
        ),
    ],
)
def test_sizes_that_cannot_be_filled(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_corpus(1, *sizes)
    assert str(caught.value) == message


@pytest.mark.parametrize("package", ["num2words", "babel.dates"])
def test_missing_packages_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (demo_corpus._number_words, demo_corpus._calendar_names, demo_corpus._check_spelling):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RegardError) as caught:
        make_corpus(1, 53, 5, num_validation=1)
    assert (
        str(caught.value) == "the translation demo needs the packages babel and num2words: pip install babel num2words"
    )


def test_another_spelling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import num2words as package

    def american(number: int, lang: str) -> str:
        return num2words(number, lang=lang).replace(" and ", " ")

    demo_corpus._check_spelling.cache_clear()
    monkeypatch.setattr(package, "num2words", american)
    with pytest.raises(RegardError) as caught:
        make_corpus(1, 53, 5, num_validation=1)
    assert str(caught.value) == (
        "the demo corpus expects 'one thousand, one hundred and twenty-one' for 1121, the installed num2words writes"
        " 'one thousand, one hundred twenty-one': pip install num2words==0.5.14"
    )
