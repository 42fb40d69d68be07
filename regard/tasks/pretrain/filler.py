"""A pre-trained encoder: loaded by path, asked to fill in words, written as a directory that others begin with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regard.data.batches import Sequences
from regard.errors import DataError
from regard.inputs.text import Tokenizer
from regard.models.masked_language_model import MASK, MaskedLanguageModel, MaskedLanguageModelConfig
from regard.tasks import model_directory
from regard.tasks.loading import config_of, fitted, tokenizer_of
from regard.tasks.recipe import plain
from regard.training.averaging import weights_of

BLANK = "___"  # what stands in a text for a token to be filled in


@dataclass(frozen=True)
class FillerConfig:
    """What a model directory says beside the model itself."""

    model: MaskedLanguageModelConfig
    training: dict[str, Any]  # where the model comes from: recipe, data hash, scores


@dataclass(frozen=True)
class Filled:
    """tokens: of each blank the likeliest tokens with their probabilities, likeliest first."""

    source: str
    tokens: tuple[tuple[tuple[str, float], ...], ...]


class Filler:
    """model: in evaluation mode, on the device and in the dtype that it computes in."""

    def __init__(self, model: MaskedLanguageModel, tokenizer: Tokenizer, config: FillerConfig) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config

    @classmethod
    def load(cls, directory: model_directory.ModelDirectory, device: torch.device | str, dtype: torch.dtype) -> Filler:
        """The model that `save` wrote. Raises: ModelFileError when the files do not fit each other."""
        tokenizer = tokenizer_of(directory, "text")
        config = config_of(directory, FillerConfig)
        model = fitted(directory, lambda: MaskedLanguageModel(len(tokenizer), config.model))
        return cls(model.to(device=device, dtype=dtype), tokenizer, config)

    def __repr__(self) -> str:
        return f"Filler({self.model.num_parameters():,} parameters)"

    def save(self, folder: Path, card: str = "") -> None:
        """Writes a model directory. card: the text of its README.md."""
        texts = {"tokenizer.json": self.tokenizer.to_json()} | ({"README.md": card} if card else {})
        config = {**json.loads(json.dumps(plain(self.config))), "tokenizers": {"text": "tokenizer.json"}}
        model_directory.write(folder, task="pretrain", config=config, weights=weights_of(self.model), texts=texts)

    @torch.no_grad()
    def fill(self, texts: Iterable[str], *, num_best: int = 5) -> list[Filled]:
        """For each blank ("___") of each text the likeliest tokens. Raises: DataError for a text without a blank."""
        device = next(self.model.parameters()).device
        found = []
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str) or BLANK not in text:
                raise DataError(f"fill: input {number} has no blank; write {BLANK} where a word is missing")
            parts = self.tokenizer.encode_ids(text.split(BLANK))
            ids = [identity for place, part in enumerate(parts) for identity in ([MASK] if place else []) + part]
            values, lengths = Sequences.padded([ids])
            hidden, _ = self.model(values.to(device), lengths.to(device))
            blanks = [place for place, identity in enumerate(ids) if identity == MASK]
            probabilities, chosen = self.model.head.log_probs(hidden[0, blanks]).exp().topk(num_best, dim=-1)
            tokens = tuple(
                tuple(zip(self.tokenizer.tokens_of(row), shares, strict=True))
                for row, shares in zip(chosen.tolist(), probabilities.tolist(), strict=True)
            )
            found.append(Filled(text, tokens))
        return found
