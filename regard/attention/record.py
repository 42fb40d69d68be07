"""The observations of a run by layer, with what they are about: what `result.attention` is.

A record knows two axes. The query axis is what was being produced (target tokens), the key axis is what was attended to
(source tokens; later also patches of a picture or frames of a sound). Each token carries its character span, so that
attention lines up with tokens, with words and with characters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from regard.attention.observation import Observation
from regard.attention.words import Span, words_of
from regard.errors import ConfigError, ModelFileError, ObservationError

FORMAT_VERSION = 1
WORD_MARKS = " \u2581\u0120"  # how SentencePiece and byte-level tokenizers show the space before a word


@dataclass(frozen=True)
class Axis:
    """What one side of an attention map is about.

    text: the whole text.
    tokens: one string a position, special tokens included.
    spans: per token its half-open character range in `text`; empty for special tokens.
    """

    text: str
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.spans), "one span a token"

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False, repr=False)
class AttentionRecord:
    """Observations by layer name, e.g. "decoder.layers.3.cross", of one run over a batch.

    layers: name -> Observation; `rows` has shape [batch, heads, query_len, key_len].
    query, key: what the positions are; None where nobody said.
    """

    layers: Mapping[str, Observation]
    query: Axis | None = None
    key: Axis | None = None

    def __repr__(self) -> str:
        layers = (f"{name!r}: {observation!r}" for name, observation in self.layers.items())
        return f"AttentionRecord({', '.join(layers)})"

    def __getitem__(self, layer: str) -> Observation:
        try:
            return self.layers[layer]
        except KeyError:
            known = ", ".join(self.layers)
            raise ObservationError(f"layer `{layer}` was not observed; observed: {known}") from None

    def rows(self, layer: str | None = None, head: int | None = None) -> Tensor:
        """Attention weights [query_len, key_len] of the batch's first item, as float32.

        layer: one layer's name; the mean over layers unless given. head: one head; the mean over heads unless given.
        """
        names = [layer] if layer is not None else list(self.layers)
        maps = []
        for name in names:
            weights = self[name].rows
            if weights is None:
                raise ObservationError(f"layer `{name}` holds no rows; observe with rows='all'")
            if head is not None and not 0 <= head < weights.shape[1]:
                last = weights.shape[1] - 1
                raise ObservationError(f"layer `{name}` has heads 0 to {last}, head {head} was asked for")
            maps.append(weights[0].float().mean(0) if head is None else weights[0, head].float())
        if not maps:
            raise ObservationError("the record holds no layer; nothing was observed")
        return torch.stack(maps).mean(0)

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
        query, query_members = _word_axis(self.query, words_of(self.query.text) if query_words is None else query_words)
        key, key_members = _word_axis(self.key, words_of(self.key.text) if key_words is None else key_words)
        layers = {}
        for name, observation in self.layers.items():
            if observation.rows is None:
                raise ObservationError(f"layer `{name}` holds no rows; observe with rows='all'")
            weights = observation.rows.float()
            if weights.shape[-2:] != (len(self.query), len(self.key)):
                raise ObservationError(
                    f"over_words: layer `{name}` holds {weights.shape[-2]} of {len(self.query)} rows and "
                    f"{weights.shape[-1]} of {len(self.key)} columns; observe with rows='all'"
                )
            sums = weights @ key_members.T
            means = (query_members / query_members.sum(1, keepdim=True)) @ sums
            layers[name] = Observation(rows=means, row_index=torch.arange(len(query)))
        return AttentionRecord(layers, query, key)

    def save(self, path: str | Path) -> Path:
        """Writes the record; the ending says how: .safetensors (complete), or a view as .html .png .svg .jsonl."""
        path = Path(path)
        if path.suffix == ".safetensors":
            _write_safetensors(self, path)
            return path
        writer = WRITERS.get(path.suffix)
        if writer is None:
            known = ", ".join([".safetensors", *sorted(WRITERS)])
            raise ObservationError(f"{path}: ending {path.suffix or 'missing'!r} is not known; known: {known}")
        writer([self], path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> AttentionRecord:
        """The record that `save` wrote as .safetensors. Raises: ModelFileError when it is missing or damaged."""
        if not isinstance(path, str | os.PathLike):
            raise ModelFileError(f"AttentionRecord.load: {path!r} is no path; give the file that `save` wrote")
        return _read_safetensors(Path(path))


# Views of records, by file ending. A later layer (regard.lens) adds them, so that this file depends on none of it.
WRITERS: dict[str, Callable[[list[AttentionRecord], Path], None]] = {}


def select_item(record: AttentionRecord, item: int) -> AttentionRecord:
    """The record of one item of the batch."""
    layers = {}
    for name, observation in record.layers.items():
        kept = {key: value[item : item + 1] for key, value in observation.tensors().items() if key != "row_index"}
        layers[name] = replace(observation, **kept)
    return replace(record, layers=layers)


def _word_axis(axis: Axis, words: Sequence[Span]) -> tuple[Axis, Tensor]:
    """The axis over words, and its membership matrix [num_words, num_tokens] of zeros and ones."""
    owner: list[tuple[int, int]] = []  # per token: (word, -1), or (-1, token) where it stands for itself
    for index, (begin, end) in enumerate(axis.spans):
        shared = [min(end, stop) - max(begin, start) for start, stop in words]
        best = max(range(len(words)), key=shared.__getitem__, default=-1)
        owner.append((best, -1) if best >= 0 and shared[best] > 0 else (-1, index))
    for index in reversed(range(len(owner) - 1)):
        # Subword tokenizers may set a word's mark apart ("▁", "O", "ctober"): it belongs to the word that follows.
        if owner[index][0] < 0 <= owner[index + 1][0] and not axis.tokens[index].strip(WORD_MARKS):
            owner[index] = owner[index + 1]
    order = list(dict.fromkeys(owner))
    members = torch.zeros(len(order), len(axis))
    for token, who in enumerate(owner):
        members[order.index(who), token] = 1.0
    tokens, spans = [], []
    for word, token in order:
        spans.append(words[word] if word >= 0 else axis.spans[token])
        tokens.append(axis.text[slice(*words[word])] if word >= 0 else axis.tokens[token])
    return Axis(axis.text, tuple(tokens), tuple(spans)), members


def _write_safetensors(record: AttentionRecord, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        f"{layer}/{name}": tensor.detach().contiguous().clone()
        for layer, observation in record.layers.items()
        for name, tensor in observation.tensors().items()
    }
    about = {
        side: {"text": axis.text, "tokens": axis.tokens, "spans": axis.spans}
        for side, axis in (("query", record.query), ("key", record.key))
        if axis is not None
    }
    # The file keeps tensors by name, which would put layer 10 before layer 2.
    header = {
        "format": "regard.attention",
        "format_version": str(FORMAT_VERSION),
        "axes": json.dumps(about),
        "layers": json.dumps(list(record.layers)),
    }
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no such folder `{path.parent}`; create it or write elsewhere")
    try:
        save_file(tensors, path, metadata=header)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot be written ({error}); choose a folder that exists and can be") from None


def _read_safetensors(path: Path) -> AttentionRecord:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelFileError(f"{path}: no such record; write one with `record.save({path.name!r})`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        version = int(header.get("format_version", "0"))
        about = json.loads(header.get("axes", "{}"))
        axes = {
            side: Axis(axis["text"], tuple(axis["tokens"]), tuple((begin, end) for begin, end in axis["spans"]))
            for side, axis in about.items()
        }
        order = {layer: place for place, layer in enumerate(json.loads(header.get("layers", "[]")))}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError) as error:
        raise ModelFileError(f"{path}: not a readable attention record ({error}); write it again") from None
    if version > FORMAT_VERSION:
        raise ModelFileError(f"{path}: format {version}, this regard reads up to {FORMAT_VERSION}; upgrade regard")
    if header.get("format") != "regard.attention":
        raise ModelFileError(f"{path}: not an attention record; write one with `record.save(...)`")
    known = {field.name for field in fields(Observation)}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, statistic = name.rpartition("/")
        if statistic not in known:
            raise ModelFileError(f"{path}: statistic `{statistic}` is not known; upgrade regard")
        layers.setdefault(layer, {})[statistic] = tensor
    names = sorted(layers, key=lambda layer: order.get(layer, len(order)))
    observations = {layer: Observation(**layers[layer]) for layer in names}
    return AttentionRecord(observations, axes.get("query"), axes.get("key"))
