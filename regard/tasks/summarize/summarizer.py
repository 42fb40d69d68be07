"""A trained summarization model: loaded by path, asked for summaries, written as a model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import regard.lens  # noqa: F401  (teaches records to save themselves as pages and pictures)
from regard.attention.observation import Observation, Observe
from regard.attention.records.record import AttentionRecord, Axis
from regard.data.batches import Sequences, by_length
from regard.decoding.hypotheses import Hypothesis
from regard.decoding.options import DecodingOptions
from regard.decoding.scorers import Suppress
from regard.decoding.search import decode
from regard.errors import ConfigError, DataError, ModelFileError
from regard.inputs.text import Tokenizer
from regard.inputs.tokenizers import AnyTokenizer, tokenizer_from_json
from regard.inputs.words import WordTokenizer
from regard.models.copying import CopyingDecoder
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.tasks import model_directory
from regard.tasks.loading import config_of, fitted
from regard.tasks.recipe import plain
from regard.tasks.search_options import search_options
from regard.tasks.summarize.origins import Origins, origins_of
from regard.tasks.summarize.reading import Reading, read_document
from regard.tasks.summarize.result import Summary, empty_summary, with_alternatives, words_of_summary
from regard.training.averaging import weights_of

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class SummarizerConfig:
    """What a model directory says beside the model itself."""

    model: EncoderDecoderConfig
    decoding: DecodingOptions
    longest_source: int  # tokens of a document that are read, its end included
    training: dict[str, Any]  # where the model comes from: recipe, data hash, scores; for people and for `evaluate`

    def __post_init__(self) -> None:
        self.decoding.check()
        if self.longest_source < 2:
            raise ConfigError(f"longest_source is {self.longest_source}, expected 2 or more")


class Summarizer:
    """model: in evaluation mode, on the device and in the dtype that it computes in."""

    def __init__(self, model: EncoderDecoder, tokenizer: AnyTokenizer, config: SummarizerConfig) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config

    @classmethod
    def load(
        cls, directory: model_directory.ModelDirectory, device: torch.device | str, dtype: torch.dtype
    ) -> Summarizer:
        """The model that `save` wrote. Raises: ModelFileError when the files do not fit each other."""
        if TOKENIZER not in directory.texts:
            raise ModelFileError(f"{directory.path}: {TOKENIZER} is missing; copy the model directory again")
        tokenizer = tokenizer_from_json(directory.texts[TOKENIZER], name=str(directory.path / TOKENIZER))
        config = config_of(directory, SummarizerConfig)
        size = len(tokenizer)
        model = fitted(directory, lambda: EncoderDecoder(size, size, config.model))
        return cls(model.to(device=device, dtype=dtype), tokenizer, config)

    def __repr__(self) -> str:
        return f"Summarizer({self.model.num_parameters():,} parameters)"

    @property
    def copies(self) -> bool:
        """Whether the model copies words of the document."""
        return isinstance(self.model.decoder, CopyingDecoder)

    def save(self, folder: Path, card: str = "") -> None:
        """Writes a model directory. card: the text of its README.md."""
        texts = {TOKENIZER: self.tokenizer.to_json()}
        if card:
            texts["README.md"] = card
        config = json.loads(json.dumps(plain(self.config)))
        model_directory.write(folder, task="summarize", config=config, weights=weights_of(self.model), texts=texts)

    def summarize(
        self,
        texts: Iterable[str],
        options: DecodingOptions | None = None,
        *,
        attention: bool = True,
        batch_tokens: int = 16384,
        first_number: int = 0,
        **changes: Any,
    ) -> list[Summary]:
        """Summarises each document; the result has the same order.

        options: how to search; the model's own recipe unless given. changes: single fields of it, as in beam_size=1.
        attention: also return what was attended to. batch_tokens: padded source tokens decoded at once, times the beam.
        first_number: the number of the first document where these are part of a longer series; samples depend on a
        document's number, not on its company.

        A document is read as far as the model was trained to read (`Summary.is_cut`, `num_read`), in time that does not
        grow with the rest. An empty one has an empty summary. Raises: ConfigError for options that cannot work;
        DataError for something that is not text.
        """
        options = search_options(options, self.config.decoding, changes, "summarize")
        given, texts = texts, list(texts)
        if isinstance(given, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("summarize: expected a list of strings, as in summarize(['A long text.'])")
        readings = [read_document(text, self.tokenizer, self.config.longest_source) for text in texts]
        results = [empty_summary(text) for text in texts]
        full = np.array([place for place, reading in enumerate(readings) if reading.ids], dtype=np.int64)
        lengths = np.array([len(readings[place].ids) + 1 for place in full], dtype=np.int64)
        for chosen in by_length(lengths, batch_tokens // max(options.beam_size, options.num_best)):
            rows = full[chosen].tolist()
            found = self._batch(
                [texts[row] for row in rows],
                [readings[row] for row in rows],
                np.array(rows, dtype=np.int64) + first_number,
                options,
                attention,
            )
            for row, summary in zip(rows, found, strict=True):
                results[row] = summary
        return results

    @torch.no_grad()
    def _batch(
        self,
        texts: Sequence[str],
        readings: Sequence[Reading],
        numbers: np.ndarray,
        options: DecodingOptions,
        attention: bool,
    ) -> list[Summary]:
        """The summaries of one batch. numbers: [texts], what each one's samples are drawn from."""
        device = next(self.model.parameters()).device
        source, lengths = Sequences.padded([reading.ids for reading in readings])
        memories, _ = self.model.encode(source.to(device), lengths.to(device))
        found = decode(
            self.model.decoder,
            memories,
            options,
            bos=Tokenizer.BOS,
            eos=Tokenizer.EOS,
            max_lengths=options.max_lengths(lengths).to(device),
            scorers=[Suppress((Tokenizer.UNK,))],
            observe=Observe(rows="all") if attention else None,
            sentence_numbers=torch.from_numpy(numbers).to(device),
        )
        flat = [(row, hypothesis) for row, group in enumerate(found) for hypothesis in group]
        origins: list[Origins | None] = [None] * len(flat)
        if isinstance(self.model.decoder, CopyingDecoder):
            rows = torch.tensor([row for row, _ in flat], device=device)
            origins = [*origins_of(self.model.decoder, memories, rows, [hypothesis.tokens for _, hypothesis in flat])]
        made: list[list[Summary]] = [[] for _ in texts]
        for (row, hypothesis), origin in zip(flat, origins, strict=True):
            made[row].append(self._summary(texts[row], readings[row], hypothesis, origin))
        return [with_alternatives(group) for group in made]

    def _summary(self, source: str, reading: Reading, hypothesis: Hypothesis, origins: Origins | None) -> Summary:
        ids = hypothesis.tokens
        if isinstance(self.tokenizer, WordTokenizer):
            text, spans = self.tokenizer.spans(ids, reading.unknown)
            tokens = tuple(self.tokenizer.tokens_of(ids, reading.unknown))
        else:
            text, spans = self.tokenizer.spans(ids)
            tokens = tuple(self.tokenizer.tokens_of(ids))
        places: list[tuple[int, int] | None] = [None] * len(ids)
        if origins is not None:
            places = [None if at is None or at >= len(reading.spans) else reading.spans[at] for at in origins.places]
        words = words_of_summary(text, spans, None if origins is None else origins.copied, places)
        record = None
        if hypothesis.attention:
            record = self._record(source, reading, Axis(text, tokens, tuple(spans)), hypothesis.attention)
        return Summary(
            source,
            text,
            hypothesis.score,
            tokens,
            words,
            record,
            list(hypothesis.attention)[-1] if hypothesis.attention and self.copies else None,
            hypothesis.finished,
            num_read=reading.spans[-1][1],
            is_cut=reading.is_cut,
        )

    def _record(self, source: str, reading: Reading, query: Axis, attention: dict[str, Tensor]) -> AttentionRecord:
        """Of what was read of the document; its axis holds no more of the text than that."""
        read = source[: reading.spans[-1][1]]
        end = self.tokenizer.tokens_of([Tokenizer.EOS])[0]
        key = Axis(read, (*reading.tokens, end), (*reading.spans, (len(read), len(read))))
        layers = {
            name: Observation(rows=rows[None].float().cpu(), row_index=torch.arange(rows.shape[1]))
            for name, rows in attention.items()
        }
        return AttentionRecord(layers, query, key)
