"""Where a model looked in a picture: a frame for each word, a film strip of all of them, and a page.

In a frame the picture is grey and dim, and a heat map lies on it: the weights of the grid's cells, blended from middle
to middle. Every frame of a strip has the same scale, so that a word that looks sharply burns and one that looks
everywhere glows. A cross marks the centre of mass.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.attention.records.axis import PictureGrid
from regard.attention.records.record import AttentionRecord
from regard.errors import ObservationError
from regard.lens.atomic import write_whole
from regard.lens.colour import INK, MUTED
from regard.lens.layout import GAP, MARGIN, Image, Picture, Words, shown
from regard.lens.maps import as_record, chosen_map, maps_of
from regard.lens.page import asset, digest, embedded
from regard.lens.palette import to_colour_png
from regard.lens.plot import Drawing, picture_path
from regard.lens.words import axis_words

FRAME_POINTS = 132.0  # width of a frame in a strip
FRAME_PIXELS = 264  # the longest side of what stands in a frame
PAGE_PIXELS = 448  # the same of the large picture of a page
FRAMES_A_LINE = 6
DIM = 0.55  # how bright the picture is under the heat
# Heat from none to all: dark violet, red, orange, near white; lightness rises all the way. Red, green, blue.
HEAT = ((0.12, 0.05, 0.25), (0.70, 0.18, 0.36), (0.98, 0.55, 0.24), (1.0, 0.97, 0.75))
OPACITY = 0.85  # of the strongest heat


@dataclass(frozen=True)
class Look:
    """One word's gaze. weights: [rows, columns], summing to 1. x, y: its centre of mass, in pixels of the picture."""

    word: str
    weights: Tensor
    x: float
    y: float


def shows_picture(record: AttentionRecord) -> bool:
    """Whether a record is about a picture."""
    return record.key is not None and record.key.picture is not None


def looks_of(record: AttentionRecord, layer: str | None = None, head: int | None = None) -> list[Look]:
    """The gaze of each word, in order; special tokens are left out.

    layer, head: as for `draw`: the mean over all unless given. Raises: ObservationError for a record that is about no
    picture, or holds no rows.
    """
    grid = _grid(record)
    maps = maps_of(record)
    words = axis_words(maps.target)
    over_words = maps_of(as_record(maps).over_words(words, []))
    weights = chosen_map(over_words, layer, head)
    centres = grid.centres()
    found = []
    for word, (begin, end), row in zip(over_words.target.tokens, over_words.target.spans, weights, strict=True):
        if end > begin:
            x, y = (row.double()[:, None] * centres).sum(0) / row.double().sum().clamp_min(1e-12)
            found.append(Look(word, row.view(grid.rows, grid.columns), float(x), float(y)))
    return found


def frame(grid: PictureGrid, weights: Tensor, top: float, longest: int = FRAME_PIXELS) -> Tensor:
    """The picture with the heat of `weights` [rows, columns] on it, uint8 [height, width, 3].

    top: the weight of the strongest heat. longest: pixels of the longer side.
    """
    picture = _sized(grid.pixels, longest)
    height, width = picture.shape[:2]
    left, upper, right, lower = grid.box
    # Where each pixel of the picture lies on the grid, from -1 to 1 a side as grid_sample counts.
    x = ((torch.arange(width) + 0.5) / width - left) / (right - left) * 2 - 1
    y = ((torch.arange(height) + 0.5) / height - upper) / (lower - upper) * 2 - 1
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
    heat = F.grid_sample(
        weights.float()[None, None], places.float(), mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]
    inside = (x.abs() <= 1)[None] & (y.abs() <= 1)[:, None]
    heat = torch.where(inside, (heat / max(top, 1e-12)).clamp(0.0, 1.0), 0.0)
    grey = (picture.float() / 255 @ torch.tensor([0.299, 0.587, 0.114]))[..., None] * DIM
    stops = torch.tensor(HEAT)
    place = heat * (len(stops) - 1)
    low = place.long().clamp(max=len(stops) - 2)
    colour = torch.lerp(stops[low], stops[low + 1], (place - low)[..., None])
    mixed = torch.lerp(grey.expand(-1, -1, 3), colour, heat[..., None].sqrt() * OPACITY)
    return (mixed * 255).round().to(torch.uint8)


def draw_gaze(
    records: AttentionRecord | Sequence[AttentionRecord],
    path: str | Path,
    *,
    layer: str | None = None,
    head: int | None = None,
    title: str = "",
) -> None:
    """Draws a film strip a record as .png or .svg: the picture itself, then a frame for each word.

    Raises: as `regard.lens.draw`.
    """
    path = picture_path(path)
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    if not records:
        raise ObservationError(f"{path}: there is no record to draw; give one or more")
    strips = [_strip(record, layer, head) for record in records]
    texts, images, lines, y = [], [], [], MARGIN
    if title:
        texts.append(Words(MARGIN, y + 15, shown(title, 120), 15, weight="bold"))
        y += 30
    for strip in strips:
        texts += [_moved(text, MARGIN, y) for text in strip.texts]
        images += [Image(one.x + MARGIN, one.y + y, one.width, one.height, one.steps) for one in strip.images]
        lines += [(x1 + MARGIN, y1 + y, x2 + MARGIN, y2 + y) for x1, y1, x2, y2 in strip.lines]
        y += strip.height + GAP
    width = max(strip.width for strip in strips) + 2 * MARGIN
    whole = Picture(width, y - GAP + MARGIN, 1.0, (0.0, 0.0, 0.0, 0.0), texts, images=images, lines=lines)
    Drawing(whole).save(path)


