"""A trained captioning model: loaded by path, shown pictures, written as a model directory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regard.lens  # noqa: F401  (teaches records to save themselves as pages and pictures)
from regard.attention.observation import Observe
from regard.attention.records.axis import PictureGrid
from regard.decoding.hypotheses import Hypothesis
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.errors import DataError
from regard.inputs.pictures import LoadedPicture, PictureError, PictureSize, load_picture, load_pictures, thumbnail
from regard.inputs.text import Tokenizer
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.tasks import model_directory
from regard.tasks.caption.recipe import CHANNELS
from regard.tasks.caption.result import Caption, caption_of
from regard.tasks.loading import config_of, fitted, tokenizer_of
from regard.tasks.recipe import plain
from regard.tasks.search_options import search_options
from regard.training.averaging import weights_of

TOKENIZER = "tokenizer.json"
DRAWN_PIXELS = 448  # the longer side of the picture that a record keeps

Shown = str | Path | bytes  # a picture: the path of its file, or the file's bytes


@dataclass(frozen=True)
class CaptionerConfig:
    """What a model directory says beside the model itself."""

    model: EncoderDecoderConfig
    decoding: DecodingOptions
    picture: PictureSize  # what every picture is brought to before the model sees it
    training: dict[str, Any]  # where the model comes from: recipe, data hash, scores; for people and for `evaluate`

    def __post_init__(self) -> None:
        self.decoding.check()


class Captioner:
    """model: in evaluation mode, on the device and in the dtype that it computes in."""

    def __init__(self, model: EncoderDecoder, tokenizer: Tokenizer, config: CaptionerConfig) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config

    @classmethod
    def load(
        cls, directory: model_directory.ModelDirectory, device: torch.device | str, dtype: torch.dtype
    ) -> Captioner:
        """The model that `save` wrote. Raises: ModelFileError when the files do not fit each other."""
        tokenizer = tokenizer_of(directory, "text")
        config = config_of(directory, CaptionerConfig)
        model = fitted(directory, lambda: EncoderDecoder(CHANNELS, len(tokenizer), config.model))
        return cls(model.to(device=device, dtype=dtype), tokenizer, config)

    def __repr__(self) -> str:
        size = self.config.picture
        return f"Captioner({size.height} x {size.width} pixels, {self.model.num_parameters():,} parameters)"

    def save(self, folder: Path, card: str = "") -> None:
        """Writes a model directory. card: the text of its README.md."""
        texts = {TOKENIZER: self.tokenizer.to_json()} | ({"README.md": card} if card else {})
        config = {**json.loads(json.dumps(plain(self.config))), "tokenizers": {"text": TOKENIZER}}
        model_directory.write(folder, task="caption", config=config, weights=weights_of(self.model), texts=texts)

    def caption(
        self,
        pictures: Iterable[Shown],
        options: DecodingOptions | None = None,
        *,
        attention: bool = True,
        first_number: int = 0,
        **changes: Any,
    ) -> list[Caption]:
        """Describes each picture; the result has the same order.

        pictures: paths of files, or the bytes of files. options: how to search; the model's own recipe unless given.
        changes: single fields of it, as in beam_size=1. attention: also return where the model looked. first_number:
        the number of the first picture where these are part of a longer series; samples depend on it, not on company.

        Raises: PictureError, a DataError, for the first file that gives no picture; ConfigError for options that cannot
        work; DataError for something that is no picture at all. See `try_captions` for one that goes on.
        """
        results = self.try_captions(pictures, options, attention=attention, first_number=first_number, **changes)
        for result in results:
            if isinstance(result, PictureError):
                raise result
        return [result for result in results if isinstance(result, Caption)]

    def try_captions(
        self,
        pictures: Iterable[Shown],
        options: DecodingOptions | None = None,
        *,
        attention: bool = True,
        batch_pictures: int = 32,
        first_number: int = 0,
        **changes: Any,
    ) -> list[Caption | PictureError]:
        """As `caption`, with the reason in the place of a caption where a file gives no picture.

        batch_pictures: how many are decoded and described at once.
        """
        options = self.options(options, **changes)
        shown = named(pictures, "caption")
        results: list[Caption | PictureError] = []
        for begin in range(0, len(shown), batch_pictures):
            part = shown[begin : begin + batch_pictures]
            loaded = [self._loaded(one, name, drawn=attention) for one, name in part]
            good = [number for number, found in enumerate(loaded) if not isinstance(found, PictureError)]
            seen = [found for found in loaded if not isinstance(found, PictureError)]
            numbers = np.array([first_number + begin + number for number in good], dtype=np.int64)
            done = iter(self._described(seen, [part[number][1] for number in good], numbers, options, attention))
            results += [found if isinstance(found, PictureError) else next(done) for found in loaded]
        return results

    def options(self, options: DecodingOptions | None = None, **changes: Any) -> DecodingOptions:
        """`options`, or the model's own, with some fields changed. Raises: ConfigError for what cannot work."""
        return search_options(options, self.config.decoding, changes, "caption")

    def describe(self, pixels: Sequence[np.ndarray], options: DecodingOptions, batch_pictures: int = 32) -> list[str]:
        """The best caption of each picture that is brought to size already, uint8 [height, width, 3]."""
        texts = []
        for begin in range(0, len(pixels), batch_pictures):
            part = np.stack(pixels[begin : begin + batch_pictures])
            numbers = np.arange(begin, begin + len(part))
            hypotheses, _ = self._decoded(part, numbers, dataclasses.replace(options, num_best=1), attention=False)
            texts += [self.tokenizer.decode(list(best.tokens)) for best, *_ in hypotheses]
        return texts

    def prepared(self, paths: Sequence[Path], workers: int = 0) -> list[np.ndarray]:
        """Pictures brought to the model's size, for `describe`. Raises: PictureError for the first bad one."""
        found = []
        for one in load_pictures(paths, self.config.picture, workers):
            if isinstance(one, PictureError):
                raise one
            found.append(one.pixels)
        return found

    def _loaded(
        self, shown: Path | bytes, name: str, *, drawn: bool
    ) -> tuple[LoadedPicture, np.ndarray | None] | PictureError:
        """What the model sees, and what attention is drawn on."""
        try:
            return (
                load_picture(shown, self.config.picture, name=name),
                thumbnail(shown, DRAWN_PIXELS, name=name) if drawn else None,
            )
        except PictureError as error:
            return error

    def _described(
        self,
        loaded: Sequence[tuple[LoadedPicture, np.ndarray | None]],
        names: Sequence[str],
        numbers: np.ndarray,
        options: DecodingOptions,
        attention: bool,
    ) -> list[Caption]:
        if not loaded:
            return []
        pixels = np.stack([seen.pixels for seen, _ in loaded])
        hypotheses, (rows, columns) = self._decoded(pixels, numbers, options, attention)
        found = []
        for (seen, drawn), name, several in zip(loaded, names, hypotheses, strict=True):
            grid = None if drawn is None else PictureGrid(rows, columns, torch.tensor(drawn), seen.box)
            found.append(caption_of(name, several, self.tokenizer, grid))
        return found

    @torch.no_grad()
    def _decoded(
        self, pixels: np.ndarray, numbers: np.ndarray, options: DecodingOptions, attention: bool
    ) -> tuple[list[list[Hypothesis]], tuple[int, int]]:
        """(of each picture its hypotheses, the grid). pixels: uint8 [pictures, height, width, 3]."""
        device = next(self.model.parameters()).device
        values = torch.from_numpy(pixels).to(device)
        lengths = torch.full((len(values),), values.shape[1], device=device)
        memories, _ = self.model.encode(values, lengths)
        memory = memories["source"]
        assert memory.grid is not None, "sources of pictures have a grid"
        found = decode(
            self.model.decoder,
            memories,
            options,
            bos=Tokenizer.BOS,
            eos=Tokenizer.EOS,
            max_lengths=options.max_lengths(memory.lengths),
            observe=Observe(rows="all") if attention else None,
            sentence_numbers=torch.from_numpy(numbers).to(device),
        )
        return found, memory.grid


def named(pictures: Iterable[Shown], operation: str) -> list[tuple[Path | bytes, str]]:
    """Each picture as a path or bytes, and its name. operation: what was called, for errors.

    Raises: DataError for anything else.
    """
    if isinstance(pictures, str | Path | bytes):
        raise DataError(f"{operation}: expected a list of pictures, as in {operation}(['photo.jpg'])")
    found: list[tuple[Path | bytes, str]] = []
    for place, picture in enumerate(pictures):
        if isinstance(picture, bytes):
            found.append((picture, f"picture {place + 1}"))
        elif isinstance(picture, str | Path):
            found.append((Path(picture), str(picture)))
        else:
            kind = type(picture).__name__
            raise DataError(f"{operation}: picture {place + 1} is {kind}, expected a path or the bytes of a file")
    return found
