"""A trained translation model: loaded by path, asked for translations, written as a model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regard.lens  # noqa: F401  (teaches records to save themselves as pages and pictures)
from regard.attention.observation import Observe
from regard.data.batches import Sequences, by_length
from regard.decoding.hypotheses import Hypothesis
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.errors import ConfigError, DataError
from regard.inputs.sentences import split_long
from regard.inputs.text import Tokenizer
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.tasks import model_directory
from regard.tasks.loading import config_of, fitted, tokenizer_of
from regard.tasks.recipe import plain
from regard.tasks.search_options import search_options
from regard.tasks.translate.recipe import ROLES
from regard.tasks.translate.result import Translation, joined, translation_of
from regard.training.averaging import weights_of

UNSPACED = ("ja", "yue", "zh")  # languages whose sentences follow each other without a space
PLACE_BITS = 40  # of a sample's number, for the text; the rest is for the piece


@dataclass(frozen=True)
class TranslatorConfig:
    """What a model directory says beside the model itself."""

    source_language: str
    target_language: str
    model: EncoderDecoderConfig
    decoding: DecodingOptions
    # The longest source that training saw, in tokens; a longer text is translated sentence by sentence.
    longest_source: int
    training: dict[str, Any]  # where the model comes from: recipe, data hash, scores; for people and for `evaluate`
    # Whether training saw sentences one by one; such a model drops all but one of several, however short.
    sentence_level: bool = True

    def __post_init__(self) -> None:
        self.decoding.check()
        if self.longest_source < 1:
            raise ConfigError(f"longest_source is {self.longest_source}, expected 1 or more")


class Translator:
    """model: in evaluation mode, on the device and in the dtype that it computes in."""

    def __init__(self, model: EncoderDecoder, source: Tokenizer, target: Tokenizer, config: TranslatorConfig) -> None:
        self.model = model.eval()
        self.source_tokenizer = source
        self.target_tokenizer = target
        self.config = config

    @classmethod
    def load(
        cls, directory: model_directory.ModelDirectory, device: torch.device | str, dtype: torch.dtype
    ) -> Translator:
        """The model that `save` wrote. Raises: ModelFileError when the files do not fit each other."""
        source, target = (tokenizer_of(directory, role) for role in ROLES)
        config = config_of(directory, TranslatorConfig)
        model = fitted(directory, lambda: EncoderDecoder(len(source), len(target), config.model))
        return cls(model.to(device=device, dtype=dtype), source, target, config)

    def __repr__(self) -> str:
        languages = f"{self.config.source_language} to {self.config.target_language}"
        return f"Translator({languages}, {self.model.num_parameters():,} parameters)"

    def save(self, folder: Path, card: str = "") -> None:
        """Writes a model directory. card: the text of its README.md."""
        joint = self.source_tokenizer == self.target_tokenizer
        names = {"source": "tokenizer.json" if joint else "tokenizer.source.json"}
        names["target"] = names["source"] if joint else "tokenizer.target.json"
        texts = {names["source"]: self.source_tokenizer.to_json(), names["target"]: self.target_tokenizer.to_json()}
        if card:
            texts["README.md"] = card
        weights = weights_of(self.model)
        config = {**json.loads(json.dumps(plain(self.config))), "tokenizers": names}
        model_directory.write(folder, task="translate", config=config, weights=weights, texts=texts)

    def translate(
        self,
        texts: Iterable[str],
        options: DecodingOptions | None = None,
        *,
        attention: bool = True,
        split: bool = True,
        batch_tokens: int = 4096,
        first_number: int = 0,
        **changes: Any,
    ) -> list[Translation]:
        """Translates each text; the result has the same order.

        options: how to search; the model's own recipe unless given. changes: single fields of it, as in beam_size=1.
        attention: also return what was attended to. split: translate sentence by sentence what the model cannot take
        as a whole: any text of several sentences if it was trained on single ones, a text longer than any in training
        in every case. batch_tokens: padded source tokens decoded at once, times the beam. first_number: the
        number of the first text where these are part of a longer series; samples depend on a text's number, not on
        its company.

        An empty text has an empty translation without attention. Raises: ConfigError for options that cannot work;
        DataError for something that is not text.
        """
        options = search_options(options, self.config.decoding, changes, "translate")
        given, texts = texts, list(texts)
        if isinstance(given, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("translate: expected a list of strings, as in translate(['A dog.'])")
        config = self.config
        limit = config.longest_source if split else None
        cuts = [
            split_long(text, self._count, limit, config.source_language, each_sentence=config.sentence_level)
            for text in texts
        ]
        pieces = [piece for cut in cuts for _, piece in cut]
        # A piece's number says which text it is of and which of its pieces, whatever became of the other texts.
        numbers = [
            first_number + number + (place << PLACE_BITS)
            for number, cut in enumerate(cuts)
            for place in range(len(cut))
        ]
        done = iter(self._translate_pieces(pieces, np.array(numbers, dtype=np.int64), options, attention, batch_tokens))
        separator = "" if self.config.target_language in UNSPACED else " "
        results = []
        for text, cut in zip(texts, cuts, strict=True):
            if cut:
                mine = [next(done) for _ in cut]
                results.append(joined(text, mine, [begin for begin, _ in cut], separator))
            else:
                results.append(Translation(text, "", 0.0, (), None))
        return results

    def _count(self, text: str) -> int:
        return len(self.source_tokenizer.encode_ids([text])[0]) + 1

    def _translate_pieces(
        self, texts: list[str], numbers: np.ndarray, options: DecodingOptions, attention: bool, batch_tokens: int
    ) -> list[Translation]:
        """Each text as one sentence, in their order. numbers: [texts], what each one's samples are drawn from."""
        encoded = self.source_tokenizer.encode(texts)
        lengths = np.array([len(one.ids) + 1 for one in encoded], dtype=np.int64)
        results: list[Translation | None] = [None] * len(texts)
        for rows in by_length(lengths, batch_tokens // max(options.beam_size, options.num_best)):
            batch = self._decode([encoded[row].ids for row in rows], numbers[rows], options, attention)
            for row, hypotheses in zip(rows, batch, strict=True):
                results[row] = translation_of(texts[row], encoded[row], hypotheses, self.target_tokenizer)
        assert all(result is not None for result in results), "every piece stands in one batch"
        return [result for result in results if result is not None]

    @torch.no_grad()
    def _decode(
        self, ids: list[list[int]], numbers: np.ndarray, options: DecodingOptions, attention: bool
    ) -> list[list[Hypothesis]]:
        device = next(self.model.parameters()).device
        source, lengths = Sequences.padded(ids)
        memories, _ = self.model.encode(source.to(device), lengths.to(device))
        return decode(
            self.model.decoder,
            memories,
            options,
            bos=Tokenizer.BOS,
            eos=Tokenizer.EOS,
            max_lengths=options.max_lengths(lengths).to(device),
            observe=Observe(rows="all") if attention else None,
            sentence_numbers=torch.from_numpy(numbers).to(device),
        )
