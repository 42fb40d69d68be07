"""What one fixed caption a class scores on captions of pictures: what a captioner has to beat.

For each class the fixed caption is the training caption of that class with the best BLEU-4 against the others of the
class. The class of a test picture is its true one, or what a classifier says (recipes/classify/ucm-classes.yaml).

python recipes/caption/class_baseline.py PATH/TO/ucm-captions
python recipes/caption/class_baseline.py PATH/TO/ucm-captions --classifier runs/ucm-classes/model
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path

import sacrebleu

from regard.data.picture_records import PictureSpec, read_pictures
from regard.tasks.caption.scoring import score, words_of

CANDIDATES = 60  # commonest captions of a class that are tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with captions.tsv and images.tsv (file, split, class)")
    parser.add_argument("--classifier", type=Path, help="model directory of a classifier of the same classes")
    arguments = parser.parse_args()
    classes = by_file(arguments.data / "images.tsv", "class")
    train = by_file(arguments.data / "captions.tsv", "caption", "train")
    test = by_file(arguments.data / "captions.tsv", "caption", "test")
    texts: dict[str, list[str]] = defaultdict(list)
    for path, captions in train.items():
        texts[classes[path][0]] += captions
    fixed = {name: best_caption(captions) for name, captions in sorted(texts.items())}
    told = {path: classes[path][0] for path in test}
    if arguments.classifier is not None:
        import regard

        found = regard.load(arguments.classifier).classify([Path(path) for path in test])
        told = {path: one.label for path, one in zip(test, found, strict=True)}
    right = sum(told[path] == classes[path][0] for path in test) / len(test)
    for name, caption in fixed.items():
        print(f"{name}\t{caption}")
    print(f"\nclass accuracy {right:.2%} of {len(test)} test pictures")
    for line in score([fixed[told[path]] for path in test], list(test.values())).lines():
        print(line)


def by_file(table: Path, column: str, split: str | None = None) -> dict[str, list[str]]:
    """Path of each picture -> what the table's column says of it."""
    where = {} if split is None else {"split": split}
    spec = PictureSpec(str(table), columns={"source": "file", "target": column}, where=where)
    return {record.fields["source"]: record.fields["target"].split("\n") for record in read_pictures(spec)}


def best_caption(captions: list[str]) -> str:
    """Of the commonest captions the one that has most in common with all of them, by BLEU-4 smoothed a sentence."""
    words = [" ".join(words_of(caption)) for caption in captions]
    candidates = [text for text, _ in Counter(words).most_common(CANDIDATES)]
    metric = sacrebleu.BLEU(tokenize="none", effective_order=True, force=True)
    # Against every other caption by itself: against all at once nearly any sentence would have all of its n-grams.
    return max(candidates, key=lambda text: sum(metric.sentence_score(text, [other]).score for other in words[::3]))


if __name__ == "__main__":
    main()
