"""The corpus of ``regard demo summarize``: short reports and their headlines, made, not collected.

A report is a record (a match, a storm, a sale) put into five or six sentences in changing order and wording. Its
headline states two to four facts of the record; everything else in the report is there to be left out: other towns,
other numbers, an earlier result. Every fact knows its characters in the headline and the sentences that state it, and
a headline is right or wrong, which no judgement is needed to say.

What held out means: names of towns, people and firms are made of syllables and divided among training, validation and
held-out reports before a report is made. No name of a held-out report occurs in any other. Numbers are drawn anew for
every report.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Span = tuple[int, int]  # characters: first, one past the last

HELD_OUT_SHARE, VALIDATION_SHARE = 0.15, 0.05  # of the names
NUM_NAMES = 6_000
NAME_ROLES = ("winner", "loser", "scorer", "town", "buyer", "seller")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(" "))


_ONSETS = _words("b br d dr f fl g gr h k kl l m n p pr r s sk st t tr v w z")
_VOWELS = _words("a e i o u ei au")
_CODAS = _words("l n r s m rn ld nd sk rt")
_ENDINGS = _words("holm gate sund by ford wick mar dal stad rup nes ham ow ic er en")

_GIVEN = _words("Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas")
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_GOODS = _words("copper wheat timber steel coffee salt cotton wool")


class Fact(NamedTuple):
    """What a headline says. role: what it is in the record, e.g. "winner". span: its characters in the headline.
    sentences: places of the sentences of the report that state it. is_name: of a town, a person or a firm."""

    role: str
    value: str
    span: Span
    sentences: tuple[int, ...]
    is_name: bool


@dataclass(frozen=True)
class Report:
    """A report and its headline. sentences: their characters in the source. right: every wording of a right headline,
    the target among them."""

    source: str
    target: str
    facts: tuple[Fact, ...]
    sentences: tuple[Span, ...]
    right: frozenset[str]
    kind: str  # "match", "storm" or "sale"


@dataclass(frozen=True)
class DemoCorpus:
    """Three lists that share no name."""

    train: list[Report]
    validation: list[Report]
    held_out: list[Report]


class Statement(NamedTuple):
    """One sentence of a report: its wordings, with fields in braces, and the roles that it states."""

    wordings: tuple[str, ...]
    states: tuple[str, ...] = ()


class Kind(NamedTuple):
    """A kind of record. opening: the first sentence; body: the further ones, of which those that state something are
    always taken; headlines: the wordings."""

    name: str
    opening: Statement
    body: tuple[Statement, ...]
    headlines: tuple[str, ...]


MATCH = Kind(
    "match",
    Statement(
        (
            "{winner} beat {loser} on {day}.",
            "{loser} lost to {winner} on {day}.",
            "On {day} {winner} defeated {loser} at home.",
            "On {day} {loser} were beaten by {winner}.",
        ),
        ("winner", "loser"),
    ),
    (
        Statement(("The final score was {score}.", "It ended {score}.", "The match finished {score}."), ("score",)),
        Statement(
            ("{given} {scorer} scored the first goal.", "The first goal was scored by {given} {scorer}."), ("scorer",)
        ),
        Statement(("At half time it was {half}.", "The score at half time was {half}.")),
        Statement(("{crowd} people watched.", "The crowd counted {crowd}.", "There were {crowd} spectators.")),
        Statement(("The referee was {other} {person}.", "{other} {person} was the referee.")),
        Statement(("Last year {loser} had won by {old}.", "A year ago the result was {old} for {loser}.")),
        Statement(("On {later} {winner} will play {rival}.", "{winner} meet {rival} on {later}.")),
    ),
    (
        "{winner} beat {loser} {score} after first goal by {scorer}",
        "{winner} win {score} against {loser}, {scorer} first to score",
    ),
)
STORM = Kind(
    "storm",
    Statement(
        (
            "A {weather} hit the coast on {day}.",
            "On {day} a {weather} crossed the country.",
            "The {weather} of {day} was the worst for years.",
        ),
        ("weather",),
    ),
    (
        Statement(
            (
                "In {town} {homes} homes lost power.",
                "{homes} homes in {town} were without power.",
                "There was no power in {homes} homes in {town}.",
            ),
            ("homes", "town"),
        ),
        Statement(("In {other_town} {roads} roads were closed.", "{roads} roads near {other_town} were closed.")),
        Statement(
            ("Gusts of {speed} km/h were measured in {third_town}.", "Winds reached {speed} km/h at {third_town}.")
        ),
        Statement(("{other} {person} of the fire service asked people to stay at home.",)),
        Statement(("Ferries to {other_town} stayed in port.", "No ferry sailed to {other_town}.")),
        Statement(("Schools in {third_town} open again on {later}.",)),
    ),
    ("{weather} leaves {homes} homes in {town} without power", "no power in {homes} homes in {town} after {weather}"),
)
SALE = Kind(
    "sale",
    Statement(
        (
            "{seller} has sold {amount} tonnes of {goods} to {buyer}.",
            "{buyer} has bought {amount} tonnes of {goods} from {seller}.",
            "{amount} tonnes of {goods} go from {seller} to {buyer}.",
        ),
        ("seller", "amount", "goods", "buyer"),
    ),
    (
        Statement(
            ("{other} {person} had expected {expected} tonnes.", "Analyst {person} had expected {expected} tonnes.")
        ),
        Statement(("The price was not made known.", "Nobody would say what was paid.")),
        Statement(("Shares of {rival} fell by {percent} percent.", "{rival} lost {percent} percent on the exchange.")),
        Statement(("The ship leaves {town} on {later}.", "On {later} the ship is due in {town}.")),
        Statement(("A year ago {seller} had sold {before} tonnes.", "In the last year it had been {before} tonnes.")),
        Statement(("{given} {person} signed for both sides on {day}.", "It was signed on {day} in {town}.")),
    ),
    ("{seller} sells {amount} tonnes of {goods} to {buyer}", "{seller} delivers {amount} tonnes of {goods} to {buyer}"),
)
KINDS = (MATCH, STORM, SALE)


def make_corpus(
    seed: int, *, num_train: int = 12_000, num_validation: int = 200, num_held_out: int = 600
) -> DemoCorpus:
    """The corpus of a seed; the same for equal arguments."""
    chance = random.Random(seed)
    names = _names(chance)
    ends = [round(len(names) * share) for share in (HELD_OUT_SHARE, HELD_OUT_SHARE + VALIDATION_SHARE)]
    shares = (names[ends[1] :], names[ends[0] : ends[1]], names[: ends[0]])
    counts = (num_train, num_validation, num_held_out)
    return DemoCorpus(
        *([make_report(chance, share) for _ in range(count)] for share, count in zip(shares, counts, strict=True))
    )


def make_report(chance: random.Random, names: Sequence[str]) -> Report:
    """A report whose towns, people and firms are drawn from `names`."""
    kind = chance.choice(KINDS)
    record = _record(chance, names)
    stating = [statement for statement in kind.body if statement.states]
    others = [statement for statement in kind.body if not statement.states]
    body = stating + chance.sample(others, 4 - len(stating) + chance.randint(0, 1))
    chance.shuffle(body)
    opening = [kind.opening]
    if kind is SALE:  # of a sale the first sentence states everything: it may stand anywhere
        body.insert(chance.randint(0, len(body)), kind.opening)
        opening = []
    statements = [*opening, *body]
    texts = [_filled(chance.choice(statement.wordings), record)[0] for statement in statements]
    texts = [text[0].upper() + text[1:] for text in texts]
    source = " ".join(texts)
    begins = [sum(len(text) + 1 for text in texts[:place]) for place in range(len(texts))]
    headlines = [_filled(wording, record) for wording in kind.headlines]
    target, fields = chance.choice(headlines)
    facts = tuple(
        Fact(
            role,
            record[role],
            span,
            tuple(place for place, statement in enumerate(statements) if role in statement.states),
            role in NAME_ROLES,
        )
        for role, span in fields
    )
    return Report(
        source,
        target,
        facts,
        tuple((begin, begin + len(text)) for begin, text in zip(begins, texts, strict=True)),
        frozenset(text for text, _ in headlines),
        kind.name,
    )


def _record(chance: random.Random, names: Sequence[str]) -> dict[str, str]:
    """A value for every field that any wording has; no two of one record are the same name or number."""
    roles = ("winner", "loser", "scorer", "town", "buyer", "seller", "rival", "person", "other_town", "third_town")
    record = dict(zip(roles, chance.sample(names, len(roles)), strict=True))
    record["day"], record["later"] = chance.sample(_DAYS, 2)
    record["given"], record["other"] = chance.sample(_GIVEN, 2)
    lost = chance.randint(0, 3)
    record["score"] = f"{lost + chance.randint(1, 3)}-{lost}"
    record["half"] = f"{chance.randint(0, 1)}-{chance.randint(0, 1)}"
    record["old"] = f"{chance.randint(1, 4)}-0"
    large = chance.sample(range(1_000, 10_000), 5)
    for role, number in zip(("crowd", "homes", "amount", "expected", "before"), large, strict=True):
        record[role] = f"{number:,}"
    record["roads"], record["speed"], record["percent"] = map(str, chance.sample(range(11, 99), 3))
    record["weather"] = chance.choice(("storm", "flood", "blizzard"))
    record["goods"] = chance.choice(_GOODS)
    return record


def _filled(wording: str, record: Mapping[str, str]) -> tuple[str, list[tuple[str, Span]]]:
    """The wording with its fields filled, and each field's role and characters."""
    text, fields, end = "", [], 0
    for field in re.finditer(r"\{(\w+)\}", wording):
        text += wording[end : field.start()]
        fields.append((field[1], (len(text), len(text) + len(record[field[1]]))))
        text += record[field[1]]
        end = field.end()
    return text + wording[end:], fields


def _names(chance: random.Random) -> list[str]:
    """Distinct names of two or three syllables, in random order; none is an ordinary word of the reports."""
    ordinary = {word.lower() for kind in KINDS for word in re.findall(r"\w+", repr(kind))}
    ordinary |= {word.lower() for words in (_GIVEN, _DAYS, _GOODS) for word in words}
    found: dict[str, None] = {}
    while len(found) < NUM_NAMES:
        syllables = [chance.choice(_ONSETS) + chance.choice(_VOWELS) for _ in range(chance.randint(1, 2))]
        syllables.insert(1, chance.choice(_CODAS))
        name = "".join(syllables) + chance.choice(_ENDINGS)
        if name not in ordinary:
            found[name.capitalize()] = None
    return list(found)
