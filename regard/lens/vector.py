"""A picture as SVG.

Written by hand, not by matplotlib: its texts would be outlines or depend on a process-wide setting, and here each cell
says its weight when pointed at, words can be searched and copied, and equal pictures are equal bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from regard.lens.colour import EXPECTED, MUTED, PAPER, RULE, STEPS, scale, step_of
from regard.lens.layout import Picture
from regard.lens.palette import to_colour_png, to_palette_png

# What XML 1.0 cannot hold in any form.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ANCHOR = {"left": "start", "center": "middle", "right": "end"}


def to_svg(picture: Picture) -> str:
    """The picture as one SVG document; a length of 1 is a point."""
    colours = scale()
    width, height = _number(picture.width), _number(picture.height)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}pt" height="{height}pt" viewBox="0 0 {width} {height}" '
        "role=\"img\" font-family=\"'DejaVu Sans', Verdana, 'Noto Sans', sans-serif\">",
        "<title>Attention weights</title>",
        *(_gradient(colours) if picture.bar[2] > 0 else ()),
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        f'<g stroke="{RULE}" stroke-width="0.6">',
    ]
    for cell in picture.cells:
        fill = colours[step_of(cell.weight, picture.top)]
        lines.append(
            f'<rect x="{_number(cell.x)}" y="{_number(cell.y)}" width="{cell.size:g}" height="{cell.size:g}" '
            f'fill="{fill}"><title>{_text(cell.about)}</title></rect>'
        )
    if picture.bar[2] > 0:
        x, y, bar_width, bar_height = map(_number, picture.bar)
        lines.append(f'<rect x="{x}" y="{y}" width="{bar_width}" height="{bar_height}" fill="url(#regard-scale)"/>')
    lines.append(f'</g><g fill="none" stroke="{MUTED}" stroke-width="0.5">')
    for image in picture.images:
        place = f'x="{_number(image.x)}" y="{_number(image.y)}" '
        place += f'width="{_number(image.width)}" height="{_number(image.height)}"'
        if image.steps.numel():
            is_photograph = image.steps.dim() == 3
            png = to_colour_png(image.steps) if is_photograph else to_palette_png(image.steps)
            rendering = "" if is_photograph else 'image-rendering="pixelated" '
            lines.append(
                f'<image {place} preserveAspectRatio="none" {rendering}'
                f'href="data:image/png;base64,{base64.b64encode(png).decode()}"/>'
            )
        lines.append(f"<rect {place}/>")
    for line in picture.lines:
        x1, y1, x2, y2 = map(_number, line)
        lines.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')
    lines.append(f'</g><g fill="none" stroke="{EXPECTED}" stroke-width="1.6">')
    for left, upper, size in picture.outlines:
        place = f'x="{_number(left + 1)}" y="{_number(upper + 1)}" width="{size - 2:g}" height="{size - 2:g}"'
        lines.append(f'<rect {place} rx="2"/>')
    lines.append("</g>")
    for text in picture.texts:
        x, y = _number(text.x), _number(text.y)
        turn = f' transform="rotate({-text.angle:g} {x} {y})"' if text.angle else ""
        bold = ' font-weight="bold"' if text.weight == "bold" else ""
        anchor = f' text-anchor="{_ANCHOR[text.anchor]}"' if text.anchor != "left" else ""
        lines.append(
            f'<text x="{x}" y="{y}" font-size="{text.size:g}" fill="{text.colour}"{anchor}{bold}{turn}>'
            f"{_text(text.text)}</text>"
        )
    return "\n".join([*lines, "</svg>", ""])


def _gradient(colours: Sequence[str]) -> list[str]:
    return [
        '<defs><linearGradient id="regard-scale" x1="0" y1="1" x2="0" y2="0">',
        *(f'<stop offset="{step / STEPS:.4g}" stop-color="{colours[step]}"/>' for step in range(0, STEPS + 1, 4)),
        "</linearGradient></defs>",
    ]


def _number(length: float) -> str:
    return f"{length:.2f}".rstrip("0").rstrip(".")


def _text(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text))
