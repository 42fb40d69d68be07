"""A picture as PNG, drawn by matplotlib's Agg; neither pyplot nor any process-wide setting is touched."""

from __future__ import annotations

import io
import unicodedata
from functools import cache

import numpy as np

from regard.errors import ConfigError
from regard.lens.colour import EXPECTED, MUTED, PAPER, RULE, STEPS, scale, step_of
from regard.lens.layout import Picture

DOTS_PER_INCH = 160
FEWEST_DOTS_PER_INCH = 60  # below it the smallest labels cannot be read
MOST_PIXELS = 30_000  # a side; viewers commonly fail beyond 32,767
FONT = "DejaVu Sans"  # comes with matplotlib
MISSING = "\u25a1"  # an empty box stands for a character that no installed font has


def to_png(picture: Picture) -> bytes:
    """The picture as PNG at 160 dots an inch, fewer where a side would exceed 30,000 pixels.

    Raises: ConfigError where that leaves it unreadable.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    inches = (picture.width / 72, picture.height / 72)
    dots = min(DOTS_PER_INCH, int(MOST_PIXELS / max(inches)))
    if dots < FEWEST_DOTS_PER_INCH:
        raise ConfigError(
            f"a picture of {inches[0]:.0f} x {inches[1]:.0f} inches is too large for .png; "
            "draw fewer records at once, or write .html or .svg"
        )
    figure = Figure(figsize=inches, dpi=dots, facecolor=PAPER)
    figure.set_layout_engine("none")  # whatever the user's matplotlibrc says
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, picture.width)
    axes.set_ylim(picture.height, 0)

    colours = scale()
    squares = [Rectangle((cell.x, cell.y), cell.size, cell.size) for cell in picture.cells]
    fills = [colours[step_of(cell.weight, picture.top)] for cell in picture.cells]
    axes.add_collection(PatchCollection(squares, facecolors=fills, edgecolors=RULE, linewidths=0.6), autolim=False)
    pixel_of = np.array([tuple(bytes.fromhex(colour[1:])) for colour in colours], dtype=np.uint8)
    for image in picture.images:
        if not image.steps.numel():
            continue
        extent = (image.x, image.x + image.width, image.y + image.height, image.y)
        is_photograph = image.steps.dim() == 3
        axes.imshow(
            image.steps.numpy() if is_photograph else pixel_of[image.steps.numpy()],
            extent=extent,
            interpolation="antialiased" if is_photograph else "nearest",
            aspect="auto",
            origin="upper",
        )
    frames = [Rectangle((image.x, image.y), image.width, image.height) for image in picture.images]
    axes.add_collection(PatchCollection(frames, facecolors="none", edgecolors=MUTED, linewidths=0.5), autolim=False)
    strokes = [((x1, y1), (x2, y2)) for x1, y1, x2, y2 in picture.lines]
    axes.add_collection(LineCollection(strokes, colors=MUTED, linewidths=0.5), autolim=False)
    x, y, width, height = picture.bar
    slices = [Rectangle((x, y + height * (1 - (step + 1) / STEPS)), width, height / STEPS) for step in range(STEPS)]
    axes.add_collection(PatchCollection(slices, facecolors=colours[:STEPS], linewidths=0, antialiased=False))
    rings = [Rectangle((left + 1, upper + 1), size - 2, size - 2) for left, upper, size in picture.outlines]
    axes.add_collection(PatchCollection(rings, facecolors="none", edgecolors=EXPECTED, linewidths=1.6))

    families, drawable = _fonts_for("".join(text.text for text in picture.texts))
    bold = _covered(FONT, "bold")
    for text in picture.texts:
        weight = text.weight if all(ord(character) in bold for character in text.text) else "normal"
        axes.text(
            text.x,
            text.y,
            _drawn(text.text, drawable),
            fontfamily=families,
            fontsize=text.size,
            fontweight=weight,
            color=text.colour,
            horizontalalignment=text.anchor,
            verticalalignment="baseline",
            rotation=text.angle,
            rotation_mode="anchor",
            parse_math=False,
            usetex=False,
        )
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()


def _drawn(text: str, drawable: frozenset[int]) -> str:
    """The text with what no font can draw as empty boxes; marks and joiners that nothing can draw are left out."""
    kept = []
    for character in text:
        if ord(character) in drawable:
            kept.append(character)
        elif unicodedata.category(character) not in ("Mn", "Me", "Cf"):
            kept.append(MISSING)
    return "".join(kept)


def _fonts_for(text: str) -> tuple[list[str], frozenset[int]]:
    """Font families that together draw as much of `text` as the installed ones can, and what of it they draw."""
    wanted = {ord(character) for character in text} | {ord(MISSING)}
    families, drawable = [FONT], wanted & _covered(FONT)
    if wanted - drawable:
        for family in _installed():
            more = (wanted - drawable) & _covered(family)
            if more:
                families.append(family)
                drawable |= more
            if not wanted - drawable:
                break
    return families, frozenset(drawable)


@cache
def _installed() -> tuple[str, ...]:
    """Names of the installed upright families of normal weight, by name."""
    from matplotlib.font_manager import fontManager

    entries = [font for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal")]
    return tuple(sorted({font.name for font in entries if "last resort" not in font.name.lower()} - {FONT}))


@cache
def _covered(family: str, weight: str = "normal") -> frozenset[int]:
    """The characters that `family`, as matplotlib finds it, can draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    try:
        font = get_font(findfont(FontProperties(family=[family], weight=weight), fallback_to_default=False))
    except (ValueError, RuntimeError, OSError):
        return frozenset()
    # Fonts of colour bitmaps, as of emoji, cannot be drawn at any size.
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
