"""Decoding a CTC head by itself: the likeliest alignment, or the likeliest output.

Neither needs a decoder. What else should vote (a language model, an attention decoder) joins in a search by `decode`
with the scorer of `ctc_prefix`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regard.decoding.draws import scramble
from regard.decoding.frontier import precise
from regard.decoding.leading import leading
from regard.errors import ConfigError
from regard.models.ctc import BLANK

NOTHING = float("-inf")


class CTCHypothesis(NamedTuple):
    """tokens: output ids, without blanks and EOS. log_prob: of the output, or of its one alignment, see who made it."""

    tokens: list[int]
    log_prob: float


def best_path(log_probs: Tensor, lengths: Tensor) -> list[CTCHypothesis]:
    """The output of each row's likeliest alignment; log_prob is that alignment's.

    log_probs: [batch, frames, vocab]; lengths: [batch], real frames. Source: Graves et al. 2006, sec. 3.2.
    """
    values, labels = log_probs.max(-1)
    real = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
    fresh = torch.ones_like(real)
    fresh[:, 1:] = labels[:, 1:] != labels[:, :-1]
    kept = fresh & real & (labels != BLANK)
    totals = precise(values).masked_fill(~real, 0.0).sum(1)
    return [
        CTCHypothesis(row[chosen].tolist(), total)
        for row, chosen, total in zip(labels, kept, totals.tolist(), strict=True)
    ]


@torch.no_grad()
def prefix_beam_search(
    log_probs: Tensor, lengths: Tensor, *, beam_size: int, num_best: int = 1, candidates: int | None = None
) -> list[list[CTCHypothesis]]:
    """Of each row its num_best outputs, likeliest first; log_prob sums the alignments that stayed in the beam.

    Frame by frame, the beam_size likeliest prefixes stay, each with the mass of its alignments that end in a blank and
    of those that end in its last token. With a beam of all prefixes this is exact. Ties go to the prefix that stood
    first, then to the lower id. Source: Graves 2012 (thesis), sec. 7.5.3; Hannun et al. 2014, algorithm 1.

    log_probs: [batch, frames, vocab]; lengths: [batch], real frames.
    candidates: a prefix grows by the so many likeliest tokens of a frame only; by all unless given.

    Two prefixes are taken for one when 64-bit hashes of them are equal.
    Raises: ConfigError when beam_size, num_best or candidates is below 1, or num_best above beam_size.
    """
    if not 1 <= num_best <= beam_size or (candidates is not None and candidates < 1):
        raise ConfigError(
            f"prefix_beam_search: beam_size {beam_size}, num_best {num_best} and candidates {candidates} were given; "
            "expected numbers of at least 1, num_best at most beam_size"
        )
    batch, frames, vocab = log_probs.shape
    candidates = min(candidates or vocab, vocab)
    beam = _Beam.of_nothing(precise(log_probs.new_zeros(batch, 1)))
    back: list[tuple[Tensor, Tensor]] = []  # of every frame: [batch, width] the place that was gone on from, the token
    for frame in range(frames):
        now = precise(log_probs[:, frame])
        beam, parents, tokens = beam.followed_by(now, beam_size, candidates, is_real=frame < lengths)
        back.append((parents, tokens))
    return _read_off(beam, back, num_best)


class _Beam(NamedTuple):
    """Distinct prefixes of each row, likeliest first; all [batch, width].

    blank, token: log mass of the alignments that end in a blank, in the last token. last: the last token, -1 of the
    empty prefix. name: a hash of the prefix; stem: that of the prefix without its last token.
    """

    blank: Tensor
    token: Tensor
    last: Tensor
    name: Tensor
    stem: Tensor

    @staticmethod
    def of_nothing(zeros: Tensor) -> _Beam:
        """The empty prefix alone, with all mass; zeros: [batch, 1]."""
        ids = torch.zeros_like(zeros, dtype=torch.int64)
        return _Beam(zeros, torch.full_like(zeros, NOTHING), ids - 1, scramble(ids), ids)

    def followed_by(
        self, now: Tensor, beam_size: int, candidates: int, is_real: Tensor
    ) -> tuple[_Beam, Tensor, Tensor]:
        """The beam after one more frame; where each prefix came from, and the token it grew by, -1 for none.

        now: the frame's log-probabilities [batch, vocab]. is_real: bool [batch]; other rows stay as they are.
        """
        width = self.last.shape[1]
        total = torch.logaddexp(self.blank, self.token)
        last = self.last.clamp_min(0)
        again = now.gather(1, last).masked_fill(self.last < 0, NOTHING)  # of the last token
        blank = total + now[:, BLANK, None]
        token = self.token + again
        # Prefix i may also be what prefix j grows into: its mass joins, and the growth is no prefix of its own. A place
        # without mass is nobody: it may hold the name of another one.
        somebody = (self.last >= 0) & (total > NOTHING)
        grows = (self.stem[:, :, None] == self.name[:, None, :]) & somebody[:, :, None]  # [batch, i, j]
        after_blank_alone = self.last[:, :, None] == self.last[:, None, :]
        entering = torch.where(after_blank_alone, self.blank[:, None, :], total[:, None, :])
        entering = (entering + again[:, :, None]).masked_fill(~grows, NOTHING).amax(2)  # at most one j
        token = torch.logaddexp(token, entering)

        growth, ids = leading(now.index_fill(1, _blank_index(now), NOTHING), candidates)  # [batch, candidates]
        same = ids[:, None, :] == self.last[:, :, None]
        grown = torch.where(same, self.blank[:, :, None], total[:, :, None]) + growth[:, None, :]
        known = (grows[:, :, :, None] & same[:, :, None, :]).any(1)  # [batch, j, candidates]
        grown = grown.masked_fill(known, NOTHING)

        totals = torch.cat([torch.logaddexp(blank, token), grown.flatten(1)], 1)
        totals, order = leading(totals, min(beam_size, totals.shape[1]))
        stays = order < width
        place = (order - width).clamp_min(0)
        parents = torch.where(stays, order, place // candidates)
        tokens = torch.where(stays, -1, ids.gather(1, place % candidates))

        kept = _Beam(*(part.gather(1, parents) for part in self))
        stem, name = kept.name, scramble(kept.name + tokens + 1)
        after = _Beam(
            torch.where(stays, blank.gather(1, parents), NOTHING),
            torch.where(stays, token.gather(1, parents), totals),
            torch.where(stays, kept.last, tokens),
            torch.where(stays, kept.name, name),
            torch.where(stays, kept.stem, stem),
        )
        if bool(is_real.all()):
            return after, parents, tokens
        more = order.shape[1] - width  # places that a finished row has no prefix for
        before = _Beam(*(torch.nn.functional.pad(part, (0, more)) for part in self))
        empty = torch.arange(order.shape[1], device=now.device) >= width
        before = before._replace(
            blank=before.blank.masked_fill(empty, NOTHING), token=before.token.masked_fill(empty, NOTHING)
        )
        real = is_real[:, None]
        itself = torch.arange(order.shape[1], device=now.device).clamp_max(width - 1).expand_as(parents)
        joined = _Beam(*(torch.where(real, new, old) for new, old in zip(after, before, strict=True)))
        return joined, torch.where(real, parents, itself), torch.where(real, tokens, -1)


def _blank_index(like: Tensor) -> Tensor:
    return torch.tensor([BLANK], device=like.device)


def _read_off(beam: _Beam, back: list[tuple[Tensor, Tensor]], num_best: int) -> list[list[CTCHypothesis]]:
    """The first num_best prefixes of each row that have any mass."""
    totals = torch.logaddexp(beam.blank, beam.token)[:, :num_best]
    place = torch.arange(totals.shape[1], device=totals.device).expand_as(totals)
    grown = []
    for parents, tokens in reversed(back):
        grown.append(tokens.gather(1, place))
        place = parents.gather(1, place)
    labels = torch.stack(grown[::-1], 2) if grown else place.new_empty(*place.shape, 0)  # [batch, num_best, frames]
    return [
        [
            CTCHypothesis(prefix[prefix >= 0].tolist(), total)
            for prefix, total in zip(row, row_totals, strict=True)
            if total > NOTHING
        ]
        for row, row_totals in zip(labels, totals.tolist(), strict=True)
    ]
