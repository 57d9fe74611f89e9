"""JPEG decoding and crop-resizing with FFCV's compiled library, without FFCV's Python package.

``libffcv`` is a thin C layer over libturbojpeg and OpenCV. It is loaded with :mod:`ctypes`, which lets
go of the interpreter lock during a call, so plain Python threads decode in parallel. The Python package
``ffcv`` around it is not imported: that costs seconds of compilation per process, and its decoder drops
the return code that says whether an image was damaged. libturbojpeg is called through libffcv's own link to it,
with libffcv's settings: its ``imdecode`` keeps two decoders for ever for every thread that there ever was.

Boxes of JPEGs are decoded by ``jpeg_box.c`` of this package where that was built, with the pixels of libffcv.

Source of the signatures and of their meaning: ``ffcv/libffcv.py`` and ``libffcv.cpp`` of FFCV 1.0.2 (functions
``imdecode`` and ``resize_crop``), and ``turbojpeg.h`` of libjpeg-turbo 2.1.

Array names carry their axes: H height, W width, C = 3 colour channels in the order red, green, blue.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nfnet_ray.errors import UserError

logger = logging.getLogger(__name__)

# ITU-T T.81, table B.1: the start-of-frame markers are C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, with no length after them: TEM and the restart markers RST0 to RST7.
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_START_OF_SCAN, _END_OF_IMAGE, _RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
_SEQUENTIAL_HUFFMAN = frozenset({0xC0, 0xC1})

# turbojpeg.h. libffcv asks for the fast inverse transform too.
_TJPF_RGB, _TJFLAG_FASTDCT, _TJFLAG_STOPONWARNING = 0, 2048, 8192
DECODER_VARIABLE = "NFNET_RAY_DECODER"
_BYTES_LEFT = "extraneous bytes"  # jerror.h, JWRN_EXTRANEOUS_DATA


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

    Safe to call from many threads at once.

    Args:
        source: (bytes,) uint8, contiguous: the JPEG.
        destination_HWC: (H, W, 3) uint8, contiguous and writeable, of exactly the size of the image.

    Raises:
        DecodeError: not a JPEG, of another size, or libturbojpeg reported an error or a warning
            (a truncated or damaged stream). The destination's content is then undefined.
        ValueError: an array of the wrong type, shape or layout.
    """
    _check_stored(source)
    _check_pixels("destination", destination_HWC)
    if not destination_HWC.flags.writeable:
        raise ValueError("destination is read-only")
    _check_size(source, *destination_HWC.shape[:2])
    error = _decompress(source, destination_HWC)
    if error is not None:
        raise DecodeError(error)


def decode_jpeg_box(
    source: np.ndarray, full_height: int, full_width: int, top: int, left: int, height: int, width: int
) -> np.ndarray:
    """The box ``[top:top + height, left:left + width]`` of a JPEG, (height, width, 3) uint8, contiguous.

    Its pixels are those of :func:`decode_jpeg`, to the bit. Where ``jpeg_box.c`` was built, it decodes baseline JPEGs
    in one scan without restart markers. All others, and all in which it finds something wrong, are decoded by
    :func:`decode_jpeg_top`, which has the last word on what is damaged. Like that one, it seldom notices changed bits.

    Args:
        source: (bytes,) uint8, contiguous: the JPEG.
        full_height, full_width: of the whole image, in pixels.
        top, left, height, width: the box, in pixels; it lies inside the image and is not empty.

    Raises:
        DecodeError: as :func:`decode_jpeg`.
        ValueError: an array of the wrong type or layout, or a box that leaves the image.
    """
    _check_stored(source)
    _check_box(top, left, height, width, full_height, full_width)
    decode_box = _box_function() if decoder() == "libffcv" else None
    if decode_box is not None:
        destination_HWC = np.empty((height, width, 3), np.uint8)
        code = decode_box(
            source.ctypes.data, source.size, full_height, full_width, top, left, height, width,
            destination_HWC.ctypes.data,
        )  # fmt: skip
        if code == 0:
            return destination_HWC
    rows_HWC = decode_jpeg_top(source, full_height, full_width, top + height)
    return np.ascontiguousarray(rows_HWC[top : top + height, left : left + width])


