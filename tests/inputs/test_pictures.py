"""Picture files of every kind, good and bad."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.errors import ConfigError
from regard.inputs.pictures import MOST_PIXELS, PictureError, PictureSize, load_picture, load_pictures

RED, BLUE = (200, 30, 40), (20, 40, 210)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def close(pixel: np.ndarray, colour: tuple[int, int, int], by: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= by)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "bmp", "gif"])
def test_every_format_gives_the_same_picture(tmp_path: Path, ending: str) -> None:
    options = {"quality": 95} if ending in ("jpg", "webp") else {}
    halves().save(tmp_path / f"halves.{ending}", **options)
    pixels, box = load_picture(tmp_path / f"halves.{ending}")
    assert pixels.shape == (20, 40, 3) and pixels.dtype == np.uint8
    assert close(pixels[10, 5], RED) and close(pixels[10, 35], BLUE)
    assert box == (0.0, 0.0, 1.0, 1.0)


def test_bytes_are_read_like_files(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.png")
    from_file, from_bytes = load_picture(tmp_path / "a.png"), load_picture((tmp_path / "a.png").read_bytes())
    assert np.array_equal(from_file.pixels, from_bytes.pixels)


def test_the_camera_s_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to look at it
    halves().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = load_picture(tmp_path / "turned.jpg").pixels
    assert pixels.shape == (40, 20, 3)
    assert close(pixels[5, 10], RED) and close(pixels[35, 10], BLUE)


def test_cmyk_palette_and_one_bit_become_colour(tmp_path: Path) -> None:
    halves().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    halves().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    halves().convert("L").point(lambda value: 255 * (value > 60), "1").save(tmp_path / "bits.png")
    for name in ("cmyk.jpg", "palette.png"):
        pixels = load_picture(tmp_path / name).pixels
        assert close(pixels[10, 5], RED, 30) and close(pixels[10, 35], BLUE, 30), name
    pixels = load_picture(tmp_path / "bits.png").pixels
    assert pixels[10, 5].tolist() == [255] * 3 and pixels[10, 35].tolist() == [0] * 3


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_upper_byte(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 32896], [65535, 257]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    pixels = load_picture(tmp_path / f"deep.{ending}").pixels
    assert pixels[..., 0].tolist() == [[0, 128], [255, 1]]
    assert (pixels == pixels[..., :1]).all()


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    picture = halves().convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 0))
    picture.save(tmp_path / "clear.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    palette.save(tmp_path / "clear-palette.png", transparency=0)
    for name in ("clear.png", "clear-palette.png"):
        assert (load_picture(tmp_path / name).pixels == 255).all(), name


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    for name in ("moving.gif", "moving.webp"):
        assert close(load_picture(tmp_path / name).pixels[4, 4], RED), name


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_a_single_pixel_becomes_a_single_colour(tmp_path: Path, fit: str) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "dot.png")
    size = PictureSize(8, 8, fit)  # type: ignore[arg-type]
    pixels = load_picture(tmp_path / "dot.png", size).pixels
    assert pixels.shape == (8, 8, 3) and (pixels == RED).all()


def test_the_three_ways_to_fit(tmp_path: Path) -> None:
    halves(40, 20).save(tmp_path / "wide.png")
    crop = load_picture(tmp_path / "wide.png", PictureSize(10, 10, "crop"))
    assert crop.box == (0.25, 0.0, 0.75, 1.0)
    stretch = load_picture(tmp_path / "wide.png", PictureSize(10, 10, "stretch"))
    assert stretch.box == (0.0, 0.0, 1.0, 1.0)
    pad = load_picture(tmp_path / "wide.png", PictureSize(10, 10, "pad"))
    assert pad.box == (0.0, -0.4, 1.0, 1.6)
    for loaded in (crop, stretch, pad):
        assert loaded.pixels.shape == (10, 10, 3)
        assert close(loaded.pixels[5, 1], RED) and close(loaded.pixels[5, 8], BLUE)
    assert close(pad.pixels[0, 5], (127, 127, 127), 0) and close(pad.pixels[9, 5], (127, 127, 127), 0)


def test_a_large_photograph_is_decoded_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    halves(1600, 800).save(tmp_path / "large.jpg", exif=exif)
    pixels, box = load_picture(tmp_path / "large.jpg", PictureSize(32, 32))
    assert close(pixels[2, 16], BLUE) and close(pixels[29, 16], RED)
    assert box == pytest.approx((0.0, 0.25, 1.0, 0.75))


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(path: Path, *parts: str) -> PictureError:
    with pytest.raises(PictureError) as caught:
        load_picture(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (path.name, *parts):
        assert part in message
    return caught.value


def test_text_that_is_called_a_picture(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("This is no picture, whatever its name says.")
    assert refused(tmp_path / "notes.jpg", "text, expected a picture").reason == "no picture in"


def test_an_empty_file_other_bytes_a_folder_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "bytes.png").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "empty.png", "an empty file")
    refused(tmp_path / "bytes.png", "no picture that is known here")
    refused(tmp_path / "folder.png", "is a folder")
    refused(tmp_path / "absent.png", "no such file")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_file_that_was_cut_off(tmp_path: Path, ending: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / f"whole.{ending}")
    content = (tmp_path / f"whole.{ending}").read_bytes()
    (tmp_path / f"cut.{ending}").write_bytes(content[: len(content) // 2])
    error = refused(tmp_path / f"cut.{ending}", "copy it again" if ending != "webp" else "")
    assert error.reason in ("cut off or damaged", "no picture in")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says that it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [11_000, 100_000])
def test_a_decompression_bomb_is_not_decoded(tmp_path: Path, side: int) -> None:
    assert side**2 > MOST_PIXELS
    (tmp_path / "bomb.png").write_bytes(bomb(side, side))
    assert refused(tmp_path / "bomb.png", "expected at most 120 million").reason == "oversized"


def test_fractions_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "fractions.tif")
    refused(tmp_path / "fractions.tif", "fractions of 32 bits", "save it with 8 or 16 bits")


def test_a_size_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="height is 0, expected 1 to 4096 pixels"):
        PictureSize(0, 8)


# -- many --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_one_bad_picture_of_many_leaves_the_others_alone(tmp_path: Path, workers: int) -> None:
    paths = []
    for number in range(40):
        path = tmp_path / f"{number:02}.png"
        Image.new("RGB", (3, 3), (number, 0, 0)).save(path)
        paths.append(path)
    paths[17].write_text("no picture")
    found = list(load_pictures(paths, PictureSize(2, 2), workers))
    assert len(found) == 40
    for number, one in enumerate(found):
        if number == 17:
            assert isinstance(one, PictureError) and one.reason == "no picture in" and "17.png" in str(one)
        else:
            assert not isinstance(one, PictureError) and (one.pixels[..., 0] == number).all()
