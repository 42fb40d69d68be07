"""How near the times of words come to the true ones, beside what chance comes to; and the way of finding them that is
nearest: which heads of attention follow the sound, and where words meet.

Measured on utterances whose true times are known, with their reference texts forced, so that an error of the text is
none of time. For chance the memory's vectors are shuffled: what said a word then stands anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.force import force
from regard.inputs.text import Tokenizer
from regard.lens.warping import followed
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks.transcribe.assembly import word_cores
from regard.tasks.transcribe.search import Found, cross_attention
from regard.tasks.transcribe.transcriber import Transcriber
from regard.tasks.transcribe.word_times import PLACEMENTS, Heads, Method, Times, Timing, edges, energy_of

TOLERANCE_SECONDS = 0.06


@dataclass(frozen=True)
class Timed:
    """One utterance: the frames that said each word, its energy, and the true (begin, end) of each word, seconds.

    shuffled: the frames that said each word once the memory's vectors are in random order.
    """

    cores: list[Times]
    shuffled: list[Times]
    energy: Tensor
    true: list[tuple[float, float]]


@dataclass(frozen=True)
class Boundaries:
    """within: share of boundaries (beginnings and ends) within the tolerance; shuffled: the same with the memory's
    vectors in random order. median_seconds: of the distances. num: boundaries measured."""

    timing: Timing
    within: float
    shuffled: float
    median_seconds: float
    num: int

    def to_json(self) -> dict[str, Any]:
        placement, heads = self.timing.placement, self.timing.heads_in_use
        return {
            "method": self.timing.method,
            **({} if heads is None else {"heads": [list(head) for head in heads]}),
            "placement": {"share": placement.share, "offset_frames": placement.offset_frames},
            "tolerance_seconds": TOLERANCE_SECONDS,
            "within": self.within,
            "shuffled": self.shuffled,
            "median_seconds": self.median_seconds,
            "num": self.num,
        }

    def line(self) -> str:
        return (
            f"word boundaries by {self.timing}: {self.within:.1%} of {self.num} within "
            f"{TOLERANCE_SECONDS * 1000:.0f} ms (median {self.median_seconds * 1000:.0f} ms); with shuffled vectors "
            f"{self.shuffled:.1%}"
        )


@torch.no_grad()
def timed(
    transcriber: Transcriber,
    frames: Sequence[np.ndarray],
    texts: Sequence[str],
    words: Sequence[str],
    timing: Timing,
    *,
    seed: int = 1,
) -> list[Timed]:
    """frames [frames, bins], reference texts, and true places of the words (JSON, as records have them) of utterances.

    Empty where the model cannot tell times by this method.
    """
    model, front_end = transcriber.model, transcriber.config.front_end
    if (model.ctc is None) if timing.method == "ctc" else not isinstance(model, EncoderDecoder):
        return []
    chance = torch.Generator().manual_seed(seed)
    found = []
    for one, text, places in zip(frames, texts, words, strict=True):
        true = [(begin, end) for _, begin, end in json.loads(places)]
        [ids] = transcriber.tokenizer.encode_ids([text])
        said, spans = transcriber.tokenizer.spans(ids)
        said_words = [match.span() for match in re.finditer(r"\S+", said)]
        if len(said_words) != len(true):
            continue
        forced = _forced(transcriber, one, ids, timing.method)
        order = torch.randperm(forced.num_vectors, generator=chance)
        mixed = Found(
            ids,
            0.0,
            True,
            {layer: rows[:, :, order] for layer, rows in forced.attention.items()},
            None if forced.ctc is None else forced.ctc[order],
            forced.num_vectors,
            forced.stride,
        )
        energy = energy_of(torch.from_numpy(one), front_end.kind == "mfcc")
        cores, shuffled = (word_cores(seen, said_words, spans, timing) for seen in (forced, mixed))
        found.append(Timed(cores, shuffled, energy, true))
    return found


def measured(
    found: Sequence[Timed],
    timing: Timing,
    shift_seconds: float,
    *,
    begins_alone: bool = False,
) -> Boundaries | None:
    """How near these come. shift_seconds: from frame to frame. begins_alone: leaves ends out, for truths that know
    beginnings only. None without any utterance."""
    distances: dict[bool, list[float]] = {False: [], True: []}
    for one in found:
        for is_shuffled, cores in ((False, one.cores), (True, one.shuffled)):
            for (first, last), (begin, end) in zip(edges(cores, one.energy, timing.placement), one.true, strict=True):
                distances[is_shuffled].append(abs(first * shift_seconds - begin))
                if not begins_alone:
                    distances[is_shuffled].append(abs(last * shift_seconds - end))
    if not distances[False]:
        return None
    within = {key: float(np.mean(np.array(values) <= TOLERANCE_SECONDS)) for key, values in distances.items()}
    median = float(np.median(distances[False]))
    return Boundaries(timing, within[False], within[True], median, len(distances[False]))


def nearest(found: Sequence[Timed], timing: Timing, shift_seconds: float) -> Boundaries | None:
    """`timing` with the placement that comes nearest on these utterances: validation's, never a test set's."""
    timings = [replace(timing, placement=placement) for placement in PLACEMENTS]
    tried = [one for each in timings if (one := measured(found, each, shift_seconds)) is not None]
    return max(tried, key=lambda one: (one.within, -one.median_seconds), default=None)


def following(forced: Sequence[Found], *, share_of_best: float = 0.5) -> Heads:
    """The heads that follow the sound: all that do so at least `share_of_best` as well as the best one does.

    forced: references with their attention. No true times are needed, see `warping.followed`. A reference of one token,
    which has all frames whatever a head does, tells nothing; empty where all are such.
    """
    ranks: dict[tuple[str, int], list[float]] = {}
    for one in (one for one in forced if len(one.tokens) > 1):
        for layer, rows in one.attention.items():
            for head, share in enumerate(followed(rows[:, : len(one.tokens)]).tolist()):
                ranks.setdefault((layer, head), []).append(share)
    means = {head: float(np.mean(shares)) for head, shares in ranks.items()}
    least = share_of_best * max(means.values(), default=0.0)
    return tuple(head for head, mean in means.items() if mean >= least)


@torch.no_grad()
def attended(transcriber: Transcriber, frames: Sequence[np.ndarray], texts: Sequence[str]) -> list[Found]:
    """Reference texts of utterances [frames, bins] as if they had been found, with what was attended to: see
    `following`. Empty without a decoder."""
    if not isinstance(transcriber.model, EncoderDecoder):
        return []
    ids = transcriber.tokenizer.encode_ids(list(texts))
    return [_forced(transcriber, *one, "attention") for one in zip(frames, ids, strict=True)]


def _forced(transcriber: Transcriber, frames: np.ndarray, ids: list[int], method: Method) -> Found:
    """The reference as if it had been found."""
    model = transcriber.model
    device = next(model.parameters()).device
    memories, _ = model.encode(torch.from_numpy(frames)[None].to(device), torch.tensor([len(frames)], device=device))
    memory = memories["source"]
    count = int(memory.lengths)
    ctc = model.ctc(memory.vectors)[0, :count].cpu() if method == "ctc" and model.ctc is not None else None
    rows: dict[str, Tensor] = {}
    if method == "attention" and isinstance(model, EncoderDecoder):
        outputs = torch.tensor([[*ids, Tokenizer.EOS]], device=memory.vectors.device)
        forced = force(model.decoder, {"source": memory}, outputs, bos=Tokenizer.BOS, observe=Observe(rows="all"))
        [rows] = cross_attention(forced.attention, memory, [len(ids) + 1])
    return Found(ids, 0.0, True, rows, ctc, count, memory.stride)