def decode_jpeg_top(source: np.ndarray, height: int, width: int, bottom: int) -> np.ndarray:
    """The rows of a JPEG above ``bottom``, or a few more, (at least ``bottom``, width, 3) uint8.

    The rows asked for have the pixels of :func:`decode_jpeg`, to the bit. Only a baseline JPEG in one scan without
    restart markers can be read like that; of others all rows are decoded.

    It notices less damage: what libjpeg makes of changed bits is seldom wrong by itself, but ends too early or too
    late, and the end is not looked at. Compare the bytes with the manifest's hash before, as the loader does.

    Args:
        source: (bytes,) uint8, contiguous: the JPEG.
        height, width: of the whole image, in pixels.
        bottom: 1 to ``height``.

    Raises:
        DecodeError: as :func:`decode_jpeg`.
        ValueError: an array of the wrong type or layout, or rows that there are not.
    """
    _check_stored(source)
    if not 0 < bottom <= height:
        raise ValueError(f"the {bottom} upper rows of {height} cannot be decoded")
    _check_size(source, height, width)
    rows, frame = height, _frame_of_one_scan(source.data) if bottom < height else None
    if frame is not None:
        # One row more, since chroma is interpolated between rows; then up to the end of a row of blocks.
        rows = min(height, -(-(bottom + 1) // frame.block_rows) * frame.block_rows)
    is_cut = frame is not None and rows < height
    if frame is not None and is_cut:  # as a JPEG of fewer rows: libturbojpeg stops after them
        source = source.copy()
        source[frame.height_offset : frame.height_offset + 2] = rows >> 8, rows & 0xFF
    destination_HWC = np.empty((rows, width, 3), np.uint8)
    error = _decompress(source, destination_HWC)
    if error is not None and not (is_cut and _says_that_rows_are_left(error)):
        raise DecodeError(error)
    return destination_HWC


def _says_that_rows_are_left(message: str) -> bool:
    """Whether libturbojpeg's first complaint is about bytes after the last row, before the end of the image.

    All rows are decoded then. It looks for a marker there only, as there are no restart markers.
    """
    return _BYTES_LEFT in message and message.endswith("before marker 0xd9")


class _Frame(NamedTuple):
    """Where the frame header keeps the image's height, and how many rows of pixels a row of blocks has."""

    height_offset: int
    block_rows: int


def _frame_of_one_scan(view: memoryview) -> _Frame | None:
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
        if marker in _SEQUENTIAL_HUFFMAN:
            components = view[position + 9]
            sampling = view[
                position + 11 : position + 11 + 3 * components : 3
            ]  # vertical in the lower 4 bits
            frame = _Frame(position + 5, 8 * max((factors & 0xF for factors in sampling), default=1))
        elif marker in _START_OF_FRAME or marker == _RESTART_INTERVAL or marker in _WITHOUT_LENGTH:
            return None
        elif marker == _START_OF_SCAN:
            return frame if view[position + 4] == components and frame and frame.block_rows else None
        position += 2 + (view[position + 2] << 8 | view[position + 3])
    return None


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
    _check_box(top, left, height, width, source_height, source_width)
    if decoder() == "plain":
        from nfnet_ray.data.decoding import plain

        plain.resize_crop(source_HWC, top, left, height, width, destination_HWC)
        return
    _library().resize(
        0, source_HWC.ctypes.data, source_height, source_width, top, bottom, left, right,
        destination_HWC.ctypes.data, destination_HWC.shape[0], destination_HWC.shape[1],
    )  # fmt: skip


def _check_stored(source: np.ndarray) -> None:
    if source.dtype != np.uint8 or source.ndim != 1 or not source.flags.c_contiguous:
        raise ValueError(f"source must be contiguous (bytes,) uint8, not {source.dtype} {source.shape}")


def _check_box(top: int, left: int, height: int, width: int, full_height: int, full_width: int) -> None:
    bottom, right = top + height, left + width
    if not (0 <= top < bottom <= full_height and 0 <= left < right <= full_width):
        raise ValueError(
            f"box rows {top}:{bottom}, columns {left}:{right} is not inside {full_height}x{full_width}"
        )


def _check_size(source: np.ndarray, height: int, width: int) -> JpegHeader:
    """libturbojpeg would scale an image of another size into part of the buffer and call that a success."""
    header = jpeg_header(source.data)
    if (header.height, header.width) != (height, width):
        raise DecodeError(f"the JPEG is {header.height}x{header.width} pixels, expected {height}x{width}")
    return header


def _decompress(source: np.ndarray, destination_HWC: np.ndarray) -> str | None:
    """Decode into all of the destination; libturbojpeg's first error or warning, or None."""
    if decoder() == "plain":
        from nfnet_ray.data.decoding import plain

        return plain.decompress(source, destination_HWC)
    library = _library()
    height, width, _ = destination_HWC.shape
    # A new one for each image (1 us): it keeps tables, and a damaged image that lacks one would be decoded with that of
    # the image before, so that its pixels depend on what this thread happened to decode.
    decompressor = library.tjInitDecompress()
    try:
        code = library.tjDecompress2(
            decompressor, source.ctypes.data, source.size, destination_HWC.ctypes.data,
            width, 0, height, _TJPF_RGB, _TJFLAG_FASTDCT | _TJFLAG_STOPONWARNING,
        )  # fmt: skip
        return None if code == 0 else library.tjGetErrorStr2(decompressor).decode(errors="replace")
    finally:
        library.tjDestroy(decompressor)


def _check_pixels(name: str, array: np.ndarray) -> None:
    """C reads and writes wherever it is told to, so the layout is checked before it is told."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{name} must be (H, W, 3) uint8, not {array.dtype} {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous")


@functools.cache
def decoder() -> str:
    """``libffcv``, or ``plain`` where that is not installed: Pillow and NumPy (:mod:`nfnet_ray.data.decoding.plain`).

    The environment variable ``NFNET_RAY_DECODER`` asks for one of the two by name.

    Raises:
        UserError: the variable names neither.
    """
    chosen = os.environ.get(DECODER_VARIABLE, "")
    if chosen in ("libffcv", "plain"):
        return chosen
    if chosen:
        raise UserError(f"{DECODER_VARIABLE}={chosen}: there is no such decoder; give libffcv or plain")
    if _library_path() is not None:
        return "libffcv"
    logger.warning(
        "libffcv, FFCV's compiled library, is not installed: Pillow decodes instead, at about half the speed,"
        " and finds only part of the damage that libffcv finds"
    )
    return "plain"


def _library_path() -> Path | None:
    """The compiled library of the installed FFCV. ``find_spec`` locates the package without running it."""
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec is not None else None
    candidates = (path for folder in folders or () for path in Path(folder).glob("_libffcv*.so"))
    return min(candidates, default=None)


@functools.cache
def _library() -> ctypes.CDLL:
    """``libffcv``, with the functions that are called here described to ctypes."""
    path = _library_path()
    if path is None:
        raise UserError(
            "libffcv, FFCV's compiled library, is not installed: pip install ffcv==1.0.2 (it builds with"
            f" pkg-config, libopencv-dev and libturbojpeg0-dev), or set {DECODER_VARIABLE}=plain"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be loaded ({error}); install libturbojpeg and OpenCV's libraries"
            " (libturbojpeg0 and libopencv-imgproc, or libopencv-dev),"
            f" or set {DECODER_VARIABLE}=plain"
        ) from error
    library.resize.argtypes = 11 * [ctypes.c_int64]
    library.resize.restype = None
    # turbojpeg.h of libjpeg-turbo 2. These names are found through libffcv's own link to libturbojpeg.
    library.tjInitDecompress.argtypes = []
    library.tjInitDecompress.restype = ctypes.c_void_p
    library.tjDestroy.argtypes = [ctypes.c_void_p]
    library.tjDestroy.restype = ctypes.c_int
    library.tjDecompress2.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, *(5 * [ctypes.c_int])
    ]  # fmt: skip
    library.tjDecompress2.restype = ctypes.c_int
    library.tjGetErrorStr2.argtypes = [ctypes.c_void_p]
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    return library


@functools.cache
def _box_function() -> Callable[..., int] | None:
    """``jpeg_box.c``'s function, or None, said once, where it was not built, or from another version of the source.

    ``setup.py`` builds it into the environment, so that every copy of the source that an interpreter runs finds it.
    """
    spec = importlib.util.find_spec("_nfnet_ray_jpeg")
    try:
        if spec is None or spec.origin is None:
            raise OSError("it was not built; run make, or pip install . with a C compiler and libjpeg-dev")
        function = ctypes.CDLL(spec.origin).nfnet_ray_jpeg_box_1
    except (OSError, AttributeError) as error:
        logger.warning("jpeg_box.c: %s; whole rows are decoded instead, with the same pixels", error)
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(6 * [ctypes.c_int]), ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function
