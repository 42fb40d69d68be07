"""A trained language model: loaded by path, asked to go on with texts, written as a model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regard.lens  # noqa: F401  (teaches records to save themselves as pages and pictures)
from regard.attention.observation import Observation, Observe
from regard.attention.records.record import AttentionRecord, Axis
from regard.decoding.hypotheses import Hypothesis
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.decoding.stream import stream
from regard.errors import ConfigError, DataError
from regard.inputs.text import Tokenizer
from regard.models.decoder import Decoder
from regard.models.language_model import LanguageModel, LanguageModelConfig
from regard.models.sliding import SlidingDecoder, windows
from regard.tasks import model_directory
from regard.tasks.generate.recipe import check_decoding
from regard.tasks.generate.result import Continuation
from regard.tasks.loading import config_of, fitted, tokenizer_of
from regard.tasks.recipe import plain
from regard.tasks.search_options import search_options
from regard.training.averaging import weights_of

UNFINISHED = "\ufffd"  # what a decoder shows for the first bytes of a character


@dataclass(frozen=True)
class GeneratorConfig:
    """What a model directory says beside the model itself."""

    model: LanguageModelConfig
    decoding: DecodingOptions
    context: int  # the longest window of training, in tokens; of a longer text the last part is read
    # Whether a prompt is the beginning of a document. A model of documents much longer than its windows hardly ever saw
    # the begin token, and reads a prompt as the middle of a text.
    begins: bool
    training: dict[str, Any]  # where the model comes from: recipe, data hash, scores; for people and for `evaluate`

    def __post_init__(self) -> None:
        self.decoding.check()
        if self.context < 2:
            raise ConfigError(f"context is {self.context}, expected 2 or more")


class Generator:
    """model: in evaluation mode, on the device and in the dtype that it computes in."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, config: GeneratorConfig) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config

    @classmethod
    def load(
        cls, directory: model_directory.ModelDirectory, device: torch.device | str, dtype: torch.dtype
    ) -> Generator:
        """The model that `save` wrote. Raises: ModelFileError when the files do not fit each other."""
        tokenizer = tokenizer_of(directory, "text")
        config = config_of(directory, GeneratorConfig)
        model = fitted(directory, lambda: LanguageModel(len(tokenizer), config.model))
        return cls(model.to(device=device, dtype=dtype), tokenizer, config)

    def __repr__(self) -> str:
        return f"Generator({self.model.num_parameters():,} parameters)"

    def save(self, folder: Path, card: str = "") -> None:
        """Writes a model directory. card: the text of its README.md."""
        texts = {"tokenizer.json": self.tokenizer.to_json()} | ({"README.md": card} if card else {})
        config = {**json.loads(json.dumps(plain(self.config))), "tokenizers": {"text": "tokenizer.json"}}
        model_directory.write(folder, task="generate", config=config, weights=weights_of(self.model), texts=texts)

    def generate(
        self,
        prompts: Iterable[str],
        options: DecodingOptions | None = None,
        *,
        attention: bool = False,
        first_number: int = 0,
        **changes: Any,
    ) -> list[Continuation]:
        """Goes on with each prompt; the result has the same order. An empty prompt begins from nothing.

        options: how to search; the model's own recipe unless given. changes: single fields of it, as in sample=False.
        attention: also return what was attended to. first_number: the number of the first prompt where these are part
        of a longer series; samples depend on a prompt's number, not on its company.

        Raises: ConfigError for options that cannot work; DataError for something that is not text.
        """
        options = self._options(options, changes)
        given, prompts = prompts, list(prompts)
        if isinstance(given, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise DataError("generate: expected a list of strings, as in generate(['Once upon'])")
        return [self._continued(prompt, options, attention, first_number + i) for i, prompt in enumerate(prompts)]

    def stream(
        self, prompt: str, options: DecodingOptions | None = None, *, number: int = 0, **changes: Any
    ) -> Iterator[str]:
        """What `generate` returns for `prompt`, in pieces as they come: by greedy search or sampling, one path.

        for piece in generator.stream("Once upon"): print(piece, end="", flush=True)

        number: as first_number of `generate`. A character of several tokens comes when it is whole.
        Raises: ConfigError for options that cannot work, a beam among them.
        """
        options = self._options(options, changes)
        if not isinstance(prompt, str):
            raise DataError("stream: expected one string, as in stream('Once upon')")
        ids, bos, prefix = self._read(prompt)
        tokens = stream(self._decoder(), {}, options, bos=bos, eos=Tokenizer.EOS, prefix=prefix, sentence_number=number)
        return self._pieces(ids, tokens)

    def _pieces(self, ids: Sequence[int], tokens: Iterator[int]) -> Iterator[str]:
        """The text that each token adds, unless it leaves a character unfinished."""
        before, pending = list(ids[-1:]), []
        for token in tokens:
            pending.append(token)
            text = self._text(before, pending)
            if text and not text.endswith(UNFINISHED):
                yield text
                before, pending = [token], []
        if text := self._text(before, pending):
            yield text

    def _text(self, before: Sequence[int], written: Sequence[int]) -> str:
        """What `written` adds; the token before it tells whether it begins in the middle of a text."""
        before = list(before[-1:])
        return self.tokenizer.decode([*before, *written])[len(self.tokenizer.decode(before)) :]

    def _options(self, options: DecodingOptions | None, changes: dict[str, Any]) -> DecodingOptions:
        options = search_options(options, self.config.decoding, changes, "generate")
        check_decoding(options)
        return options

    def _decoder(self) -> Decoder[Any]:
        return SlidingDecoder(self.model, self.config.context)

    def _read(self, prompt: str) -> tuple[list[int], int, Tensor | None]:
        """(the prompt's ids as far as they fit, what is read first, what is read behind it)."""
        [ids] = self.tokenizer.encode_ids([prompt])
        kept = self._read_ids(prompt)[-self.config.context :]
        device = next(self.model.parameters()).device
        prefix = torch.tensor([kept[1:]], device=device) if len(kept) > 1 else None
        return ids, kept[0], prefix

    def _continued(self, prompt: str, options: DecodingOptions, attention: bool, number: int) -> Continuation:
        ids, bos, prefix = self._read(prompt)
        device = next(self.model.parameters()).device
        # A search takes its rows from the prefix; without one there is a single row.
        [found] = decode(
            self._decoder(),
            {},
            options,
            bos=bos,
            eos=Tokenizer.EOS,
            prefix=prefix,
            sentence_numbers=torch.tensor([number], device=device),
        )
        best, *others = (self._one(prompt, ids, one, attention) for one in found)
        return replace(best, alternatives=tuple(others))

    def _one(self, prompt: str, ids: list[int], hypothesis: Hypothesis, attention: bool) -> Continuation:
        written = list(hypothesis.tokens)
        record = self._attention(prompt, written) if attention else None
        tokens = tuple(self.tokenizer.tokens_of(written))
        text = self._text(ids, written)
        return Continuation(prompt, text, hypothesis.score, tokens, record, hypothesis.finished)

    @torch.no_grad()
    def _attention(self, prompt: str, written: list[int]) -> AttentionRecord | None:
        """What the model looked at for each token written, of many the last `context`: read in the search's windows."""
        if not written:
            return None
        first = self._read_ids(prompt)[-self.config.context :]
        read = first + written[:-1]
        asked = len(read) - min(len(written), self.config.context)
        seen = [one for one in windows(len(first), len(read), self.config.context) if one.end > asked]
        begin = seen[0].begin
        rows: dict[str, list[Tensor]] = {}
        for window in seen:
            of_window = self._rows(read[window.begin : window.end])
            for name, all_rows in of_window.items():
                new = all_rows[:, :, max(window.first, asked) - window.begin :]
                room = (window.begin - begin, len(read) - window.end)  # keys that this window did not see
                rows.setdefault(name, []).append(torch.nn.functional.pad(new, room))
        layers = {
            name: Observation(rows=torch.cat(parts, 2), row_index=torch.arange(len(read) - asked))
            for name, parts in rows.items()
        }
        return AttentionRecord(layers, self._axis(written[asked - len(read) :]), self._axis(read[begin:]))

    def _rows(self, ids: list[int]) -> dict[str, Tensor]:
        """Of each layer the attention of `ids` among themselves: float32 [1, heads, ids, ids]."""
        tokens = torch.tensor([ids], device=next(self.model.parameters()).device)
        _, _, seen = self.model.read(self.model.start({}), tokens, Observe(rows="all"))
        return {name: one.rows.float().cpu() for name, one in seen.items() if one.rows is not None}

    def _read_ids(self, prompt: str) -> list[int]:
        [ids] = self.tokenizer.encode_ids([prompt])
        return ([Tokenizer.BOS] if self.config.begins or not ids else []) + ids

    def _axis(self, ids: list[int]) -> Axis:
        text, spans = self.tokenizer.spans(ids)
        return Axis(text, tuple(self.tokenizer.tokens_of(ids)), tuple(spans))
