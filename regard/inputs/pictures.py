"""Picture files: read, turned upright, made plain colour, brought to one size.

Whatever a file holds becomes red, green and blue of 8 bits: rotation noted by a camera is applied, of an animation the
first frame is taken, what is transparent lies on white, 16-bit grey keeps its upper byte, CMYK and palettes are
converted. A file that holds no picture, a cut-off one and one with absurdly many pixels are refused, each in one line.
"""

from __future__ import annotations

import io
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from regard.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# What is tried on a file, whatever its name ends in. Nothing that runs another program (EPS) or holds no pixels.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
MOST_PIXELS = 120_000_000  # of a file: beyond what cameras give; decoded, three bytes each
MOST_SIDE = 4096  # pixels of a prepared picture's side
PAD_COLOUR = (127, 127, 127)  # beside a picture that is fitted whole: near the mean of photographs
# Forked workers need not import anything; elsewhere forks are not safe.
METHOD = "fork" if sys.platform == "linux" else None
PICTURES_A_TASK = 16  # that a worker is handed at once

Box = tuple[float, float, float, float]  # left, upper, right, lower


@dataclass(frozen=True)
class PictureSize:
    """The size that every picture is brought to, in pixels, and how."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    height: int
    width: int
    # "crop": the largest centred part of the right shape. "stretch": all of it, its shape changed. "pad": all of it,
    # its shape kept, grey beside it.
    fit: Literal["crop", "stretch", "pad"] = "crop"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not 1 <= value <= MOST_SIDE:
                raise ConfigError(f"picture size: {name} is {value}, expected 1 to {MOST_SIDE} pixels")


class PictureError(DataError):
    """A file that gives no picture. reason: in few words, to be counted with others of its kind."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return PictureError, (str(self), self.reason)


class LoadedPicture(NamedTuple):
    """pixels: uint8 [height, width, 3]. box: which part of the upright picture they show, in shares of its sides; with
    `fit: pad` it reaches beyond 0 and 1."""

    pixels: np.ndarray
    box: Box


def load_picture(source: Path | bytes, size: PictureSize | None = None, *, name: str | None = None) -> LoadedPicture:
    """The picture in a file, or in a file's bytes.

    size: what it is brought to; as large as it is unless given. name: of the source, in errors; its path unless given.
    A picture of a single pixel becomes one of a single colour.
    Numerics: reduced by averaging over the area that a pixel covers (bilinear, antialiased).
    Raises: PictureError when it cannot be read; ConfigError where Pillow is missing.
    """
    name = name or (str(source) if isinstance(source, Path) else "picture")
    pillow = _pillow()
    with _opened(source, name) as image:
        upright = pillow.ImageOps.exif_transpose(_draft(image, size), in_place=False)
        colour = _in_colour(upright, name)
    if size is None:
        return LoadedPicture(np.asarray(colour), (0.0, 0.0, 1.0, 1.0))
    return _fitted(colour, size)


def thumbnail(source: Path | bytes, longest: int, *, name: str | None = None) -> np.ndarray:
    """The whole picture with its longer side at most `longest` pixels, uint8 [height, width, 3]: to draw on.

    Raises: as `load_picture`.
    """
    name = name or (str(source) if isinstance(source, Path) else "picture")
    pillow = _pillow()
    with _opened(source, name) as image:
        _draft(image, PictureSize(min(longest, MOST_SIDE), min(longest, MOST_SIDE)))
        colour = _in_colour(pillow.ImageOps.exif_transpose(image, in_place=False), name)
    scale = min(longest / max(colour.size), 1.0)
    width, height = (max(round(side * scale), 1) for side in colour.size)
    return np.asarray(colour.resize((width, height), pillow.Image.Resampling.BILINEAR, reducing_gap=3.0))


