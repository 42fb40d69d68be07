"""Writes the digits of two IDX files as pictures, with the table that recipes/classify/mnist-patches.yaml reads.

Test is every fifth picture, validation every fifth of the rest, train what is left.

python recipes/classify/mnist_pictures.py PATH/TO/mnist-10k mnist
regard train recipes/classify/mnist-patches.yaml data.root=mnist
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

PREFIX = "mnist-t10k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", type=Path, help=f"folder with {PREFIX}-images-idx3-ubyte.gz and -labels-idx1-ubyte.gz"
    )
    parser.add_argument("target", type=Path, help="folder to write digits.tsv and images/ into")
    arguments = parser.parse_args()
    pictures = idx(arguments.source / f"{PREFIX}-images-idx3-ubyte.gz")
    labels = idx(arguments.source / f"{PREFIX}-labels-idx1-ubyte.gz")
    folder = arguments.target / "images"
    folder.mkdir(parents=True, exist_ok=True)
    rows, rest = ["file\tsplit\tdigit"], 0
    for number, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        split = "test" if number % 5 == 0 else "validation" if rest % 5 == 0 else "train"
        rest += split != "test"
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
        rows.append(f"{number:05}.png\t{split}\t{label}")
    (arguments.target / "digits.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def idx(path: Path) -> np.ndarray:
    """An array of bytes in LeCun's IDX format, compressed."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape.astype(int).tolist())


if __name__ == "__main__":
    main()
