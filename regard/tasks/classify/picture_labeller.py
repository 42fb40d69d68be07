"""A trained classifier of pictures: loaded by path, asked for labels, written as a model directory."""

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
from regard.attention.records.axis import Axis, PictureGrid
from regard.attention.records.record import AttentionRecord
from regard.errors import ConfigError
from regard.inputs.pictures import PictureError, PictureSize, load_picture, thumbnail
from regard.models.classifier import POOLED, Classifier, ClassifierConfig
from regard.tasks import model_directory
from regard.tasks.caption.captioner import DRAWN_PIXELS, Shown, named
from regard.tasks.caption.recipe import CHANNELS
from regard.tasks.classify.result import Classification
from regard.tasks.loading import config_of, fitted
from regard.tasks.recipe import plain
from regard.training.averaging import weights_of


@dataclass(frozen=True)
class PictureLabellerConfig:
    """What a model directory says beside the model itself."""

    model: ClassifierConfig
    labels: tuple[str, ...]
    picture: PictureSize  # what every picture is brought to before the model sees it
    training: dict[str, Any]  # where the model comes from: recipe, data hash, scores; for people and for `evaluate`

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ConfigError(f"labels are {list(self.labels)}, expected at least 2")


class PictureLabeller:
    """model: in evaluation mode, on the device and in the dtype that it computes in."""

    def __init__(self, model: Classifier, config: PictureLabellerConfig) -> None:
        self.model = model.eval()
        self.config = config

    @classmethod
    def load(
        cls, directory: model_directory.ModelDirectory, device: torch.device | str, dtype: torch.dtype
    ) -> PictureLabeller:
        """The model that `save` wrote. Raises: ModelFileError when the files do not fit each other."""
        config = config_of(directory, PictureLabellerConfig)
        model = fitted(directory, lambda: Classifier(CHANNELS, len(config.labels), config.model))
        return cls(model.to(device=device, dtype=dtype), config)

    def __repr__(self) -> str:
        return f"PictureLabeller({len(self.config.labels)} labels, {self.model.num_parameters():,} parameters)"

    def save(self, folder: Path, card: str = "") -> None:
        """Writes a model directory. card: the text of its README.md."""
        config = json.loads(json.dumps(plain(self.config)))
        texts = {"README.md": card} if card else {}
        model_directory.write(
            folder, task="classify-pictures", config=config, weights=weights_of(self.model), texts=texts
        )

    def classify(self, pictures: Iterable[Shown], *, attention: bool = False) -> list[Classification]:
        """The label of each picture, given by its path or as the bytes of its file; in the same order.

        attention: also return what stands behind it.
        Raises: PictureError, a DataError, for the first file that gives no picture; DataError for what is no picture at
        all. See `try_classify` for one that goes on.
        """
        results = self.try_classify(pictures, attention=attention)
        for result in results:
            if isinstance(result, PictureError):
                raise result
        return [result for result in results if isinstance(result, Classification)]

    def try_classify(
        self, pictures: Iterable[Shown], *, attention: bool = False, batch_pictures: int = 64
    ) -> list[Classification | PictureError]:
        """As `classify`, with the reason in the place of a label where a file gives no picture."""
        shown = named(pictures, "classify")
        results: list[Classification | PictureError] = []
        for begin in range(0, len(shown), batch_pictures):
            part = shown[begin : begin + batch_pictures]
            loaded: list[tuple[np.ndarray, PictureGrid | None] | PictureError] = []
            for picture, name in part:
                try:
                    seen = load_picture(picture, self.config.picture, name=name)
                    drawn = torch.tensor(thumbnail(picture, DRAWN_PIXELS, name=name)) if attention else None
                    loaded.append((seen.pixels, None if drawn is None else PictureGrid(1, 1, drawn, seen.box)))
                except PictureError as error:
                    loaded.append(error)
            good = [one[0] for one in loaded if not isinstance(one, PictureError)]
            if good:
                probabilities, layers, grid = self._probabilities(np.stack(good), attention)
            place = 0
            for one, (_, name) in zip(loaded, part, strict=True):
                if isinstance(one, PictureError):
                    results.append(one)
                    continue
                record = None
                if one[1] is not None and layers:
                    record = _record(name, {layer: rows[place] for layer, rows in layers.items()}, one[1], grid)
                results.append(self._told(name, probabilities[place], record))
                place += 1
        return results

    def probabilities(self, pixels: Sequence[np.ndarray], batch_pictures: int = 64) -> np.ndarray:
        """[pictures, labels] of pictures that are brought to size already, uint8 [height, width, 3]."""
        parts = [
            self._probabilities(np.stack(pixels[begin : begin + batch_pictures]), attention=False)[0]
            for begin in range(0, len(pixels), batch_pictures)
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def _probabilities(
        self, pixels: np.ndarray, attention: bool
    ) -> tuple[np.ndarray, dict[str, Tensor], tuple[int, int]]:
        """([pictures, labels]; layer -> [pictures, heads, places], what the label rests on; the grid)."""
        device = next(self.model.parameters()).device
        values = torch.from_numpy(pixels).to(device)
        lengths = torch.full((len(values),), values.shape[1], device=device)
        found = self.model(values, lengths, Observe(rows="all") if attention else None)
        probabilities = found.logits.double().softmax(-1).cpu().numpy()
        layers = {}
        for name, one in found.attention.items():
            assert one.rows is not None
            # Of an encoder's layer the mean over its queries: what its vectors, pooled, looked at.
            layers[name] = (one.rows[:, 0] if name == POOLED else one.rows.mean(2)).float().cpu()
        grid = self.model.encoder.embedding.represent(values[:1], lengths[:1]).grid if layers else (1, 1)
        assert grid is not None
        return probabilities, layers, grid

    def _told(self, name: str, probabilities: np.ndarray, record: AttentionRecord | None) -> Classification:
        order = np.argsort(-probabilities, kind="stable")
        shares = {self.config.labels[place]: float(probabilities[place]) for place in order}
        label = next(iter(shares))
        if record is not None:
            record = record.about(query=Axis(label, (label,), ((0, len(label)),)))
        return Classification((name,), label, shares, record)


def _record(name: str, layers: dict[str, Tensor], drawn: PictureGrid, grid: tuple[int, int]) -> AttentionRecord:
    rows, columns = grid
    key = Axis.of_picture(name, PictureGrid(rows, columns, drawn.pixels, drawn.box))
    return AttentionRecord(
        {layer: Observation(rows=one[None, :, None], row_index=torch.arange(1)) for layer, one in layers.items()},
        key=key,
    )
