"""The pointing game (Zhang et al. 2016), played with gaze: is a word's attention where the thing is that it names?

Each held-out caption is forced word by word; for every word that says what a thing is, its colour or its shape, the
centre of mass of the attention must lie in the square around that thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.attention.observation import Observe
from regard.attention.records.axis import PictureGrid
from regard.data.batches import Sequences
from regard.decoding.force import force
from regard.inputs.text import Tokenizer
from regard.tasks.caption.captioner import Captioner
from regard.tasks.caption.demo_scenes import Scene

PICTURES_AT_ONCE = 100


@dataclass(frozen=True)
class Pointing:
    """Shares of words, 0 to 1.

    accuracy: centre of mass inside the thing. chance: the mean share of the grid's places that are inside. shuffled:
    the accuracy when each picture's vectors have changed places before the decoder sees them, so that gaze points to
    what a vector shows and not to where it was: near chance unless something else than gaze is measured.
    """

    accuracy: float
    chance: float
    shuffled: float
    num_words: int


def pointing(captioner: Captioner, scenes: Sequence[Scene], pixels: Sequence[np.ndarray], *, seed: int) -> Pointing:
    """pixels: the scenes, brought to the model's size. seed: of the shuffle."""
    chance = torch.Generator().manual_seed(seed)
    found: list[tuple[bool, float, bool]] = []
    for begin in range(0, len(scenes), PICTURES_AT_ONCE):
        part = slice(begin, begin + PICTURES_AT_ONCE)
        plain, grid = _gaze(captioner, scenes[part], pixels[part], None)
        shuffled, _ = _gaze(captioner, scenes[part], pixels[part], chance)
        for scene, own, other in zip(scenes[part], plain, shuffled, strict=True):
            found += _judged(captioner, scene, own, other, grid)
    right, by_chance, when_shuffled = (float(np.mean(column)) for column in zip(*found, strict=True))
    return Pointing(right, by_chance, when_shuffled, len(found))


def _judged(
    captioner: Captioner, scene: Scene, own: Tensor, other: Tensor, grid: PictureGrid
) -> list[tuple[bool, float, bool]]:
    """Of each word that names a thing: (right, share of places that are right, right when shuffled)."""
    [encoded] = captioner.tokenizer.encode([scene.caption])
    centres = grid.centres().float()
    found = []
    for begin, end, thing in scene.named():
        tokens = [place for place, (a, b) in enumerate(encoded.offsets) if a < end and b > begin]
        inside = [thing.covers(x, y) for x, y in centres.tolist()]
        places = [(rows[tokens].mean(0) @ centres).tolist() for rows in (own, other)]
        found.append((thing.covers(*places[0]), float(np.mean(inside)), thing.covers(*places[1])))
    return found


@torch.no_grad()
def _gaze(
    captioner: Captioner, scenes: Sequence[Scene], pixels: Sequence[np.ndarray], shuffle: torch.Generator | None
) -> tuple[list[Tensor], PictureGrid]:
    """Per scene the mean over layers and heads, [tokens, places], and the grid."""
    values = torch.from_numpy(np.stack(pixels))
    memories, _ = captioner.model.encode(values, torch.full((len(values),), values.shape[1]))
    memory = memories["source"]
    assert memory.grid is not None
    rows, columns = memory.grid
    if shuffle is not None:
        order = torch.rand(memory.vectors.shape[:2], generator=shuffle).argsort(1)
        moved = memory.vectors.gather(1, order[..., None].expand_as(memory.vectors))
        memory = replace(memory, vectors=moved)
    encoded = captioner.tokenizer.encode_ids([scene.caption for scene in scenes])
    target, lengths = Sequences.padded(encoded)
    decoder: Any = captioner.model.decoder
    forced = force(decoder, {"source": memory}, target, lengths, bos=Tokenizer.BOS, observe=Observe(rows="all"))
    observed = [layer.rows.mean(1) for layer in forced.attention.values() if layer.rows is not None]
    mean = torch.stack(observed).mean(0)
    grid = PictureGrid(rows, columns, torch.from_numpy(np.array(pixels[0])))
    return [mean[row, : int(lengths[row])] for row in range(len(scenes))], grid
