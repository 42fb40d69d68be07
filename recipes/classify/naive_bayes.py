"""What counting words and pairs of words scores: python recipes/classify/naive_bayes.py TRAIN.tsv TEST.tsv [COLUMNS]

COLUMNS: of the text and of the label, from 0, as in 0,1 (the default); the files have no header.
"""

from __future__ import annotations

import sys

from regard.data.readers import DataSpec, read
from regard.tasks.classify.naive_bayes import NaiveBayes


def columns_of(path: str, text: int, label: int) -> tuple[list[str], list[str]]:
    """(texts, labels) of a file."""
    spec = DataSpec(path, "tsv", columns={"source": text, "target": label}, header=False)
    records = list(read(spec, ("source", "target")))
    return [one.fields["source"] for one in records], [one.fields["target"] for one in records]


def main(train: str, test: str, columns: str = "0,1") -> None:
    text, label = (int(number) for number in columns.split(","))
    model = NaiveBayes(*columns_of(train, text, label))
    texts, labels = columns_of(test, text, label)
    print(f"bigram naive Bayes: accuracy {model.accuracy(texts, labels):.4f} of {len(texts):,}")


if __name__ == "__main__":
    main(*sys.argv[1:])
