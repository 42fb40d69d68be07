"""Small pictures as PNG, of one colour scale or of any colours, for embedding where no other library draws.

Source: the PNG specification, third edition (W3C 2025). Colour type 3: each pixel is a place in a palette; colour type
2: each pixel is its red, green and blue.
"""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

from regard.lens.colour import scale


def to_palette_png(steps: Tensor) -> bytes:
    """A pixel for each entry of steps, uint8 [rows, columns] from 0 to `STEPS`, in the colours of the scale."""
    assert steps.dtype == torch.uint8 and steps.dim() == 2
    rows, columns = steps.shape
    lines = torch.cat([steps.new_zeros(rows, 1), steps], 1)  # each line begins with its filter, 0 for none
    palette = b"".join(bytes.fromhex(colour[1:]) for colour in scale())
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette),
            _chunk(b"IDAT", zlib.compress(lines.numpy().tobytes(), 6)),
            _chunk(b"IEND", b""),
        ]
    )


def to_colour_png(pixels: Tensor) -> bytes:
    """A picture, uint8 [rows, columns, 3]."""
    assert pixels.dtype == torch.uint8 and pixels.dim() == 3 and pixels.shape[2] == 3
    rows, columns = pixels.shape[:2]
    # Filter 2: what differs from the pixel above, which packs photographs better than their pixels.
    above = torch.cat([pixels.new_zeros(1, columns, 3), pixels[:-1]])
    lines = torch.cat([pixels.new_full((rows, 1), 2), (pixels - above).flatten(1)], 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(lines.numpy().tobytes(), 6)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
