"""When a model listened: the spectrogram of a sound, and below it for each word its attention over the same time.

A row of colour is one word's: the stronger, the more of its attention lay on that stretch of the sound. The page also
lays the attention of the word pointed at over the spectrogram itself.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import torch
from torch import Tensor

from regard.attention.records.axis import SoundFrames
from regard.attention.records.record import AttentionRecord
from regard.errors import ObservationError
from regard.lens.colour import INK, MUTED, STEPS
from regard.lens.gaze import write_frames_page
from regard.lens.layout import GAP, MARGIN, Image, Picture, Words, lay_out, shown, width_of
from regard.lens.maps import as_record, chosen_map, maps_of
from regard.lens.page import asset
from regard.lens.palette import to_colour_png
from regard.lens.plot import Drawing, picture_path
from regard.lens.vector import to_svg
from regard.lens.words import axis_words

POINTS_A_SECOND = 150.0
LEAST_POINTS, MOST_POINTS = 300.0, 1100.0  # width of a spectrogram
SOUND_POINTS, ROW_POINTS = 96.0, 17.0  # height of a spectrogram, of a word's row
FONT = 9.5
HEAT = (0.98, 0.55, 0.24)  # red, green, blue of the strongest attention on the page's spectrogram
_LEAST_FRAME_PIXELS = 2  # of the page's spectrogram


@dataclass(frozen=True)
class Listening:
    """One word's attention over the positions of the sound, [num_positions], summing to 1."""

    word: str
    weights: Tensor


def shows_sound(record: AttentionRecord) -> bool:
    """Whether a record is about a sound."""
    return record.key is not None and record.key.sound is not None


def listened(record: AttentionRecord, layer: str | None = None, head: int | None = None) -> list[Listening]:
    """Each word's attention, in order; special tokens are left out.

    layer, head: as for `draw`: the mean over all unless given. Raises: ObservationError for a record that is about no
    sound, or holds no rows.
    """
    _sound(record)
    maps = maps_of(record)
    over_words = maps_of(as_record(maps).over_words(axis_words(maps.target), []))
    weights = chosen_map(over_words, layer, head)
    rows = zip(over_words.target.tokens, over_words.target.spans, weights, strict=True)
    return [Listening(word, row) for word, (begin, end), row in rows if end > begin]


def draw_hearing(
    records: AttentionRecord | Sequence[AttentionRecord],
    path: str | Path,
    *,
    layer: str | None = None,
    head: int | None = None,
    title: str = "",
) -> None:
    """Draws a spectrogram a record, each with its words' attention, as .png or .svg. Raises: as `regard.lens.draw`."""
    path = picture_path(path)
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    if not records:
        raise ObservationError(f"{path}: there is no record to draw; give one or more")
    panels = [_panel(record, listened(record, layer, head)) for record in records]
    Drawing(_stacked(panels, title)).save(path)


def write_hearing_page(
    records: AttentionRecord | Sequence[AttentionRecord],
    path: str | Path,
    *,
    layer: str | None = None,
    head: int | None = None,
    title: str = "When it listened",
    notes: str | Sequence[str] = (),
) -> None:
    """Writes one page of HTML that needs nothing else: for each record its words, its spectrogram, on which lies the
    attention of the word that is pointed at, and the attention of all words below.

    Raises: as `regard.lens.write_page`.
    """
    records = [records] if isinstance(records, AttentionRecord) else list(records)
    if not records:
        raise ObservationError(f"{path}: there is no record to show; give one or more")
    article = Template(asset("page_hearing_article.html"))
    articles, frames = [], []
    for place, record in enumerate(records):
        sound, words = _sound(record), listened(record, layer, head)
        top = max((float(one.weights.max()) for one in words), default=1.0)
        frames.append([_data_url(_lit(sound, None, top)), *(_data_url(_lit(sound, one.weights, top)) for one in words)])
        buttons = "".join(
            f'<button type="button" class="unit" data-record="{place}" data-frame="{number}">'
            f"{escape(one.word)}</button> "
            for number, one in enumerate(words, 1)
        )
        name = record.key.text if record.key is not None else ""
        articles.append(
            article.substitute(
                place=place,
                name=escape(name or f"Sound {place + 1}"),
                words=buttons,
                picture=frames[-1][0],
                caption=escape(record.query.text if record.query is not None else "", quote=True),
                chart=to_svg(_stacked([_panel(record, words)], "")),
            )
        )
    write_frames_page(path, "page_hearing.html", title, notes, articles, frames)


def _sound(record: AttentionRecord) -> SoundFrames:
    if record.key is None or record.key.sound is None:
        raise ObservationError("the record is about no sound; draw it with regard.lens.draw")
    return record.key.sound


def _grey(sound: SoundFrames) -> Tensor:
    """The spectrogram, low frequencies at the bottom, the loudest black: uint8 [bins, num_frames, 3]."""
    return (255 - sound.frames).T.flip(0)[..., None].expand(-1, -1, 3).contiguous()


