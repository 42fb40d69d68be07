"""The observations of a run by layer, with what they are about: what `result.attention` is.

A record knows two axes. The query axis is what was being produced (target tokens), the key axis is what was attended to
(source tokens; later also patches of a picture or frames of a sound). Each token carries its character span, so that
attention lines up with tokens, with words and with characters.

What a record can show depends on what was observed: rows where rows were kept, any part of the full map, exactly, where
a trace was, the picture of a map of any length where it was pooled.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from regard.attention.observation import Observation
from regard.attention.records import map_parts, record_file
from regard.attention.records.axis import Axis
from regard.attention.records.axis import over_words as axis_over_words
from regard.attention.records.map_parts import MOST_SHOWN, Range
from regard.attention.records.record_file import FORMAT_VERSION as FORMAT_VERSION
from regard.attention.records.rollout import kinds, rollout
from regard.attention.words import Span, words_of
from regard.errors import ModelFileError, ObservationError, suggestion


class Drawing(Protocol):
    """What `AttentionRecord.plot` returns; a notebook shows it as a picture."""

    def save(self, path: str | Path) -> Path: ...

    def png(self) -> bytes: ...

    def svg(self) -> str: ...


class AttentionRecord:
    """Observations by layer name, e.g. "decoder.layers.3.cross", of one run over a batch.

    layers: name -> Observation. The calls of a layer that was called several times are "name", "name#1", "name#2"...
    query, key: what the positions are; None where nobody said.
    backend: layer -> the kernel that the model itself ran.
    """

    def __init__(
        self,
        layers: Mapping[str, Observation],
        query: Axis | None = None,
        key: Axis | None = None,
        *,
        backend: Mapping[str, str] | None = None,
    ) -> None:
        self.layers = layers
        self.backend: Mapping[str, str] = {} if backend is None else backend
        self._axes: dict[str, Axis | None] = {"query": query, "key": key}
        self._unread: dict[str, Callable[[], Axis]] = {}  # axes of a file, read when they are first asked for

    @property
    def query(self) -> Axis | None:
        return self._axis("query")

    @property
    def key(self) -> Axis | None:
        return self._axis("key")

    def _axis(self, side: str) -> Axis | None:
        if side in self._unread:
            self._axes[side] = self._unread[side]()
            del self._unread[side]
        return self._axes[side]

    def __repr__(self) -> str:
        names = list(self.layers)
        layers = [f"{name!r}: {self.layers[name]!r}" for name in names[:MOST_SHOWN]]
        layers += [f"and {len(names) - MOST_SHOWN} more"] if len(names) > MOST_SHOWN else []
        return f"AttentionRecord({', '.join(layers)})"

    def __getitem__(self, layer: str) -> Observation:
        """One call's observation: `record["name"]` of a layer called once, `record["name#1"]` of the second call.

        Raises: ObservationError for a layer that was not observed or was called more than once.
        """
        name = layer.removesuffix("#0")
        if name == layer and f"{name}#1" in self.layers:
            count = len(self.calls(name))
            raise ObservationError(
                f"layer `{name}` was called {count} times; choose one call, "
                f"`{name}#0` to `{name}#{count - 1}`, or take record.calls({name!r})"
            )
        try:
            return self.layers[name]
        except KeyError:
            raise self._unknown(layer) from None

    def calls(self, layer: str) -> tuple[Observation, ...]:
        """The observations of every call of a layer, in their order. Raises: ObservationError where there is none."""
        if layer not in self.layers:
            raise self._unknown(layer)
        found = [self.layers[layer]]
        while (name := f"{layer}#{len(found)}") in self.layers:
            found.append(self.layers[name])
        return tuple(found)

    def only(self, *layers: str) -> AttentionRecord:
        """The record of some layers alone, in its own order; layers: names, or patterns such as "decoder.*.cross".

        Raises: ObservationError for a name or pattern that fits no layer.
        """
        kept: set[str] = set()
        for pattern in layers:
            fitting = {name for name in self.layers if name == pattern or fnmatch.fnmatchcase(name, pattern)}
            if not fitting:
                raise self._unknown(pattern)
            kept |= fitting
        return self._with({name: self.layers[name] for name in self.layers if name in kept})

    def about(self, query: Axis | None = None, key: Axis | None = None) -> AttentionRecord:
        """The same record, saying what its positions are; a side that is not given stays as it is."""
        record = self._with(self.layers)
        for side, axis in (("query", query), ("key", key)):
            if axis is not None:
                record._axes[side] = axis
                record._unread.pop(side, None)
        return record

    # -- weights -------------------------------------------------------------------------------------------------------

    def tile(self, layer: str, head: int, queries: Range, keys: Range, item: int = 0) -> Tensor:
        """The exact weights of an area of one head's map, [num_queries, num_keys], float32 at least.

        head: a query head, by its number in the model. queries, keys: (begin, end), or a slice. item: of the batch.
        Recomputed from the layer's trace, at the cost of the area alone; from stored rows where there is no trace.
        Raises: ObservationError, listing all that does not fit.
        """
        return map_parts.tile(layer, self[layer], head, queries, keys, item)

    def rows(
        self,
        layer: str | None = None,
        head: int | None = None,
        *,
        queries: Sequence[int] | None = None,
        item: int = 0,
    ) -> Tensor:
        """Attention weights of one item of the batch, [query_len, key_len], as float32.

        layer: one layer's name; the mean over layers unless given. head: one head; the mean over heads unless given.
        queries: chosen ones alone, in this order, negative ones from the end; unless given those whose rows were kept,
        or all of a trace, up to 4096 x 4096.
        Raises: ObservationError for what was not observed, and for a map too large to be made whole.
        """
        names = [layer] if layer is not None else list(self.layers)
        maps = [map_parts.rows(name, self[name], head, queries, item) for name in names]
        if not maps:
            raise ObservationError("the record holds no layer; nothing was observed")
        if len({one.shape for one in maps}) > 1:
            sizes = ", ".join(
                f"`{name}` {one.shape[0]} x {one.shape[1]}" for name, one in zip(names, maps, strict=True)
            )
            raise ObservationError(f"rows: the layers' maps differ in size: {sizes}; choose one with layer=")
        return torch.stack(maps).mean(0)

    def pooled(self, layer: str, head: int | None = None, level: int = 0, item: int = 0) -> Tensor:
        """The mass of one head's map summed over the cells of a grid, [grid rows, grid columns], float32 at least.

        head: the mean over heads unless given. level: 0 is the grid as observed; each further one halves both sides by
        summing 2 x 2 cells (a last odd row or column stays alone), down to a single cell.
        Raises: ObservationError where the layer holds no pooled map, head, level or item.
        """
        name, layers = layer.removesuffix("#0"), self.layers

        def stored(level: int) -> Tensor | None:
            return layers.level(name, level) if isinstance(layers, record_file.StoredLayers) else None

        return map_parts.pooled(layer, self[layer], head, level, item, stored)

    def rollout(
        self, queries: int | Sequence[int] = -1, *, layers: str | Sequence[str] | None = None, item: int = 0
    ) -> Tensor:
        """How much of each input position flows into chosen output positions through all layers of self-attention.

        queries: one position gives [key_len], several [num_queries, key_len]; negative ones count from the end.
        layers: names in the order in which the model calls them, or a pattern such as "encoder.*"; all unless given.
        Memory is linear in the length where layers hold traces; a second pass for each layer and query.
        Raises: ObservationError, naming every layer that cannot take part. Source: Abnar and Zuidema 2020.
        """
        if layers is None or isinstance(layers, str):
            chosen = self if layers is None else self.only(layers)
            names = list(chosen.layers)
            stacks = kinds([name for name in names if "#" not in name])
            if len(stacks) > 1:
                raise ObservationError(
                    f"rollout: the record holds layers of {len(stacks)} kinds ({', '.join(stacks)}); choose the "
                    "self-attention of one stack of layers with `layers=`"
                )
        else:
            names = list(layers)
        found = {name: self[name] for name in names}
        rows = rollout(found, [queries] if isinstance(queries, int) else queries, item)
        return rows[0] if isinstance(queries, int) else rows

    # -- views ---------------------------------------------------------------------------------------------------------

    def over_words(
        self, query_words: Sequence[Span] | None = None, key_words: Sequence[Span] | None = None
    ) -> AttentionRecord:
        """The same record with words in place of tokens.

        query_words, key_words: character spans of the words in each axis' text, found by `words_of` unless given. A
        token belongs to the word with which it shares most characters, a lone mark of a word's beginning to the word;
        special tokens stay words of their own. The mass on a word's tokens is summed over keys and averaged over
        queries, so that each row still sums to 1.
        """
        if self.query is None or self.key is None:
            raise ObservationError("over_words: the record does not say what its axes are")
        query, query_members = axis_over_words(
            self.query, words_of(self.query.text) if query_words is None else query_words
        )
        key, key_members = axis_over_words(self.key, words_of(self.key.text) if key_words is None else key_words)
        layers = {}
        for name in self.layers:
            weights = map_parts.whole_rows(name, self.layers[name])
            if weights.shape[-2:] != (len(self.query), len(self.key)):
                raise ObservationError(
                    f"over_words: layer `{name}` holds {weights.shape[-2]} of {len(self.query)} rows and "
                    f"{weights.shape[-1]} of {len(self.key)} columns; observe with rows='all'"
                )
            sums = weights @ key_members.T
            means = (query_members / query_members.sum(1, keepdim=True)) @ sums
            layers[name] = Observation(
                rows=means, row_index=torch.arange(len(query)), head_index=self.layers[name].head_index
            )
        return AttentionRecord(layers, query, key, backend=self.backend)

    def alignment(self, **options: Any) -> list[tuple[int, int, float]]:
        """Which source word each target word came from: (query word, key word, weight); options: `regard.lens.align`'s.

        Raises: ObservationError for a record without rows or axes.
        """
        links: list[tuple[int, int, float]] = _taught("alignment")(self, **options)
        return links

    def plot(
        self,
        layer: str,
        head: int | None = None,
        *,
        queries: Range | None = None,
        keys: Range | None = None,
        item: int = 0,
    ) -> Drawing:
        """One map, or an area of it, as a picture with `save`, `png` and `svg`.

        head: the mean over heads unless given. queries, keys: the area; everything unless given. An area of up to 1024
        positions a side is drawn exactly from the trace or stored rows, a larger one pooled: from the pooled map where
        it is the whole, otherwise by a second pass over the trace.
        Raises: ObservationError where neither is there.
        """
        drawing: Drawing = _taught("plot")(self, layer, head, queries=queries, keys=keys, item=item)
        return drawing

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes the record; the ending says how: .safetensors (complete), or a view as .html .png .svg .jsonl."""
        path = Path(path)
        if path.suffix == ".safetensors":
            record_file.write(path, self.layers, {"query": self.query, "key": self.key}, self.backend)
            return path
        writer = WRITERS.get(path.suffix)
        if writer is None:
            known = ", ".join([".safetensors", *sorted(WRITERS)])
            raise ObservationError(f"{path}: ending {path.suffix or 'missing'!r} is not known; known: {known}")
        writer([self], path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> AttentionRecord:
        """The record that `save` wrote as .safetensors: mapped into memory, and read where it is looked at.

        Raises: ModelFileError when it is missing or damaged; for contents that do not fit, when they are looked at.
        """
        if not isinstance(path, str | os.PathLike):
            raise ModelFileError(f"AttentionRecord.load: {path!r} is no path; give the file that `save` wrote")
        stored = record_file.read(Path(path))
        record = cls(stored.layers, backend=stored.backend)
        record._unread = stored.axes
        return record

    # -- parts of the above --------------------------------------------------------------------------------------------

    def _with(self, layers: Mapping[str, Observation]) -> AttentionRecord:
        record = AttentionRecord(layers, self._axes["query"], self._axes["key"], backend=self.backend)
        record._unread = dict(self._unread)
        return record

    def _unknown(self, layer: str) -> ObservationError:
        known = list(self.layers)
        shown = ", ".join(known[:MOST_SHOWN]) + (f" and {len(known) - MOST_SHOWN} more" if known[MOST_SHOWN:] else "")
        return ObservationError(f"layer `{layer}` was not observed; observed: {shown}{suggestion(layer, known)}")


# Views of records, by file ending, and of one record, by name. A later layer (regard.lens) adds them, so that this file
# depends on none of it.
WRITERS: dict[str, Callable[[list[AttentionRecord], Path], None]] = {}
VIEWS: dict[str, Callable[..., Any]] = {}


def select_item(record: AttentionRecord, item: int) -> AttentionRecord:
    """The record of one item of the batch. Raises: ObservationError where a layer has no such item."""
    layers = {}
    for name, observation in record.layers.items():
        kept: dict[str, Any] = {}
        for statistic, value in observation.tensors().items():
            if map_parts.is_index(statistic):
                continue
            if not 0 <= item < value.shape[0]:
                raise ObservationError(f"layer `{name}` has items 0 to {value.shape[0] - 1}, item {item} was asked for")
            kept[statistic] = value[item : item + 1]
        if observation.trace is not None:
            kept["trace"] = observation.trace.select_item(item)
        layers[name] = replace(observation, **kept)
    return record._with(layers)


def _taught(view: str) -> Callable[..., Any]:
    if view not in VIEWS:
        raise ObservationError(f"{view} is drawn by regard.lens, which is not loaded; `import regard.lens` first")
    return VIEWS[view]