def write_gaze_page(
    records: AttentionRecord | Sequence[AttentionRecord],
    path: str | Path,
    *,
    layer: str | None = None,
    head: int | None = None,
    title: str = "Where it looked",
    notes: str | Sequence[str] = (),
) -> None:
    """Writes one page of HTML that needs nothing else: for each record its picture and its words; point at a word to
    see where the model looked for it, or read the strip of all words below.

    Raises: as `regard.lens.write_page`.
    """
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    if not records:
        raise ObservationError(f"{path}: there is no record to show; give one or more")
    article = Template(asset("page_gaze_article.html"))
    articles, frames = [], []
    for place, record in enumerate(records):
        grid, looks = _grid(record), looks_of(record, layer, head)
        top = _top(looks)
        plain = _sized(grid.pixels, PAGE_PIXELS)
        words = "".join(
            f'<button type="button" class="unit" data-record="{place}" data-frame="{number}">'
            f"{escape(look.word)}</button> "
            for number, look in enumerate(looks, 1)
        )
        own = [plain, *(frame(grid, look.weights, top, PAGE_PIXELS) for look in looks)]
        frames.append([_data_url(one) for one in own])
        strip = "".join(
            f'<figure><img src="{_data_url(frame(grid, look.weights, top, FRAME_PIXELS // 2))}" alt="">'
            f"<figcaption>{escape(look.word)}</figcaption></figure>"
            for look in looks
        )
        name = record.key.text if record.key is not None else ""
        caption = record.query.text if record.query is not None else ""
        articles.append(
            article.substitute(
                place=place,
                name=escape(name or f"Picture {place + 1}"),
                words=words,
                picture=frames[-1][0],
                caption=escape(caption, quote=True),
                strip=strip,
            )
        )
    write_frames_page(path, "page_gaze.html", title, notes, articles, frames)


def write_frames_page(
    path: str | Path,
    template: str,
    title: str,
    notes: str | Sequence[str],
    articles: Sequence[str],
    frames: list[list[str]],
) -> None:
    """Writes a page whose words change the picture above them. template: its asset. frames: of each article the
    pictures, as addresses of data: without a word, then one a word."""
    paragraphs = [notes] if isinstance(notes, str) else list(notes)
    style, script = asset("page.css") + asset("page_gaze.css"), asset("page_gaze.js")
    page = Template(asset(template)).substitute(
        title=escape(title),
        notes="".join(f'<p class="note">{escape(note)}</p>\n' for note in paragraphs if note),
        articles="".join(articles),
        data=embedded({"frames": frames}),
        style=style,
        script=script,
        style_hash=digest(style),
        script_hash=digest(script),
    )
    write_whole(path, page.encode("utf-8", "replace"))


def _grid(record: AttentionRecord) -> PictureGrid:
    if record.key is None or record.key.picture is None:
        raise ObservationError("the record is about no picture; draw it with regard.lens.draw")
    return record.key.picture


def _top(looks: Sequence[Look]) -> float:
    """The weight that burns: the largest of all words, so that a strip has one scale."""
    return max((float(look.weights.max()) for look in looks), default=1.0)


def _sized(pixels: Tensor, longest: int) -> Tensor:
    """The picture with its longer side brought to `longest` pixels, uint8 [height, width, 3]."""
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale == 1.0:
        return pixels
    size = [max(round(height * scale), 1), max(round(width * scale), 1)]
    planes = pixels.permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size, mode="bilinear", antialias=scale < 1.0, align_corners=False)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).contiguous()


def _strip(record: AttentionRecord, layer: str | None, head: int | None) -> Picture:
    """One record's frames at the origin."""
    grid, looks = _grid(record), looks_of(record, layer, head)
    height, width = grid.pixels.shape[:2]
    frame_height = FRAME_POINTS * height / width
    top = _top(looks)
    name = record.key.text.rpartition("/")[2] if record.key else ""
    frames: list[tuple[Tensor, str, tuple[float, float] | None]] = [(_sized(grid.pixels, FRAME_PIXELS), name, None)]
    frames += [(frame(grid, look.weights, top), look.word, (look.x, look.y)) for look in looks]
    texts: list[Words] = []
    images: list[Image] = []
    lines: list[tuple[float, float, float, float]] = []
    text = record.query.text if record.query is not None else ""
    texts.append(Words(0, 12, shown(text, 120), 12, weight="bold"))
    across, down = FRAME_POINTS + 8, frame_height + 22
    for number, (pixels, label, centre) in enumerate(frames):
        x, y = (number % FRAMES_A_LINE) * across, 22 + (number // FRAMES_A_LINE) * down
        images.append(Image(x, y, FRAME_POINTS, frame_height, pixels))
        colour = MUTED if centre is None else INK
        texts.append(Words(x + FRAME_POINTS / 2, y + frame_height + 13, shown(label, 24), 10, "center", colour=colour))
        if centre is not None and 0 <= centre[0] <= width and 0 <= centre[1] <= height:
            at_x, at_y = x + centre[0] / width * FRAME_POINTS, y + centre[1] / height * frame_height
            lines += [(at_x - 4, at_y, at_x + 4, at_y), (at_x, at_y - 4, at_x, at_y + 4)]
    num_lines = -(-len(frames) // FRAMES_A_LINE)
    return Picture(
        min(len(frames), FRAMES_A_LINE) * across - 8,
        22 + num_lines * down,
        1.0,
        (0.0, 0.0, 0.0, 0.0),
        texts,
        images=images,
        lines=lines,
    )


def _moved(text: Words, x: float, y: float) -> Words:
    return Words(text.x + x, text.y + y, text.text, text.size, text.anchor, text.angle, text.colour, text.weight)


def _data_url(pixels: Tensor) -> str:
    return f"data:image/png;base64,{base64.b64encode(to_colour_png(pixels)).decode()}"
