"""Scores of translated text: value, 95 % interval and a signature that says exactly what was computed.

Two scorings, never to be compared with each other (one checkpoint can differ by more than a point between them):

- ``sacrebleu``: BLEU and chrF of detokenised text, as sacreBLEU computes them (Post 2018). The one to publish.
- ``moses-lowercase``: BLEU over lowercased, Moses-tokenised text on both sides. Much of the Multi30k literature scores
  so; use it only beside such figures.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from regard.errors import ConfigError, DataError, RegardError
from regard.tasks.metrics import Metric, check_samples, draws_of, interval, metrics_json
from regard.tasks.translate.scorings import SCORINGS, Scoring


@dataclass(frozen=True)
class Scores:
    """What `score` found: BLEU, and by sacreBLEU chrF, each from 0 to 100 where more is better. Lengths and penalty are
    BLEU's, in tokens as that scoring counts them."""

    scoring: Scoring
    language: str
    metrics: tuple[Metric, ...]
    num_sentences: int
    hypothesis_length: int  # tokens
    reference_length: int  # tokens
    brevity_penalty: float  # 1 where the hypotheses are at least as long as the references

    def to_json(self) -> dict[str, Any]:
        """The scores as plain JSON values; metrics stand under their names."""
        return {
            "scoring": self.scoring,
            "language": self.language,
            "num_sentences": self.num_sentences,
            "hypothesis_length": self.hypothesis_length,
            "reference_length": self.reference_length,
            "brevity_penalty": self.brevity_penalty,
            "metrics": metrics_json(self.metrics),
        }

    def lines(self) -> list[str]:
        """The scores as lines to print: one a metric, then the lengths."""
        printed = [metric.line() for metric in self.metrics]
        printed.append(
            f"{self.num_sentences} sentences, {self.hypothesis_length} tokens against {self.reference_length},"
            f" brevity penalty {self.brevity_penalty:.3f}"
        )
        return printed


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    language: str,
    scoring: Scoring = "sacrebleu",
    bootstrap_samples: int = 1000,
    seed: int = 12345,
) -> Scores:
    """Score translations against one reference each.

    hypotheses, references: detokenised text, one sentence an item, in the same order. An empty hypothesis counts as
        one of zero tokens.
    language: code of the language translated into ("de"). It chooses sacreBLEU's tokenizer (Chinese, Japanese and
        Korean have their own) or the rules of the Moses tools.
    bootstrap_samples: how often the sentences are drawn anew, with replacement, for the 95 % interval (Koehn 2004);
        0 leaves the interval out. The interval spans the percentiles that sacreBLEU halves into its "±".
    seed: of those draws. The default is sacreBLEU's, and gives sacreBLEU's own intervals; the environment variable
        SACREBLEU_SEED is neither read nor written.
    Edge cases: BLEU multiplies the precisions of 1 to 4 tokens, so a corpus without one sentence of four tokens
        scores 0 even where it is perfect; chrF has no such floor.
    Raises: DataError when the two differ in number, are empty or are not lists of strings; ConfigError for an unknown
        scoring or a count that makes no sense; RegardError when sacrebleu or sacremoses is missing.
    Source: Papineni et al. 2002 (BLEU), Popović 2015 (chrF), Post 2018 (signatures).
    """
    _check_texts(hypotheses, references)
    if scoring not in SCORINGS:
        raise ConfigError(f"scoring: received {scoring!r}, expected one of {', '.join(SCORINGS)}")
    check_samples(bootstrap_samples)
    if seed < 0:
        raise ConfigError(f"seed: received {seed}, expected a whole number from 0 up")

    sacrebleu = _require("sacrebleu")
    if scoring == "sacrebleu":
        prefix, texts, targets = "", list(hypotheses), list(references)
        try:
            bleu = sacrebleu.BLEU(trg_lang=language)
        except RuntimeError as error:  # sacreBLEU's tokenizers for Japanese and Korean are extras of their own
            raise RegardError(
                f"scoring {language!r} with sacreBLEU needs a tokenizer that is not installed:"
                f" pip install 'sacrebleu[{language}]'"
            ) from error
        chosen = [("BLEU", bleu), ("chrF", sacrebleu.CHRF())]
    else:
        prefix, texts, targets = _moses_lowercase(hypotheses, references, language)
        bleu = sacrebleu.BLEU(tokenize="none", force=True)
        chosen = [("BLEU", bleu)]

    whole = bleu.corpus_score(texts, [targets])
    return Scores(
        scoring=scoring,
        language=language,
        metrics=tuple(
            _measure(name, metric, texts, targets, prefix, bootstrap_samples, seed) for name, metric in chosen
        ),
        num_sentences=len(texts),
        hypothesis_length=int(whole.sys_len),
        reference_length=int(whole.ref_len),
        brevity_penalty=float(whole.bp),
    )


