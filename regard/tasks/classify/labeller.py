"""A trained classifier of text: loaded by path, asked for labels, written as a model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regard.lens  # noqa: F401  (teaches records to save themselves as pages and pictures)
from regard.attention.observation import Observation, Observe
from regard.attention.records.record import AttentionRecord, Axis
from regard.data.batches import Sequences, by_length
from regard.errors import ConfigError, DataError
from regard.inputs.text import Encoded, Tokenizer
from regard.models.classifier import POOLED, Classifier, ClassifierConfig
from regard.tasks import model_directory
from regard.tasks.classify.result import Classification
from regard.tasks.loading import config_of, fitted, tokenizer_of
from regard.tasks.recipe import plain
from regard.training.averaging import weights_of

Source = str | tuple[str, str]


@dataclass(frozen=True)
class LabellerConfig:
    """What a model directory says beside the model itself."""

    model: ClassifierConfig
    labels: tuple[str, ...]
    pairs: bool
    longest: int  # the most tokens of a text in training, its end counted; a longer one is refused
    training: dict[str, Any]  # where the model comes from: recipe, data hash, scores; for people and for `evaluate`

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ConfigError(f"labels are {list(self.labels)}, expected at least 2")


class Labeller:
    """model: in evaluation mode, on the device and in the dtype that it computes in."""

    def __init__(self, model: Classifier, tokenizer: Tokenizer, config: LabellerConfig) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config

    @classmethod
    def load(
        cls, directory: model_directory.ModelDirectory, device: torch.device | str, dtype: torch.dtype
    ) -> Labeller:
        """The model that `save` wrote. Raises: ModelFileError when the files do not fit each other."""
        tokenizer = tokenizer_of(directory, "text")
        config = config_of(directory, LabellerConfig)
        model = fitted(directory, lambda: Classifier(len(tokenizer), len(config.labels), config.model))
        return cls(model.to(device=device, dtype=dtype), tokenizer, config)

    def __repr__(self) -> str:
        return f"Labeller({len(self.config.labels)} labels, {self.model.num_parameters():,} parameters)"

    def save(self, folder: Path, card: str = "") -> None:
        """Writes a model directory. card: the text of its README.md."""
        texts = {"tokenizer.json": self.tokenizer.to_json()} | ({"README.md": card} if card else {})
        config = {**json.loads(json.dumps(plain(self.config))), "tokenizers": {"text": "tokenizer.json"}}
        model_directory.write(folder, task="classify", config=config, weights=weights_of(self.model), texts=texts)

    def classify(
        self, sources: Iterable[Source], *, attention: bool = False, batch_tokens: int = 4096
    ) -> list[Classification]:
        """The label of each text, or of each pair of texts if the model was trained on pairs; in the same order.

        attention: also return what stands behind it. batch_tokens: padded tokens classified at once.
        Raises: DataError for what `refuses` refuses.
        """
        given = []
        for number, source in enumerate(sources, start=1):
            reason = self.refuses(source)
            if reason is not None:
                raise DataError(f"classify: input {number} {reason}")
            given.append((source,) if isinstance(source, str) else tuple(source))
        encoded = [self.tokenizer.encode(texts) for texts in given]
        rows = [joined([one.ids for one in parts]) for parts in encoded]
        lengths = np.array([len(ids) + 1 for ids in rows], dtype=np.int64)
        results: dict[int, Classification] = {}
        for places in by_length(lengths, batch_tokens):
            probabilities, seen = self._probabilities([rows[place] for place in places], attention)
            for row, place in enumerate(places.tolist()):
                record = None
                if seen:
                    record = self._record(given[place], encoded[place], {name: one[row] for name, one in seen.items()})
                results[place] = self._told(given[place], probabilities[row], record)
        return [results[place] for place in range(len(rows))]

    def refuses(self, source: Any) -> str | None:
        """Why an input cannot be classified, in words that follow its name; None where it can."""
        texts = (source,) if isinstance(source, str) else tuple(source) if isinstance(source, tuple | list) else ()
        if len(texts) != 1 + self.config.pairs or not all(isinstance(text, str) for text in texts):
            wanted = "a pair of strings" if self.config.pairs else "a string"
            return f"is {type(source).__name__}, expected {wanted}"
        if any(not text.strip() for text in texts):
            return "is empty, expected text; leave it out"
        longest = self.config.longest
        for text in texts:
            if len(text.encode("utf-8", "replace")) + 2 <= longest:  # no text has more tokens than bytes and two
                continue
            count = len(self.tokenizer.encode_ids([text])[0]) + 1
            if count > longest:
                return f"has {count:,} tokens, but the model was trained on at most {longest}; shorten it, or cut it up"
        return None

    @torch.no_grad()
    def _probabilities(self, rows: Sequence[list[int]], attention: bool) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        """([rows, labels], layer -> [rows, heads, length], what stands behind each label)."""
        device = next(self.model.parameters()).device
        ids, lengths = (tensor.to(device) for tensor in Sequences.padded(rows))
        found = self.model(ids, lengths, Observe(rows="all") if attention else None)
        probabilities = found.logits.double().softmax(-1).cpu().numpy()
        seen = {}
        for name, one in found.attention.items():
            assert one.rows is not None
            seen[name] = self._behind(name, one.rows, lengths).float().cpu()
        return probabilities, seen

    def _behind(self, name: str, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """rows [batch, heads, query_len, length] -> [batch, heads, length]: what the pooled vector looked at."""
        if name == POOLED:
            return rows[:, 0]
        if self.config.model.pooling.kind == "first":
            return rows[:, :, 0]
        return rows.sum(2) / lengths[:, None, None]  # padded queries have rows of zeros

    def _record(
        self, texts: tuple[str, ...], encoded: Sequence[Encoded], layers: dict[str, torch.Tensor]
    ) -> AttentionRecord:
        key = _axis(texts, encoded)
        query = Axis("label", ("label",), ((0, 5),))
        count = len(key.tokens)
        rows = {
            name: Observation(rows=one[None, :, None, :count], row_index=torch.arange(1))
            for name, one in layers.items()
        }
        return AttentionRecord(rows, query, key)

    def _told(
        self, texts: tuple[str, ...], probabilities: np.ndarray, record: AttentionRecord | None
    ) -> Classification:
        order = np.argsort(-probabilities, kind="stable")
        shares = {self.config.labels[place]: float(probabilities[place]) for place in order}
        return Classification(texts, next(iter(shares)), shares, record)


def joined(parts: Sequence[list[int]]) -> list[int]:
    """The ids of one or two texts as the model reads them: an end token between, and, added later, one at the end."""
    first, *others = parts
    return [*first, *(identity for ids in others for identity in (Tokenizer.EOS, *ids))]


def _axis(texts: tuple[str, ...], encoded: Sequence[Encoded]) -> Axis:
    """All tokens, end tokens included, over the texts with a blank line between."""
    separator, begin = "\n\n", 0
    tokens: list[str] = []
    spans: list[tuple[int, int]] = []
    for text, one in zip(texts, encoded, strict=True):
        tokens += [*one.tokens, "</s>"]
        spans += [*((a + begin, b + begin) for a, b in one.offsets), (begin + len(text), begin + len(text))]
        begin += len(text) + len(separator)
    return Axis(separator.join(texts), tuple(tokens), tuple(spans))
