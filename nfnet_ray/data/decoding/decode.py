"""JPEG decoding and crop-resizing with FFCV's compiled library, without FFCV's Python package.

``libffcv`` is a thin C layer over libturbojpeg and OpenCV. It is loaded with :mod:`ctypes`, which lets
go of the interpreter lock during a call, so plain Python threads decode in parallel. The Python package
``ffcv`` around it is not imported: that costs seconds of compilation per process, and its decoder drops
the return code that says whether an image was damaged. libturbojpeg is called through libffcv's own link to it,
with libffcv's settings: its ``imdecode`` keeps two decoders for ever for every thread that there ever was.

Boxes of JPEGs are decoded by ``jpeg_box.c`` of this package where that was built, with the pixels of libffcv.

Array names carry their axes: H height, W width, C = 3 colour channels in the order red, green, blue.
"""

from __future__ import annotations

import functools
import logging
import os

import numpy as np

from nfnet_ray.data.decoding import compiled, plain
from nfnet_ray.data.decoding.compiled import DECODER_VARIABLE
from nfnet_ray.data.decoding.jpeg import DecodeError, JpegHeader, frame_of_one_scan, jpeg_header
from nfnet_ray.errors import UserError

logger = logging.getLogger(__name__)

# turbojpeg.h. libffcv asks for the fast inverse transform too.
_TJPF_RGB, _TJFLAG_FASTDCT, _TJFLAG_STOPONWARNING = 0, 2048, 8192
_BYTES_LEFT = "extraneous bytes"  # jerror.h, JWRN_EXTRANEOUS_DATA


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
    decode_box = compiled.box_function() if decoder() == "libffcv" else None
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
    rows, frame = height, frame_of_one_scan(source.data) if bottom < height else None
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
        plain.resize_crop(source_HWC, top, left, height, width, destination_HWC)
        return
    compiled.libffcv().resize(
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
    """Check the size: libturbojpeg would scale another one into part of the buffer and report success."""
    header = jpeg_header(source.data)
    if (header.height, header.width) != (height, width):
        raise DecodeError(f"the JPEG is {header.height}x{header.width} pixels, expected {height}x{width}")
    return header


def _decompress(source: np.ndarray, destination_HWC: np.ndarray) -> str | None:
    """Decode into all of the destination; libturbojpeg's first error or warning, or None."""
    if decoder() == "plain":
        return plain.decompress(source, destination_HWC)
    library = compiled.libffcv()
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
    """Check the layout of the arrays, because C reads and writes wherever it is told to."""
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
    if compiled.libffcv_path() is not None:
        return "libffcv"
    logger.warning(
        "libffcv, FFCV's compiled library, is not installed: Pillow decodes instead, at about half the speed,"
        " and finds only part of the damage that libffcv finds"
    )
    return "plain"
