"""What needs no model: scores of a document's first words, and how many summaries stand in their documents.

    python recipes/summarize/baselines.py "{path: test.tsv, columns: {source: body, target: subject}}" [--train SPEC]

Prints, over every record: ROUGE-1, -2 and -L of the first eight words of each document; the share of summaries that
stand in their document as they are, and the scores of writing exactly those and nothing otherwise, which knows the
answer and is a ceiling for copying whole summaries, no system; with --train the share of summaries that training has,
too. Prints no row of the data.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import yaml

from regard.data.readers import DataSpec, read
from regard.tasks.recipe import validated
from regard.tasks.summarize.evaluation import LEAD_WORDS, first_words
from regard.tasks.summarize.recipe import ROLES
from regard.tasks.summarize.scoring import Scores, score


def pairs_of(spec: str) -> list[tuple[str, str]]:
    """(document, summary) of every record. spec: a path, or a YAML mapping as a recipe holds it."""
    values = yaml.safe_load(spec) if spec.lstrip().startswith("{") else {"path": spec}
    records = read(validated(DataSpec, values, "the data"), ROLES, on_bad="skip")
    return [(one.fields["source"], one.fields["target"]) for one in records]


def plain(text: str) -> str:
    """Lowercase, white space as single spaces."""
    return " ".join(text.lower().split())


def stands_in(summary: str, document: str) -> bool:
    """Whether the document holds the summary's words as they are, at the borders of words."""
    return re.search(rf"(?<!\w){re.escape(plain(summary))}(?!\w)", plain(document)) is not None


def said(name: str, scores: Scores) -> str:
    """One line."""
    parts = []
    for metric in scores.metrics:
        interval = "" if metric.interval is None else " [{:.2f}, {:.2f}]".format(*metric.interval)
        parts.append(f"{metric.name} {metric.value:.2f}{interval}")
    return f"{name}: {', '.join(parts)}"


def report(pairs: Sequence[tuple[str, str]], train: Sequence[tuple[str, str]] = ()) -> list[str]:
    """The lines to print."""
    documents, references = [document for document, _ in pairs], [summary for _, summary in pairs]
    found = [stands_in(summary, document) for document, summary in pairs]
    lines = [
        f"{len(pairs):,} records",
        said(f"first {LEAD_WORDS} words", score([first_words(one) for one in documents], references, documents)),
        f"summaries that stand verbatim in their document: {sum(found) / len(found):.1%}",
        said(
            "writing those alone",
            score(
                [one if inside else "" for one, inside in zip(references, found, strict=True)], references, documents
            ),
        ),
    ]
    if train:
        known = {plain(summary) for _, summary in train}
        share = sum(plain(one) in known for one in references) / len(references)
        lines.append(f"summaries that stand verbatim in training: {share:.1%}")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a path, or a YAML mapping as a recipe holds it")
    parser.add_argument("--train", help="the training data, likewise")
    given = parser.parse_args()
    print("\n".join(report(pairs_of(given.data), pairs_of(given.train) if given.train else ())))