def _lit(sound: SoundFrames, weights: Tensor | None, top: float) -> Tensor:
    """The page's spectrogram, with attention laid over it: uint8 [height, width, 3]."""
    frame = max(_LEAST_FRAME_PIXELS, 320 // max(sound.frames.shape[0], 1))
    pixels = _grey(sound)
    if weights is not None:
        of_frames = weights.float().repeat_interleave(sound.frames_a_position)[: pixels.shape[1]]
        of_frames = torch.nn.functional.pad(of_frames, (0, pixels.shape[1] - len(of_frames)))
        share = (of_frames / max(top, 1e-12)).clamp(0.0, 1.0).sqrt()[None, :, None] * 0.75
        lit = torch.lerp(pixels.float() / 255, torch.tensor(HEAT).expand_as(pixels), share.expand_as(pixels))
        pixels = (lit * 255).round().to(torch.uint8)
    height = max(1, 160 // pixels.shape[0])
    return pixels.repeat_interleave(height, 0).repeat_interleave(frame, 1)


def _panel(record: AttentionRecord, words: Sequence[Listening]) -> Picture:
    """One record at the origin."""
    sound = _sound(record)
    seconds = sound.frames.shape[0] * sound.frame_seconds
    width = min(max(seconds * POINTS_A_SECOND, LEAST_POINTS), MOST_POINTS)
    scale = width / seconds
    labels = [shown(one.word, 24) for one in words]
    left = max((width_of(label, FONT) for label in labels), default=0.0) + 8
    text = record.query.text if record.query is not None else ""
    texts = [Words(0, 11, shown(text, 120), 11, weight="bold")]
    upper = 20.0
    images = [Image(left, upper, width, SOUND_POINTS, _grey(sound))]
    lines = []
    below = upper + SOUND_POINTS
    for tick in _ticks(sound.begin_seconds, sound.begin_seconds + seconds):
        x = left + (tick - sound.begin_seconds) * scale
        lines.append((x, below, x, below + 4))
        texts.append(Words(x, below + 13, f"{tick:g} s", 8, "center", colour=MUTED))
    y = below + 20
    top = max((float(one.weights.max()) for one in words), default=1.0)
    step = sound.frame_seconds * sound.frames_a_position
    for label, one in zip(labels, words, strict=True):
        steps = (one.weights.float() / max(top, 1e-12) * STEPS).round().clamp(0, STEPS).to(torch.uint8)[None]
        reach = min(len(one.weights) * step, seconds) / (len(one.weights) * step) if len(one.weights) else 1.0
        images.append(Image(left, y, len(one.weights) * step * scale * reach, ROW_POINTS - 3, steps))
        texts.append(Words(left - 6, y + 0.5 * ROW_POINTS + 2, label, FONT, "right", colour=INK))
        y += ROW_POINTS
    return Picture(
        max(left + width, width_of(shown(text, 120), 11) * 1.1),
        y,
        1.0,
        (0.0, 0.0, 0.0, 0.0),
        texts,
        images=images,
        lines=lines,
    )


def _stacked(panels: Sequence[Picture], title: str) -> Picture:
    """Panels one below the other."""
    texts, images, lines, y = [], [], [], MARGIN
    if title:
        texts.append(Words(MARGIN, y + 15, shown(title, 120), 15, weight="bold"))
        y += 30
    for panel in panels:
        moved = lay_out([panel])  # at MARGIN, MARGIN
        shift = y - MARGIN
        texts += [_lowered(one, shift) for one in moved.texts if one.y < MARGIN + panel.height + 1]
        images += [Image(one.x, one.y + shift, one.width, one.height, one.steps) for one in moved.images]
        lines += [(x1, y1 + shift, x2, y2 + shift) for x1, y1, x2, y2 in moved.lines]
        y += panel.height + GAP
    caption = "black: the sound; colour: how much of a word's attention lay on that stretch of it"
    texts.append(Words(MARGIN, y, caption, 8.5, colour=MUTED))
    width = max(*(panel.width for panel in panels), width_of(caption, 8.5)) + 2 * MARGIN
    return Picture(width, y + MARGIN, 1.0, (0.0, 0.0, 0.0, 0.0), texts, images=images, lines=lines)


def _lowered(text: Words, by: float) -> Words:
    return Words(text.x, text.y + by, text.text, text.size, text.anchor, text.angle, text.colour, text.weight)


def _ticks(begin: float, end: float) -> list[float]:
    """Round seconds from begin to end, at most a dozen."""
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 600) if (end - begin) / step <= 12)
    return [round(place * step, 6) for place in range(math.ceil(begin / step), math.floor(end / step) + 1)]


def _data_url(pixels: Tensor) -> str:
    return f"data:image/png;base64,{base64.b64encode(to_colour_png(pixels)).decode()}"
