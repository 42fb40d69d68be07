"""What a picture needs of a record: both axes, and every layer's weights over them, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.attention.observation import Observation
from regard.attention.record import AttentionRecord, Axis
from regard.errors import ObservationError


@dataclass(frozen=True)
class Maps:
    """One run's attention over its two axes.

    target: what was produced, the rows. source: what was attended to, the columns.
    layers: name -> weights [heads, target_len, source_len], float32 on the CPU.
    """

    target: Axis
    source: Axis
    layers: dict[str, Tensor]


def maps_of(record: AttentionRecord) -> Maps:
    """The maps of a record's first batch item.

    A side that nobody described is numbered. A record that kept only chosen rows is drawn with those.

    Raises: ObservationError when a layer holds no rows, does not fit the axes or is not finite; names every such layer.
    """
    if not record.layers:
        raise ObservationError("the record holds no layer; nothing was observed")
    wrong: list[str] = []
    layers: dict[str, Tensor] = {}
    kept: dict[str, list[int]] = {}
    for name, observation in record.layers.items():
        if observation.rows is None:
            wrong.append(f"`{name}` holds no rows (observe with rows='all')")
            continue
        weights = observation.rows[0].detach().float().cpu()
        index = range(weights.shape[1]) if observation.row_index is None else observation.row_index.tolist()
        if not torch.isfinite(weights).all():
            wrong.append(f"`{name}` holds weights that are not finite (look for NaN in the model)")
        layers[name], kept[name] = weights, list(index)
    if wrong:
        raise ObservationError("cannot draw the record: " + "; ".join(wrong))

    first = next(iter(layers))
    chosen, source_len = kept[first], layers[first].shape[2]
    target, source = _kept(record.query, chosen), _whole(record.key, source_len)
    for name, weights in layers.items():
        if kept[name] != chosen or weights.shape[2] != source_len:
            wrong.append(f"`{name}` maps {weights.shape[1]} x {weights.shape[2]} positions, not those of `{first}`")
    if target is None:
        wrong.append(f"rows up to {max(chosen)} but {len(record.query or ())} query tokens")
    if source is None:
        wrong.append(f"{source_len} columns but {len(record.key or ())} key tokens")
    if target is None or source is None or wrong:
        text = "cannot draw the record: " + "; ".join(wrong)
        raise ObservationError(text + "; keep the layers that attend from the query axis to the key axis")
    return Maps(target, source, layers)


def chosen_map(maps: Maps, layer: str | None, head: int | None) -> Tensor:
    """Weights [target_len, source_len]: means over what was not chosen.

    layer: a layer's name, "last" for the last one, None or "mean" for the mean over layers. head: one head, or None.

    Raises: ObservationError for a layer or head that is not there.
    """
    if layer == "last":
        layer = list(maps.layers)[-1]
    names = list(maps.layers) if layer in (None, "mean") else [layer]
    found = []
    for name in names:
        if name not in maps.layers:
            known = ", ".join(maps.layers)
            raise ObservationError(f"layer `{name}` was not observed; observed: {known}; or choose 'last' or 'mean'")
        weights = maps.layers[name]
        if head is not None and not 0 <= head < len(weights):
            raise ObservationError(f"layer `{name}` has heads 0 to {len(weights) - 1}, head {head} was asked for")
        found.append(weights.mean(0) if head is None else weights[head])
    return torch.stack(found).mean(0)


def choice_name(maps: Maps, layer: str | None, head: int | None) -> str:
    """What `chosen_map` shows, in words: "decoder.layers.2.cross, mean of 8 heads"."""
    if layer == "last":
        layer = list(maps.layers)[-1]
    if layer in (None, "mean") and len(maps.layers) == 1:
        layer = next(iter(maps.layers))
    where = f"mean of {len(maps.layers)} layers" if layer in (None, "mean") else str(layer)
    counts = {len(weights) for name, weights in maps.layers.items() if layer in (None, "mean", name)}
    if head is not None:
        return f"{where}, head {head}"
    if len(counts) > 1:
        return f"{where}, mean of all heads"
    [count] = counts
    return f"{where}, one head" if count == 1 else f"{where}, mean of {count} heads"


def as_record(maps: Maps) -> AttentionRecord:
    """The maps as a record again, so that `over_words` and the like apply to chosen rows, too."""
    layers = {
        name: Observation(rows=weights[None], row_index=torch.arange(weights.shape[1]))
        for name, weights in maps.layers.items()
    }
    return AttentionRecord(layers, maps.target, maps.source)


def _whole(axis: Axis | None, length: int) -> Axis | None:
    """The axis; numbers where there is none; None where it does not fit."""
    if axis is None:
        return Axis("", tuple(str(position) for position in range(length)), ((0, 0),) * length)
    return axis if len(axis) == length else None


def _kept(axis: Axis | None, chosen: Sequence[int]) -> Axis | None:
    """The chosen positions of the axis; numbers where there is none; None where they lie outside of it."""
    if axis is None:
        return Axis("", tuple(str(position) for position in chosen), ((0, 0),) * len(chosen))
    if any(position >= len(axis) for position in chosen):
        return None
    tokens = tuple(axis.tokens[position] for position in chosen)
    return replace(axis, tokens=tokens, spans=tuple(axis.spans[position] for position in chosen))
