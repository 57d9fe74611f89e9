"""JPEG decoding and crop-resizing with FFCV's compiled library, without FFCV's Python package.

``libffcv`` is a thin C layer over libturbojpeg and OpenCV. It is loaded with :mod:`ctypes`, which lets
go of the interpreter lock during a call, so plain Python threads decode in parallel. The Python package
``ffcv`` around it is not imported: that costs seconds of compilation per process, and its decoder drops
the return code that says whether an image was damaged.

Source of the two signatures and of their meaning: ``ffcv/libffcv.py`` of FFCV 1.0.2 (functions ``imdecode``
and ``resize_crop``).

Array names carry their axes: H height, W width, C = 3 colour channels in the order red, green, blue.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nfnet_ray.errors import UserError

# ITU-T T.81, table B.1: the start-of-frame markers are C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, with no length after them: TEM and the restart markers RST0 to RST7.
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class DecodeError(Exception):
    """The bytes are not an image that libturbojpeg decodes without an error or a warning."""


class JpegHeader(NamedTuple):
    """What a JPEG's frame header says: size in pixels and the number of colour components (1, 3 or 4)."""

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
        if marker == 0xFF:  # fill bytes may stand before a marker
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        elif marker in _START_OF_FRAME:
            return JpegHeader(
                height=view[position + 5] << 8 | view[position + 6],
                width=view[position + 7] << 8 | view[position + 8],
                components=view[position + 9],
            )
        elif marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        else:
            position += 2 + (view[position + 2] << 8 | view[position + 3])
    raise DecodeError("damaged JPEG: it has no frame header")


def decode_jpeg(source: np.ndarray, destination_HWC: np.ndarray) -> None:
    """Decode a whole JPEG into ``destination_HWC``; grey images fill all three channels.

    Safe to call from many threads at once; prefer a few long-lived ones, since libffcv keeps one decoder
    per thread and never frees it.

    Args:
        source: (bytes,) uint8, contiguous: the JPEG.
        destination_HWC: (H, W, 3) uint8, contiguous and writeable, of exactly the size of the image.

    Raises:
        DecodeError: not a JPEG, of another size, or libturbojpeg reported an error or a warning
            (a truncated or damaged stream). The destination's content is then undefined.
        ValueError: an array of the wrong type, shape or layout.
    """
    if source.dtype != np.uint8 or source.ndim != 1 or not source.flags.c_contiguous:
        raise ValueError(f"source must be contiguous (bytes,) uint8, not {source.dtype} {source.shape}")
    _check_pixels("destination", destination_HWC)
    if not destination_HWC.flags.writeable:
        raise ValueError("destination is read-only")
    height, width, _ = destination_HWC.shape
    header = jpeg_header(source.data)
    # libturbojpeg would scale an image of another size into part of the buffer and call that a success.
    if (header.height, header.width) != (height, width):
        raise DecodeError(f"the JPEG is {header.height}x{header.width} pixels, expected {height}x{width}")
    library = _library()
    # Crop (0, 0, height, width) at scale 1/1, with cropping and flipping switched off: the whole image.
    code = library.imdecode(
        source.ctypes.data, source.size, height, width, destination_HWC.ctypes.data,
        height, width, 0, 0, 1, 1, False, False,
    )  # fmt: skip
    if code != 0:
        raise DecodeError(library.tjGetErrorStr().decode(errors="replace"))


def resize_crop(
    source_HWC: np.ndarray, top: int, left: int, height: int, width: int, destination_HWC: np.ndarray
) -> None:
    """Resize the box ``source_HWC[top:top + height, left:left + width]`` to fill ``destination_HWC``.

    OpenCV's ``INTER_AREA``: the mean over the pixels' areas when shrinking, bilinear when enlarging.

    Args:
        source_HWC: (H, W, 3) uint8, contiguous.
        top, left, height, width: the box, in pixels; it lies inside the source and is not empty.
        destination_HWC: (H', W', 3) uint8, contiguous and writeable.

    Raises:
        ValueError: an array of the wrong type, shape or layout, or a box that leaves the source.
    """
    _check_pixels("source", source_HWC)
    _check_pixels("destination", destination_HWC)
    if not destination_HWC.flags.writeable:
        raise ValueError("destination is read-only")
    source_height, source_width, _ = source_HWC.shape
    bottom, right = top + height, left + width
    if not (0 <= top < bottom <= source_height and 0 <= left < right <= source_width):
        raise ValueError(
            f"box rows {top}:{bottom}, columns {left}:{right} is not inside {source_height}x{source_width}"
        )
    _library().resize(
        0, source_HWC.ctypes.data, source_height, source_width, top, bottom, left, right,
        destination_HWC.ctypes.data, destination_HWC.shape[0], destination_HWC.shape[1],
    )  # fmt: skip


def _check_pixels(name: str, array: np.ndarray) -> None:
    """C reads and writes wherever it is told to, so the layout is checked before it is told."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{name} must be (H, W, 3) uint8, not {array.dtype} {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous")


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled library of the installed FFCV. ``find_spec`` locates the package without running it."""
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec is not None else None
    candidates = sorted(path for folder in folders or () for path in Path(folder).glob("_libffcv*.so"))
    if not candidates:
        raise UserError(
            "libffcv, FFCV's compiled library, is not installed: pip install ffcv==1.0.2 (it builds with"
            " pkg-config, libopencv-dev and libturbojpeg0-dev)"
        )
    try:
        library = ctypes.CDLL(str(candidates[0]))
    except OSError as error:
        raise UserError(
            f"{candidates[0]}: cannot be loaded ({error}); install libturbojpeg and OpenCV's libraries"
            " (libturbojpeg0 and libopencv-imgproc, or libopencv-dev)"
        ) from error
    library.imdecode.argtypes = [
        ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p,
        *(6 * [ctypes.c_uint32]), *(2 * [ctypes.c_bool]),
    ]  # fmt: skip
    library.imdecode.restype = ctypes.c_int
    library.resize.argtypes = 11 * [ctypes.c_int64]
    library.resize.restype = None
    # turbojpeg.h: the message of the last failure in this thread. The name is found through libffcv's
    # own link to libturbojpeg.
    library.tjGetErrorStr.argtypes = []
    library.tjGetErrorStr.restype = ctypes.c_char_p
    return library
