"""Small pictures of one colour scale as PNG, for embedding where no other library draws.

Source: the PNG specification, third edition (W3C 2025), colour type 3: each pixel is a place in a palette.
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


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
