"""Bytes as letters: how a tokenizer of letters works on the bytes of UTF-8, and how bytes become text again."""

from __future__ import annotations

import unicodedata

NUM_BYTES = 256


def byte_of_letter() -> dict[str, int]:
    """The byte behind each letter of the byte-level alphabet: printable bytes stand for themselves, the rest follow
    from U+0100 on (Radford et al. 2019, the alphabet of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(NUM_BYTES) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}


def characters(data: bytes) -> tuple[str, list[int]]:
    """`data` as text with U+FFFD for what is no UTF-8, and for every byte the index of the character it is in."""
    parts: list[str] = []
    character_of: list[int] = []
    start = num_characters = 0
    while start < len(data):
        try:
            good, bad_end = data[start:].decode("utf-8"), len(data)
            bad_start = bad_end
        except UnicodeDecodeError as error:
            bad_start, bad_end = start + error.start, start + error.end
            good = data[start:bad_start].decode("utf-8")
        for character in good:
            character_of += [num_characters] * len(character.encode("utf-8"))
            num_characters += 1
        parts.append(good)
        if bad_start < bad_end:
            character_of += [num_characters] * (bad_end - bad_start)
            num_characters += 1
            parts.append("\ufffd")
        start = bad_end
    return "".join(parts), character_of


def displayed(piece: bytes) -> str:
    """How a token of these bytes is shown: "▁" for a space, "<0xC3>" for a byte that is no character by itself."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(_displayed_byte(byte) for byte in piece)
    return "".join(
        "▁" if letter == " " else letter if unicodedata.category(letter)[0] != "C" else repr(letter)[1:-1]
        for letter in text
    )


def _displayed_byte(byte: int) -> str:
    return "▁" if byte == 0x20 else chr(byte) if 0x21 <= byte < 0x7F else f"<0x{byte:02X}>"
