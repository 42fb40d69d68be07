"""How outputs are searched for: every choice, what it means and where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.errors import ConfigError, suggestion


@dataclass(frozen=True)
class DecodingOptions:
    """Frozen choices of a search. The defaults are greedy search; `check` refuses what cannot work."""

    # Live hypotheses a sentence. 1 is greedy: the likeliest token at every step, length_penalty plays no part in the
    # choice. Beam search as in Sutskever et al. 2014, section 3.2; 4 or 5 is usual in translation.
    beam_size: int = 1
    # Hypotheses returned a sentence, best first: at most beam_size of them, or this many independent samples.
    num_best: int = 1
    # Draw tokens at random from the model's distribution instead of searching for the likeliest output.
    sample: bool = False
    # Sampling only: log-probabilities are divided by it; below 1 sharpens, above 1 flattens (Ackley et al. 1985).
    temperature: float = 1.0
    # Sampling only: draw from the k likeliest tokens (Fan et al. 2018, section 5); None draws from all.
    top_k: int | None = None
    # Sampling only: draw from the smallest set of likeliest tokens that holds this much probability, measured after
    # temperature and top_k (nucleus sampling, Holtzman et al. 2020, section 3.1); 1 draws from all.
    top_p: float = 1.0
    # Score = total log-probability / num_tokens ** length_penalty, EOS counted. 0 ranks by total, which favours short
    # outputs; 1 by the average a token (Jean et al. 2015; other toolkits' `lenpen`). It is not ((5 + n) / 6) ** alpha
    # of Wu et al. 2016, eq. 14, in which no alpha gives the average.
    length_penalty: float = 1.0
    # Most tokens of one output, EOS counted; a hypothesis that reaches it without EOS is returned as unfinished.
    max_length: int = 200
    # With a number r, an output may also have no more than r * source_len + max_length_offset tokens, source_len being
    # the real length of the decoder's memory. None: only max_length counts.
    max_length_ratio: float | None = None
    # Tokens added to max_length_ratio * source_len, so that very short sources have room; no effect without the ratio.
    max_length_offset: int = 10
    # Fewest tokens before EOS; 0 allows an empty output.
    min_length: int = 0
    # No output holds the same n tokens in a row twice (Paulus et al. 2018, section 2.5, where n is 3); 0 allows it.
    no_repeat_ngram: int = 0
    # Taken off the score for each unit of attention that a source token receives beyond 1, so that an output does not
    # come back to what it has said (Gehrmann et al. 2018, section 5); 0 costs nothing.
    coverage_penalty: float = 0.0
    # Sampling only: with the sentence's number it decides every draw, whatever else is in the batch.
    seed: int = 0

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    def check(self) -> None:
        """Does nothing for options that can work.

        Raises: ConfigError with one line for each fault: what was received, what was expected, the remedy.
        """
        faults = []

        def expect(holds: bool, text: str) -> None:
            if not holds:
                faults.append(f"decoding: {text}")

        expect(self.beam_size >= 1, f"beam_size is {self.beam_size}, expected at least 1; 1 is greedy search")
        expect(self.num_best >= 1, f"num_best is {self.num_best}, expected at least 1; 1 returns the best output")
        if self.sample:
            expect(
                self.beam_size <= 1,
                f"sample with beam_size {self.beam_size}: a sample has no beam; set beam_size to 1, num_best to the"
                " number of samples",
            )
        else:
            expect(
                self.num_best <= max(self.beam_size, 1),
                f"num_best {self.num_best} exceeds beam_size {self.beam_size}; raise beam_size or lower num_best",
            )
            unused = [
                f"{name} {value}"
                for name, value, off in (
                    ("temperature", self.temperature, 1.0),
                    ("top_k", self.top_k, None),
                    ("top_p", self.top_p, 1.0),
                )
                if value != off
            ]
            expect(
                not unused, f"{', '.join(unused)} without sample would have no effect; set sample to true or drop it"
            )
        expect(
            0 < self.temperature < math.inf,
            f"temperature is {self.temperature}, expected a finite number above 0; for the likeliest drop sample",
        )
        expect(
            self.top_k is None or self.top_k >= 1,
            f"top_k is {self.top_k}, expected at least 1; drop it to draw from all tokens",
        )
        expect(0 < self.top_p <= 1, f"top_p is {self.top_p}, expected above 0 and at most 1; 1 draws from all tokens")
        expect(
            math.isfinite(self.length_penalty),
            f"length_penalty is {self.length_penalty}, expected a finite number; 1 ranks by the average a token",
        )
        expect(self.max_length >= 1, f"max_length is {self.max_length}, expected at least 1 token; raise it")
        expect(
            self.max_length_ratio is None or 0 <= self.max_length_ratio < math.inf,
            f"max_length_ratio is {self.max_length_ratio}, expected a finite number of at least 0; drop it to use"
            " max_length alone",
        )
        expect(
            self.max_length_offset >= 0,
            f"max_length_offset is {self.max_length_offset}, expected at least 0; lower max_length_ratio instead",
        )
        expect(self.min_length >= 0, f"min_length is {self.min_length}, expected at least 0; 0 allows empty outputs")
        expect(
            not 1 <= self.max_length <= self.min_length,
            f"min_length {self.min_length} leaves no room for EOS in max_length {self.max_length}; raise max_length",
        )
        expect(
            self.no_repeat_ngram >= 0,
            f"no_repeat_ngram is {self.no_repeat_ngram}, expected at least 0; 0 allows repetition",
        )
        expect(
            0 <= self.coverage_penalty < math.inf,
            f"coverage_penalty is {self.coverage_penalty}, expected a finite number of at least 0; 0 drops it",
        )
        if faults:
            raise ConfigError("\n".join(faults))

    def changed(self, **changes: Any) -> DecodingOptions:
        """The same with some fields changed, and what follows from them, checked.

        sample without a beam_size sets it to 1, since a sample has no beam; a num_best above beam_size widens the beam
        unless beam_size is given.
        Raises: ConfigError for a field that is not one, and as `check` does.
        """
        known = [field.name for field in fields(self)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            hint = suggestion(unknown[0], known) or f"; known: {', '.join(known)}"
            raise ConfigError(f"decoding: unknown option `{unknown[0]}`{hint}")
        implied: dict[str, Any] = {}
        if changes.get("sample"):
            implied["beam_size"] = 1
        elif changes.get("num_best", 0) > self.beam_size and not changes.get("sample", self.sample):
            implied["beam_size"] = changes["num_best"]
        options = replace(self, **{**implied, **changes})
        options.check()
        return options

    def max_lengths(self, source_lengths: Tensor) -> Tensor:
        """Most tokens of each row's output, int64 [rows], at least 1; source_lengths: [rows], real memory lengths."""
        if self.max_length_ratio is None:
            return torch.full_like(source_lengths, self.max_length, dtype=torch.int64)
        scaled = (source_lengths.double() * self.max_length_ratio).long() + self.max_length_offset
        return scaled.clamp(1, self.max_length)
