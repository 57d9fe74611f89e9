"""Reads a JPEG's structure without decoding it: ITU-T T.81's markers, the size of the image, its scans."""

from __future__ import annotations

from typing import NamedTuple

# ITU-T T.81, table B.1: the start-of-frame markers are C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length after them: TEM and the restart markers RST0 to RST7.
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
START_OF_SCAN, END_OF_IMAGE, RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
SEQUENTIAL_HUFFMAN = frozenset({0xC0, 0xC1})


class DecodeError(Exception):
    """The bytes are not an image that libturbojpeg decodes without an error or a warning."""


class JpegHeader(NamedTuple):
    """A JPEG's frame header: size in pixels and the number of colour components (1, 3 or 4)."""

    height: int
    width: int
    components: int


def jpeg_header(source: bytes | memoryview) -> JpegHeader:
    """Read the frame header of a JPEG (ITU-T T.81, B.2.2) without decoding it.

    Raises:
        DecodeError: these bytes do not start a JPEG, or its frame header is missing or damaged.
    """
    view = memoryview(source)
    if len(view) < 2 or view[0] != 0xFF or view[1] != 0xD8:
        raise DecodeError("not a JPEG: the start-of-image marker is missing")
    position = 2
    while position + 10 <= len(view):  # a frame header's fixed part ends 10 bytes after its marker starts
        if view[position] != 0xFF:
            raise DecodeError(f"damaged JPEG: byte {position} should begin a marker")
        marker = view[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        elif marker in _START_OF_FRAME:
            return JpegHeader(
                height=view[position + 5] << 8 | view[position + 6],
                width=view[position + 7] << 8 | view[position + 8],
                components=view[position + 9],
            )
        elif marker in (START_OF_SCAN, END_OF_IMAGE):
            break
        else:
            position += 2 + (view[position + 2] << 8 | view[position + 3])
    raise DecodeError("damaged JPEG: it has no frame header")


class Frame(NamedTuple):
    """Where the frame header keeps the image's height, and how many rows of pixels a row of blocks has."""

    height_offset: int
    block_rows: int


def frame_of_one_scan(view: memoryview) -> Frame | None:
    """The frame, if rows at its end can be left alone; else None.

    That is so for a sequential Huffman JPEG (SOF0, SOF1) whose first scan has all components (ITU-T T.81, B.2.3), and
    which has no restart markers (DRI).
    """
    position, components, frame = 2, 0, None
    while position + 10 <= len(view) and view[position] == 0xFF:
        marker = view[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in SEQUENTIAL_HUFFMAN:
            components = view[position + 9]
            sampling = view[
                position + 11 : position + 11 + 3 * components : 3
            ]  # vertical in the lower 4 bits
            frame = Frame(position + 5, 8 * max((factors & 0xF for factors in sampling), default=1))
        elif marker in _START_OF_FRAME or marker == RESTART_INTERVAL or marker in _WITHOUT_LENGTH:
            return None
        elif marker == START_OF_SCAN:
            return frame if view[position + 4] == components and frame and frame.block_rows else None
        position += 2 + (view[position + 2] << 8 | view[position + 3])
    return None
