"""When each word was said, in two steps: which vectors said it, and where it meets its neighbours.

The first step is CTC's likeliest alignment, or dynamic time warping over the heads of cross-attention that follow the
sound. Both find a word and not its edges: a CTC head says a word on a frame or two. The second step puts a border
between each two words, and moves it into the pause of the sound that is near it, if there is one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regard.decoding.ctc_alignment import forced_alignment
from regard.errors import ConfigError, ShapeError
from regard.lens.warping import token_frames

Method = Literal["ctc", "attention"]
Times = tuple[int, int]  # half-open range of frames
Heads = tuple[tuple[str, int], ...]  # (layer, number of the head in it) of each

_LEAST_PAUSE_FRAMES = 3
_REACH_FRAMES = 10  # how far a border is moved to a pause, which must be twice as long as it is far
_EDGE_FRAMES = 3  # a pause this near to an end of the sound is what stands around the words
_SMOOTHING_FRAMES = 3
# A pause is quieter than this share of the way from the quietest frames to the loudest ones, in logarithms of energy.
_PAUSE_SHARE = 0.3


def by_ctc(log_probs: Tensor, tokens: Sequence[int]) -> list[Times] | None:
    """The vectors of each token by a CTC head's log-probabilities [vectors, vocab]; None where they are too few."""
    if not tokens:
        return []
    try:
        [found] = forced_alignment(
            log_probs[None], torch.tensor([len(log_probs)]), torch.tensor([tokens]), torch.tensor([len(tokens)])
        )
    except ShapeError:
        return None
    return [(one.begin, one.end) for one in found]


def by_attention(attention: Mapping[str, Tensor], num_tokens: int, heads: Heads | None = None) -> list[Times] | None:
    """The same by cross-attention, layer -> [heads, tokens, vectors]; None where there is none.

    heads: that follow the sound; None: all. Raises: ConfigError for a head that the attention has not.
    """
    if not attention or not num_tokens:
        return None if num_tokens else []
    if heads is None:
        return token_frames(torch.cat([rows[:, :num_tokens] for rows in attention.values()]))
    missing = [f"{layer} {head}" for layer, head in heads if not 0 <= head < len(attention.get(layer, ()))]
    if missing or not heads:
        known = ", ".join(f"{layer} 0 to {len(rows) - 1}" for layer, rows in attention.items())
        raise ConfigError(f"heads of timestamps: received {', '.join(missing) or 'none'}, expected some of {known}")
    return token_frames(torch.stack([attention[layer][head, :num_tokens] for layer, head in heads]))


def energy_of(frames: Tensor, is_cepstra: bool) -> Tensor:
    """[frames]: how loud each frame [frames, bins] is, as a logarithm; the zeroth cepstrum, or the mean band."""
    return frames[:, 0] if is_cepstra else frames.mean(1)


@dataclass(frozen=True)
class Placement:
    """Where, between the vectors that said two words, one ends and the other begins.

    A CTC head says a word as soon as it is sure of it, which may be in its midst, at its end, or behind: which, a model
    shows on sounds whose words have known places. share: of the way from the end of the one's vectors to the beginning
    of the other's. offset_frames: added to that.
    """

    share: float = 0.5
    offset_frames: int = 0


MIDWAY = Placement()


@dataclass(frozen=True)
class Timing:
    """How a model tells when words were said. heads: of its cross-attention, for method attention; None: all."""

    method: Method = "ctc"
    placement: Placement = MIDWAY
    heads: Heads | None = None

    @property
    def heads_in_use(self) -> Heads | None:
        return self.heads if self.method == "attention" else None

    def __str__(self) -> str:
        """The method and its heads, as people read it: attention (decoder.layers.1.cross head 0)."""
        numbers: dict[str, list[str]] = {}
        for layer, head in self.heads_in_use or ():
            numbers.setdefault(layer, []).append(str(head))
        named = (f"{layer} head{'s' * (len(its) > 1)} {', '.join(its)}" for layer, its in numbers.items())
        return f"{self.method} ({'; '.join(named)})" if numbers else self.method


# Among what a model may turn out to do.
PLACEMENTS = tuple(Placement(share, offset) for share in (0.0, 0.25, 0.5, 0.75, 1.0) for offset in range(-20, 21, 2))


def edges(cores: Sequence[Times], energy: Tensor, placement: Placement = MIDWAY) -> list[Times]:
    """Each word's frames: where the vectors that said it and `placement` put its borders, moved into the nearest pause.

    cores: a range of frames for each word, in order. energy: [frames], logarithms. A border with no pause near it stays
    where it is; the first word begins where the pause before it ends, the last one ends where the pause behind begins.
    """
    length = len(energy)
    if not cores or not length:
        return []
    runs = _pauses(energy)
    borders: list[Times] = []
    for (_, end), (begin, _) in itertools.pairwise(cores):
        place = end + placement.share * (begin - end) + placement.offset_frames
        borders.append(_border(min(max(round(place), 0), length), runs))
    leading = next((run for run in runs if run[0] <= _EDGE_FRAMES), (0, 0))
    trailing = next((run for run in reversed(runs) if run[1] >= length - _EDGE_FRAMES), (length, length))
    begins = [leading[1] if leading[1] < length else 0, *(border[1] for border in borders)]
    ends = [*(border[0] for border in borders), trailing[0] if trailing[0] > 0 else length]
    return [(begin, max(end, begin + 1)) for begin, end in zip(begins, ends, strict=True)]


def _border(place: int, runs: Sequence[Times]) -> Times:
    """The pause that a border falls into, the longest and nearest one; the border itself where there is none near."""

    def worth(run: Times) -> int:
        distance = max(run[0] - place, place - run[1], 0)
        return run[1] - run[0] - 2 * distance if distance <= _REACH_FRAMES else 0

    best = max(runs, key=worth, default=None)
    return best if best is not None and worth(best) > 0 else (place, place)


def _pauses(energy: Tensor) -> list[Times]:
    """The stretches of quiet frames that are long enough."""
    loud = _smooth(energy.double())
    return _runs(loud < _threshold(loud))


def _threshold(loud: Tensor) -> float:
    ordered = loud.sort().values
    floor, peak = (float(ordered[int(share * (len(ordered) - 1))]) for share in (0.05, 0.95))
    return floor + _PAUSE_SHARE * (peak - floor)


def _smooth(energy: Tensor) -> Tensor:
    reach = _SMOOTHING_FRAMES // 2
    padded = torch.nn.functional.pad(energy[None, None], (reach, reach), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, _SMOOTHING_FRAMES, stride=1)[0, 0]


def _runs(quiet: Tensor) -> list[Times]:
    """The pauses that are long enough."""
    places = torch.nn.functional.pad(quiet.int(), (1, 1)).diff()
    begins, ends = places.eq(1).nonzero()[:, 0].tolist(), places.eq(-1).nonzero()[:, 0].tolist()
    return [(begin, end) for begin, end in zip(begins, ends, strict=True) if end - begin >= _LEAST_PAUSE_FRAMES]
