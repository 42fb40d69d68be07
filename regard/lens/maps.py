"""What a picture needs of a record: both axes, and every layer's weights over them, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regard.attention.observation import Observation
from regard.attention.records import map_parts
from regard.attention.records.record import AttentionRecord, Axis
from regard.errors import ObservationError

LONGEST_SIDE = 1024  # positions; a longer map is not made of words and cells
# Weights of a record's traces that are made for a view: beyond, a page would take more than about 30 MB.
MOST_WEIGHTS = 2**22
MOST_NUMBERED = 2**20  # positions of an axis that nobody described


@dataclass(frozen=True)
class Maps:
    """One run's attention over its two axes.

    target: what was produced, the rows. source: what was attended to, the columns.
    layers: name -> weights [heads, target_len, source_len], float32 on the CPU.
    heads: name -> the heads' numbers, of layers of which only some were observed.
    """

    target: Axis
    source: Axis
    layers: dict[str, Tensor]
    heads: dict[str, tuple[int, ...]] = field(default_factory=dict)


def is_long(record: AttentionRecord) -> bool:
    """Whether a record is too long for maps of words and cells, and holds what its maps can be pooled from."""
    weights = 0
    poolable = True
    long = False
    for observation in record.layers.values():
        pairs = observation.trace
        poolable &= pairs is not None or observation.pooled is not None or map_parts.is_whole(observation)
        if observation.rows is not None:
            long |= max(observation.rows.shape[2:]) > LONGEST_SIDE
        elif pairs is not None:
            long |= max(pairs.query_len, pairs.key_len) > LONGEST_SIDE
            weights += pairs.heads * pairs.query_len * pairs.key_len
        else:
            long |= observation.pooled is not None
    return poolable and (long or weights > MOST_WEIGHTS)


def maps_of(record: AttentionRecord) -> Maps:
    """The maps of a record's first batch item: from the rows that were kept, otherwise from traces.

    A side that nobody described is numbered. A record that kept only chosen rows is drawn with those.

    Raises: ObservationError when a layer holds no rows, does not fit the axes or is not finite; names every such layer.
    """
    if not record.layers:
        raise ObservationError("the record holds no layer; nothing was observed")
    wrong: list[str] = []
    layers: dict[str, Tensor] = {}
    kept: dict[str, list[int]] = {}
    heads: dict[str, tuple[int, ...]] = {}
    for name, observation in record.layers.items():
        if observation.rows is None and observation.trace is None:
            wrong.append(f"`{name}` holds no rows (observe with rows='all')")
            continue
        weights = map_parts.whole_rows(name, observation, [0])[0].detach().cpu()
        if not len(weights):
            wrong.append(f"`{name}` holds no heads")
        if not torch.isfinite(weights).all():
            wrong.append(f"`{name}` holds weights that are not finite (look for NaN in the model)")
        layers[name] = weights
        kept[name] = list(range(weights.shape[1])) if observation.rows is None else map_parts.row_index(observation)
        if observation.head_index is not None:
            heads[name] = tuple(map_parts.head_numbers(observation))
    if wrong:
        raise ObservationError("cannot draw the record: " + "; ".join(wrong))

    first = next(iter(layers))
    chosen, source_len = kept[first], layers[first].shape[2]
    if record.key is None and source_len > MOST_NUMBERED:  # as a damaged file may say of an empty map
        raise ObservationError(f"cannot draw the record: `{first}` has {source_len} columns and no axis that says why")
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
        remedy = "keep the layers that attend from the query axis to the key axis, with `record.only(...)`"
        raise ObservationError(f"{text}; {remedy}")
    return Maps(target, source, layers, heads)


def chosen_map(maps: Maps, layer: str | None, head: int | None) -> Tensor:
    """Weights [target_len, source_len]: means over what was not chosen.

    layer: a layer's name, "last" for the last one, None or "mean" for the mean over layers. head: one head, or None.

    Raises: ObservationError for a layer or head that is not there.
    """
    names = chosen_layers(maps.layers, layer)
    found = []
    for name in names:
        weights = maps.layers[name]
        heads = maps.heads.get(name, tuple(range(len(weights))))
        if head is not None and head not in heads:
            known = f"0 to {len(weights) - 1}" if name not in maps.heads else ", ".join(map(str, heads)) + " alone"
            raise ObservationError(f"layer `{name}` has heads {known}, head {head} was asked for")
        found.append(weights.mean(0) if head is None else weights[heads.index(head)])
    return torch.stack(found).mean(0)


def chosen_layers(layers: Iterable[str], layer: str | None) -> list[str]:
    """The layers that a choice stands for, see `chosen_map`. Raises: ObservationError for a layer that is not there."""
    names = list(layers)
    if layer in (None, "mean"):
        return names
    name = names[-1] if layer == "last" else str(layer)
    if name not in names:
        known = ", ".join(names)
        raise ObservationError(f"layer `{name}` was not observed; observed: {known}; or choose 'last' or 'mean'")
    return [name]


def choice_name(maps: Maps, layer: str | None, head: int | None) -> str:
    """What `chosen_map` shows, in words: "decoder.layers.2.cross, mean of 8 heads"."""
    return choice_in_words({name: len(weights) for name, weights in maps.layers.items()}, layer, head)


def choice_in_words(counts: Mapping[str, int], layer: str | None, head: int | None) -> str:
    """As `choice_name`; counts: layer -> how many heads of it there are."""
    names = chosen_layers(counts, layer)
    where = names[0] if len(names) == 1 else f"mean of {len(names)} layers"
    some = {counts[name] for name in names}
    if head is not None:
        return f"{where}, head {head}"
    if len(some) > 1:
        return f"{where}, mean of all heads"
    [count] = some
    return f"{where}, one head" if count == 1 else f"{where}, mean of {count} heads"


def as_record(maps: Maps) -> AttentionRecord:
    """The maps as a record again, so that `over_words` and the like apply to chosen rows, too."""
    layers = {
        name: Observation(
            rows=weights[None],
            row_index=torch.arange(weights.shape[1]),
            head_index=torch.tensor(maps.heads[name]) if name in maps.heads else None,
        )
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
