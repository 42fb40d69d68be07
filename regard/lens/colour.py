"""One colour scale for every picture of attention: from the paper (weight 0) to a deep blue (the largest weight).

Steps are equal in the lightness of OKLab, so that equal differences of weight look equal, in print and to colour-blind
readers, too. Source: Ottosson 2020, "A perceptual color space for image processing".
"""

from __future__ import annotations

import math
from functools import cache

STEPS = 64
INK, PAPER, MUTED, RULE, EXPECTED = "#1a1c26", "#ffffff", "#5d6172", "#e3e5ec", "#d9480f"

# Lightness (0 to 1), chroma and hue (degrees) at the scale's start, middle and end. Lightness lies on a straight line.
_LIGHT = ((0.990, 0.004, 255.0), (0.665, 0.125, 248.0), (0.340, 0.140, 272.0))
_DARK = ((0.270, 0.018, 270.0), (0.600, 0.120, 245.0), (0.930, 0.075, 205.0))


@cache
def scale(*, dark: bool = False) -> tuple[str, ...]:
    """The scale as `STEPS` + 1 colours "#rrggbb"; dark: for a dark page, where more weight is brighter."""
    stops = [_oklab(*stop) for stop in (_DARK if dark else _LIGHT)]
    colours = []
    for step in range(STEPS + 1):
        place = 2 * step / STEPS
        low = min(int(place), 1)
        mixed = [a + (b - a) * (place - low) for a, b in zip(stops[low], stops[low + 1], strict=True)]
        colours.append(_hex(*mixed))
    return tuple(colours)


def step_of(weight: float, top: float) -> int:
    """Which of the scale's colours shows `weight` where `top` is the largest."""
    return round(min(max(weight / top, 0.0), 1.0) * STEPS) if top > 0 else 0


def text_colour(background: str) -> str:
    """Dark or white, whichever is read more easily on `background`; always a contrast of at least 4.5 to 1."""
    dark, white = "#05060a", "#ffffff"
    return dark if contrast(dark, background) >= contrast(white, background) else white


def contrast(one: str, other: str) -> float:
    """Contrast ratio from 1 to 21 (WCAG 2.2, "contrast ratio")."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _oklab(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    angle = math.radians(hue)
    return lightness, chroma * math.cos(angle), chroma * math.sin(angle)


def _hex(lightness: float, a: float, b: float) -> str:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    encoded = [12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in linear]
    return "#" + "".join(f"{round(255 * min(max(c, 0.0), 1.0)):02x}" for c in encoded)