def _measure(
    name: str, metric: Any, texts: list[str], targets: list[str], prefix: str, num_samples: int, seed: int
) -> Metric:
    """One metric with its interval.

    sacreBLEU's own bootstrap takes its seed from the environment only and keeps half the width of the interval. The
    same draws are made here from the same per-sentence statistics, so that the seed is an argument and both ends of
    the interval survive; a test holds the result to sacreBLEU's.
    """
    # The value comes from sacreBLEU's public call; the statistics below serve the draws alone.
    value = float(metric.corpus_score(texts, [targets]).score)
    between = None
    if num_samples:
        # float64 holds every count exactly, so the order of summation cannot matter
        statistics = np.asarray(metric._extract_corpus_statistics(texts, [targets]), dtype=np.float64)
        draws = draws_of(len(texts), num_samples, seed)
        between = interval([float(metric._compute_score_from_stats(statistics[draw].sum(0)).score) for draw in draws])
        metric.n_bootstrap, metric.seed = num_samples, str(seed)  # what sacreBLEU's signature prints
    signature = str(metric.get_signature())
    if prefix:  # sacreBLEU left case and tokens alone, which in one line with the prefix would read as its contrary
        signature = prefix + signature.replace("|case:mixed|", "|case:lc|").replace("|tok:none|", "|tok:moses|")
    return Metric(name, value, between, signature)


def _moses_lowercase(
    hypotheses: Sequence[str], references: Sequence[str], language: str
) -> tuple[str, list[str], list[str]]:
    """Signature prefix and both sides as tokens joined by spaces.

    Punctuation first (it undoes typographic quotes and dashes), then lowercase, then tokens: tokenising before
    lowercasing loses splits, because the tokenizer's list of abbreviations knows case. Hyphenated words stay whole.
    Escaping to XML entities renames tokens without splitting or joining any and cannot change a score; it is left off.
    """
    sacremoses = _require("sacremoses")
    normalizer = sacremoses.MosesPunctNormalizer(language)
    tokenizer = sacremoses.MosesTokenizer(language)

    def prepare(text: str) -> str:
        lowered = normalizer.normalize(text).lower()
        return str(tokenizer.tokenize(lowered, aggressive_dash_splits=False, escape=False, return_str=True))

    prefix = (
        f"regard:moses-lowercase|language:{language}|steps:punctuation+lowercase+tokenize|dash-splits:no|escape:no"
        f"|sacremoses:{sacremoses.__version__}|"
    )
    return prefix, [prepare(text) for text in hypotheses], [prepare(text) for text in references]


def _check_texts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise DataError(f"score: {name} is one string, expected a list of sentences; write [text]")
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(
                    f"score: {name}[{position}] is {type(text).__name__}, expected a string; write '' for no text"
                )
    if len(hypotheses) != len(references):
        raise DataError(
            f"score: {len(hypotheses)} hypotheses against {len(references)} references, expected as many of each;"
            " line i of one must translate line i of the other"
        )
    if not hypotheses:
        raise DataError("score: no sentences, expected at least one hypothesis with its reference")


def _require(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise RegardError(f"scoring translations needs the package {package}: pip install {package}") from error