def load_pictures(paths: Sequence[Path], size: PictureSize, workers: int = 0) -> Iterator[LoadedPicture | PictureError]:
    """Each picture in its place, or why there is none. workers: processes that decode; 0: this one does.

    Raises: DataError when a worker is killed.
    """
    if not workers:
        for path in paths:
            yield _loaded_or_why(path, size)
        return
    context = multiprocessing.get_context(METHOD)
    tasks = [paths[begin : begin + PICTURES_A_TASK] for begin in range(0, len(paths), PICTURES_A_TASK)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork beside threads, which is safe for what a worker does
        with ProcessPoolExecutor(min(workers, len(tasks) or 1), mp_context=context) as pool:
            try:
                for done in pool.map(partial(_loaded_task, size=size), tasks):
                    yield from done
            except BrokenProcessPool:
                raise DataError(
                    "a process that decodes pictures was killed; memory may be short: run it again with fewer workers"
                ) from None


def _loaded_task(paths: Sequence[Path], size: PictureSize) -> list[LoadedPicture | PictureError]:
    return [_loaded_or_why(path, size) for path in paths]


def _loaded_or_why(path: Path, size: PictureSize) -> LoadedPicture | PictureError:
    try:
        return load_picture(path, size)
    except PictureError as error:
        return error


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image]:
    """The file as Pillow opens it, not yet decoded. Whatever goes wrong inside is told as the file's fault."""
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, of sizes that are looked at here
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with pillow.Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise _too_large(name, f"{width} x {height} pixels")
                yield image
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{name}: no such file; give the path of a picture", "missing") from None
    except IsADirectoryError:
        raise PictureError(f"{name}: is a folder; give the path of a picture", "folder in place of a") from None
    except PermissionError as error:
        raise PictureError(f"{name}: cannot be read ({error.strerror}); make it readable", "unreadable") from None
    except pillow.Image.DecompressionBombError:
        raise _too_large(name, "far too many pixels") from None
    except pillow.UnidentifiedImageError:
        what = _what_it_is(source)
        expected = "expected a picture (JPEG, PNG, WebP, TIFF); look at what the file is"
        raise PictureError(f"{name}: {what}, {expected}", "no picture in") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds: OSError, SyntaxError, struct.error, ValueError ...
        why = " ".join(str(error).split())[:120] or type(error).__name__
        remedy = "copy it again, or save it anew"
        raise PictureError(f"{name}: cut off or damaged ({why}); {remedy}", "cut off or damaged") from None


def _too_large(name: str, what: str) -> PictureError:
    limit = f"expected at most {MOST_PIXELS // 10**6} million"
    return PictureError(f"{name}: {what}, {limit}; make it smaller", "oversized")


def _what_it_is(source: Path | bytes) -> str:
    """In words, what a file that holds no picture holds."""
    if isinstance(source, bytes):
        begin = source[:512]
    else:
        with source.open("rb") as file:
            begin = file.read(512)
    if not begin:
        return "an empty file"
    try:
        begin.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(begin) - 3:
            return "no picture that is known here"
    return "no picture that is known here" if b"\0" in begin else "text"


def _draft(image: Image, size: PictureSize | None) -> Image:
    """A JPEG that is much larger than wanted is decoded at a half, a quarter or an eighth, which is faster."""
    if size is not None and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        wanted = 2 * max(size.height, size.width)  # whichever way it is turned
        image.draft(None, (wanted, wanted))
    return image


def _in_colour(image: Image, name: str) -> Image:
    """The same in red, green and blue of 8 bits."""
    pillow = _pillow()
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "F":
        remedy = "save it with 8 or 16 bits a channel"
        raise PictureError(f"{name}: pixels are fractions of 32 bits; {remedy}", "unknown pixels in")
    if image.mode.startswith("I"):
        # Grey of 16 bits, also where Pillow holds it in 32.
        values = np.asarray(image).astype(np.int64)
        deep: Image = pillow.Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
        return deep
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = pillow.Image.new("RGBA", image.size, (255, 255, 255, 255))
        ground.alpha_composite(image)
        image = ground
    colour: Image = image.convert("RGB")
    return colour


def _fitted(image: Image, size: PictureSize) -> LoadedPicture:
    pillow = _pillow()
    reduce: Callable[..., Image] = partial(image.resize, resample=pillow.Image.Resampling.BILINEAR, reducing_gap=3.0)
    width, height = image.size
    wanted = size.width / size.height
    if size.fit == "stretch" or abs(width / height - wanted) < 1e-9:
        return LoadedPicture(np.asarray(reduce((size.width, size.height))), (0.0, 0.0, 1.0, 1.0))
    if size.fit == "crop":
        kept_width, kept_height = min(width, height * wanted), min(height, width / wanted)
        left, upper = (width - kept_width) / 2, (height - kept_height) / 2
        box = (left, upper, left + kept_width, upper + kept_height)
        pixels = np.asarray(reduce((size.width, size.height), box=box))
        return LoadedPicture(pixels, (left / width, upper / height, box[2] / width, box[3] / height))
    scale = min(size.width / width, size.height / height)
    inner = max(round(width * scale), 1), max(round(height * scale), 1)
    left, upper = (size.width - inner[0]) // 2, (size.height - inner[1]) // 2
    ground = pillow.Image.new("RGB", (size.width, size.height), PAD_COLOUR)
    ground.paste(reduce(inner), (left, upper))
    right, lower = (size.width - left) / inner[0], (size.height - upper) / inner[1]
    return LoadedPicture(np.asarray(ground), (-left / inner[0], -upper / inner[1], right, lower))


def _pillow() -> Any:
    """Pillow's package, with the modules that are used here. Raises: ConfigError where it is missing."""
    try:
        import PIL
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise ConfigError("reading pictures needs the package Pillow; pip install 'regard[image]'") from None
    return PIL
