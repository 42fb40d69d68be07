"""A clip: a stretch of sound, or of features that were computed before, as a field of a record names it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from regard.data.columns import Refused
from regard.errors import DataError
from regard.inputs.front_end import FrontEnd, FrontEndConfig
from regard.inputs.sound import SoundError, at_speed, read_sound


@dataclass(frozen=True)
class Clip:
    """path: a sound file, or an array of features [frames, numbers] (.npy)."""

    path: str
    begin_seconds: float = 0.0
    seconds: float | None = None  # to the end of the file unless given
    speed: float = 1.0  # how much faster it is played
    first_row: int | None = None  # of features: where its frames begin
    num_rows: int | None = None  # and how many it has

    def to_field(self) -> str:
        """As a record's field keeps it."""
        values = dataclasses.asdict(self)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return json.dumps({name: value for name, value in values.items() if value != defaults[name]})

    @staticmethod
    def of_field(field: str) -> Clip:
        return Clip(**json.loads(field))

    @property
    def is_features(self) -> bool:
        return self.path.endswith(".npy")


class FramesColumn:
    """Frames of sound, float32 [frames, bins]: what a front end makes of clips, or features that lie in an array."""

    records_at_once = 64  # a minute each is half a gigabyte of sound, and a fortieth of that in frames

    def __init__(self, config: FrontEndConfig) -> None:
        self.config = config
        self.front_end = FrontEnd(config)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<f4")

    @property
    def position_shape(self) -> tuple[int, ...]:
        return (self.config.bins,)

    def arrays(self, fields: Sequence[str]) -> list[np.ndarray | Refused]:
        """The frames of each field, which is a `Clip.to_field`."""
        return [self._frames(Clip.of_field(field)) for field in fields]

    def fingerprint(self) -> str:
        return json.dumps(dataclasses.asdict(self.config), sort_keys=True)

    def about(self) -> dict[str, Any]:
        return {"front_end": dataclasses.asdict(self.config)}

    def _frames(self, clip: Clip) -> np.ndarray | Refused:
        try:
            frames = frames_of_clip(clip, self.front_end)
        except SoundError as error:
            return Refused(error.reason)
        except DataError:
            return Refused("unfit")
        return frames if len(frames) else Refused("shorter than a frame of")


def frames_of_clip(clip: Clip, front_end: FrontEnd) -> np.ndarray:
    """float32 [frames, bins]. Raises: DataError where the clip cannot be read."""
    if not clip.is_features:
        sound = read_sound(
            clip.path, front_end.config.sample_rate, begin_seconds=clip.begin_seconds, seconds=clip.seconds
        )
        [frames] = front_end([at_speed(sound, clip.speed)])
        return frames.numpy()
    features = mapped_features(clip.path)
    first, count = clip.first_row or 0, len(features) if clip.num_rows is None else clip.num_rows
    return front_end.of_features(np.array(features[first : first + count]), clip.path)


@lru_cache(maxsize=4)
def mapped_features(path: str) -> np.ndarray:
    """The array at `path`, through a memory map. Raises: DataError when it is no array of features."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(f"{path}: no readable array of features ({reason}); expected a .npy file") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(f"{path}: holds {array.dtype} {list(array.shape)}, expected numbers [frames, bins]")
    return array
