"""How often cross-attention looks at the right word: the demo's measure, against alignments that are known.

Everything is counted in characters, so the result does not depend on how a tokenizer cuts words:

- The candidates are the *words* of the source: its runs of letters and digits, so whitespace, hyphens and punctuation
  separate them ("twenty-three" is two words).
- A source token gives its attention to the words it overlaps, in proportion to the characters shared with each. What
  overlaps no word (a special token, a comma, a space) gives it to none.
- A link's attention is that of the target tokens overlapping its target span. A token that straddles several links
  counts for each by the fraction of its own characters that lies inside.
- A link is recovered when the word with the most attention overlaps the link's source span. A tie is recovered only
  when all its words do, and a link that receives no attention at all is not recovered.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from regard.errors import DataError, ShapeError
from regard.tasks.translate.demo_corpus import Link, Phrase, Span

NUMBER_WORDS = ("number",)


class AlignmentAccuracy(NamedTuple):
    """The share of links recovered, and what choosing among a source's words at random would recover."""

    accuracy: float  # 0 to 1; nan without links
    chance: float  # 0 to 1; nan without links
    num_links: int  # measured; links of a source with a single word are left out, since nothing can miss there


def alignment_accuracy(
    phrases: Sequence[Phrase],
    weights: Sequence[npt.ArrayLike],
    source_spans: Sequence[Sequence[Span]],
    target_spans: Sequence[Sequence[Span]],
    *,
    kinds: Collection[str] = NUMBER_WORDS,
) -> AlignmentAccuracy:
    """Measure attention against the links of these phrases.

    weights: for each phrase [target tokens, source tokens]. Row t is the attention of the step that *produces* target
        token t, of whichever layer and head, or mean of heads, is to be judged; it need not sum to 1.
    source_spans, target_spans: for each phrase the characters of `phrase.source` and of `phrase.target` that each token
        covers. A special token has an empty span such as (0, 0). The targets are the phrases' own: attention must
        come from forcing the reference, or from an output equal to it.
    kinds: the kinds of link that count; number words alone unless said otherwise.
    Raises: ShapeError that lists every phrase whose weights do not fit its spans; DataError for attention that is
        negative or not finite.
    """
    counts = {"phrases": len(phrases), "weights": len(weights)}
    counts |= {"source_spans": len(source_spans), "target_spans": len(target_spans)}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ShapeError(f"alignment_accuracy: received {listed}, expected as many of each")
    matrices = [np.asarray(matrix, dtype=np.float64) for matrix in weights]
    _check_matrices(matrices, source_spans, target_spans)

    recovered, chances = [], []
    for phrase, matrix, of_source, of_target in zip(phrases, matrices, source_spans, target_spans, strict=True):
        words = source_words(phrase.source)
        if len(words) < 2:
            continue
        shares = _overlaps(of_source, words)  # [source tokens, words]
        totals = shares.sum(axis=1, keepdims=True)
        shares = np.divide(shares, totals, out=np.zeros_like(shares), where=totals > 0)
        links = [link for link in phrase.links if link.kind in kinds]
        lengths = np.asarray([max(end - first, 1) for first, end in of_target], dtype=np.float64)
        parts = _overlaps(of_target, [link.target_span for link in links]) / lengths[:, None]  # [target tokens, links]
        mass = parts.T @ matrix @ shares  # [links, words]
        for link, row in zip(links, mass, strict=True):
            right = _right_words(link, words)
            # every leading word must be right, so that flat attention earns nothing by being flat
            recovered.append(bool(row.max() > 0 and right[row == row.max()].all()))
            chances.append(float(right.mean()))
    return _averaged(recovered, chances)


def source_words(text: str) -> list[Span]:
    """The spans of the candidates: runs of letters and digits."""
    return [match.span() for match in re.finditer(r"[^\W_]+", text)]


def _overlaps(spans: Sequence[Span], others: Sequence[Span]) -> npt.NDArray[np.float64]:
    """[spans, others]: how many characters each pair shares."""
    first, end = np.asarray(spans, dtype=np.int64).reshape(-1, 2).T
    other_first, other_end = np.asarray(others, dtype=np.int64).reshape(-1, 2).T
    shared: npt.NDArray[np.int64] = np.minimum(end[:, None], other_end) - np.maximum(first[:, None], other_first)
    return np.maximum(shared, 0).astype(np.float64)


def _right_words(link: Link, words: Sequence[Span]) -> npt.NDArray[np.bool_]:
    return _overlaps(words, [link.source_span])[:, 0] > 0


def _averaged(recovered: list[bool], chances: list[float]) -> AlignmentAccuracy:
    return AlignmentAccuracy(
        accuracy=float(np.mean(recovered)) if recovered else float("nan"),
        chance=float(np.mean(chances)) if chances else float("nan"),
        num_links=len(recovered),
    )


def _check_matrices(
    matrices: Sequence[npt.NDArray[Any]],
    source_spans: Sequence[Sequence[Span]],
    target_spans: Sequence[Sequence[Span]],
) -> None:
    misfits = []
    for index, (matrix, of_source, of_target) in enumerate(zip(matrices, source_spans, target_spans, strict=True)):
        expected = (len(of_target), len(of_source))
        if matrix.shape != expected:
            misfits.append(f"phrase {index} has {list(matrix.shape)}, expected {list(expected)}")
    if misfits:
        raise ShapeError(f"alignment_accuracy: weights [target tokens, source tokens]: {'; '.join(misfits)}")
    for index, matrix in enumerate(matrices):
        if not np.isfinite(matrix).all() or (matrix < 0).any():
            raise DataError(
                f"alignment_accuracy: the weights of phrase {index} hold negative or non-finite values, expected"
                " attention weights; pass probabilities, not scores"
            )
