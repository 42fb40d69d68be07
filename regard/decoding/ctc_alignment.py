"""When each token was said: the likeliest alignment of a known output to the frames of a CTC head.

Source: Graves et al. 2006, sec. 4.1, whose forward recursion over tokens with blanks between them takes maxima here in
place of sums (Viterbi 1967).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.decoding.frontier import precise
from regard.models.ctc import BLANK, refuse_misfits

NOTHING = float("-inf")


class TokenFrames(NamedTuple):
    """A token stands on frames begin to end - 1; log_prob: the mean of what these frames give it.

    A CTC head says a token on a frame or two near its middle and blanks elsewhere: the sound itself may be longer.
    """

    begin: int
    end: int
    log_prob: float


@torch.no_grad()
def forced_alignment(
    log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
) -> list[list[TokenFrames]]:
    """The frames of every token of each row's output, on the one alignment that is likeliest.

    log_probs: [batch, frames, vocab]; lengths: [batch], real frames. targets: ids [batch, target_len] without EOS,
    padded behind with anything; target_lengths: [batch].

    Raises: ShapeError, naming the first row whose frames are too few for its output.
    """
    refuse_misfits("forced alignment", log_probs, lengths, targets, target_lengths)
    batch, frames, _ = log_probs.shape
    places = torch.arange(targets.shape[1], device=targets.device)
    targets = targets.masked_fill(places >= target_lengths[:, None], BLANK)
    # A blank before, between and behind the tokens: 2 n + 1 labels, even ones are blanks.
    labels = targets.new_full((batch, 2 * targets.shape[1] + 1), BLANK)
    labels[:, 1::2] = targets
    of_label = precise(log_probs).gather(2, labels[:, None].expand(-1, frames, -1))  # [batch, frames, labels]
    # From a token one may go on to the next at once, past the blank between them, unless the two are equal.
    skips = torch.zeros_like(labels, dtype=torch.bool)
    skips[:, 3::2] = targets[:, 1:] != targets[:, :-1]
    best = of_label.new_full(labels.shape, NOTHING)
    best[:, :2] = 0.0  # the first frame says the first blank or the first token
    best[:, 1:2].masked_fill_(target_lengths[:, None] == 0, NOTHING)
    came = []  # of every frame but the first: how many labels each path moved on
    for frame in range(frames):
        if frame:
            one, two = (F.pad(best, (by, 0), value=NOTHING)[:, :-by] for by in (1, 2))
            two = two.masked_fill(~skips, NOTHING)
            moved, step = torch.stack([best, one, two], 2).max(2)
            going_on = (frame < lengths)[:, None]
            came.append(torch.where(going_on, step, 0))
            best = torch.where(going_on, moved + of_label[:, frame], best)
        else:
            best = torch.where((lengths > 0)[:, None], best + of_label[:, 0], best)
    path = _path(best, came, target_lengths)
    return _spans(path, of_label, lengths, target_lengths)


def _path(best: Tensor, came: list[Tensor], target_lengths: Tensor) -> Tensor:
    """The label of every frame, [batch, frames]; best: [batch, labels], of paths up to each row's last frame."""
    ends = torch.stack([2 * target_lengths, (2 * target_lengths - 1).clamp_min(0)], 1)  # the last blank, the last token
    place = ends.gather(1, best.gather(1, ends).argmax(1, keepdim=True))
    path = [place]
    for step in reversed(came):
        place = place - step.gather(1, place)
        path.append(place)
    return torch.cat(path[::-1], 1)


def _spans(path: Tensor, of_label: Tensor, lengths: Tensor, target_lengths: Tensor) -> list[list[TokenFrames]]:
    real = torch.arange(path.shape[1], device=path.device) < lengths[:, None]
    values = of_label.gather(2, path[..., None])[..., 0]
    found = []
    for row, count in enumerate(target_lengths.tolist()):
        spans: dict[int, list[tuple[int, float]]] = {token: [] for token in range(count)}
        labels, row_values = path[row][real[row]].tolist(), values[row][real[row]].tolist()
        for frame, (label, value) in enumerate(zip(labels, row_values, strict=True)):
            if label % 2:
                spans[label // 2].append((frame, value))
        found.append(
            [
                TokenFrames(said[0][0], said[-1][0] + 1, sum(value for _, value in said) / len(said))
                for said in spans.values()
            ]
        )
    return found
