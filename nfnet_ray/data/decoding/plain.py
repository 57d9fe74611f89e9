"""The functions of ``libffcv`` in Pillow and NumPy, for machines where FFCV cannot be built.

Its two functions take arguments that :mod:`nfnet_ray.data.decoding.decode` has checked, and do what
its compiled functions do. Two things differ:

* Pillow runs libjpeg's accurate inverse transform (``JDCT_ISLOW``), ``libffcv`` the fast one (``JDCT_IFAST``), whose
  rounding is coarser: by 1.2 levels of 255 in the mean, 25 at most, over 250 photographs of ImageNet. Resizing is
  OpenCV's arithmetic, and differs by at most one level where float sums round.
* Pillow keeps libjpeg's warnings to itself. Damage is found here by what shows in the markers (a stream cut short,
  a marker where there is none, restarts out of order), and by where decoding ends: a JPEG in one scan must need its
  last bytes, and no more than them. Changed bits that leave that as it is go unnoticed; libjpeg warns of a few of
  these, and of most of those in JPEGs of several scans or with restarts. Only the manifest's hash finds all.
"""

from __future__ import annotations

import functools
import io
import re

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.data.decoding.jpeg import (
    END_OF_IMAGE,
    RESTART_INTERVAL,
    SEQUENTIAL_HUFFMAN,
    START_OF_SCAN,
    DecodeError,
    jpeg_header,
)

Pixels = NDArray[np.uint8]

# ITU-T T.81, table B.1.
_FIRST_RESTART, _LAST_RESTART = 0xD0, 0xD7
# JFIF (APP0) and Adobe (APP14) decide on the colour space. Exif, profiles and comments are left out: Pillow reads
# them, and fails on damage in what libjpeg skips.
_SKIPPED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
# The end of entropy-coded data: FF with anything after it but a stuffed 00 or more FF.
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)

_NO_END = "damaged JPEG: it ends before its end-of-image marker"

# libjpeg-turbo keeps up to 64 bits in hand (jdhuff.h), and waits until it has them or meets a marker.
_READ_AHEAD = bytes(8)
_LAST_BYTES = 2  # bits of the image are in the last byte, which may be an FF and its stuffed 00

_COEFFICIENT_ONE = 2048  # OpenCV's resize.cpp: INTER_RESIZE_COEF_BITS = 11
_SLIVER_PIXELS = 1e-3  # OpenCV's computeResizeAreaTab: a smaller part of a pixel is not counted


def decompress(source: NDArray[np.uint8], destination_HWC: Pixels) -> str | None:
    """Decode a JPEG into all of the destination; what is wrong with it, or None.

    Args:
        source: (bytes,) uint8: the JPEG.
        destination_HWC: (H, W, 3) uint8, of the size that the JPEG's header says.
    """
    from PIL import Image  # here, so that a process with libffcv needs no Pillow

    try:
        if jpeg_header(source.data).components not in (1, 3):
            return "the JPEG has neither one nor three colour components"
        stream = _Stream(*_essential_segments(source.tobytes()))
        with Image.open(stream, formats=("JPEG",)) as image:
            destination_HWC[:] = np.asarray(image.convert("RGB"))
    except DecodeError as error:
        return str(error)
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        return f"Pillow: {(str(error) or repr(error)).splitlines()[0]}"
    # In libjpeg's words, since callers that decode the upper rows alone expect this.
    return None if stream.needed_its_end else "damaged JPEG: extraneous bytes before marker 0xd9"


class _Stream(io.BytesIO):
    """A JPEG that Pillow reads in blocks; tells whether its last bytes, from ``end_start`` on, were asked for."""

    def __init__(self, content: bytes, end_start: int | None) -> None:
        super().__init__(content)
        self._end_start = end_start
        self.needed_its_end = end_start is None

    def read(self, size: int | None = -1, /) -> bytes:
        if self._end_start is not None:
            before_end = self._end_start - self.tell()
            if before_end > 0:
                size = before_end if size is None or size < 0 else min(size, before_end)
            else:
                self.needed_its_end = True
        return super().read(size)


def _essential_segments(encoded: bytes) -> tuple[bytes, int | None]:
    """The JPEG without segments that do not affect its pixels; and where its last bytes begin, if decoding needs them.

    That is known of a sequential JPEG in one scan. Its end-of-image marker is replaced with :data:`_READ_AHEAD`: at
    the marker libjpeg would continue with zeros; after this it has nothing to continue with, and Pillow raises.

    Raises:
        DecodeError: there are other bytes in place of a marker, restarts are out of order, or the end is missing.
    """
    kept, position, restart_interval = [encoded[:2]], 2, 0
    is_sequential, scans = False, 0
    while position + 4 <= len(encoded):
        if encoded[position] != 0xFF:
            raise DecodeError(f"damaged JPEG: byte {position} should begin a marker")
        marker = encoded[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
            continue
        length = 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
        if length < 4 or position + length > len(encoded):
            raise DecodeError(f"damaged JPEG: the segment at byte {position} is too long or too short")
        if marker not in _SKIPPED:
            kept.append(encoded[position : position + length])
        if marker == RESTART_INTERVAL:
            restart_interval = int.from_bytes(encoded[position + 4 : position + 6], "big")
        is_sequential |= marker in SEQUENTIAL_HUFFMAN
        position += length
        if marker != START_OF_SCAN:
            continue
        scans += 1
        following = _marker_after_scan(encoded, position, has_restarts=restart_interval > 0)
        kept.append(encoded[position : following.start()])  # without fill bytes before the marker
        position = following.end() - 2
        if following[1][0] == END_OF_IMAGE:
            if not is_sequential or scans > 1:
                return b"".join([*kept, b"\xff\xd9"]), None
            content = b"".join(kept)
            return content + _READ_AHEAD, len(content) - _LAST_BYTES
    raise DecodeError(_NO_END)


def _marker_after_scan(encoded: bytes, start: int, *, has_restarts: bool) -> re.Match[bytes]:
    """The first marker behind a scan's entropy-coded data, which begins at ``start`` and may have restarts in order."""
    for number, found in enumerate(_MARKER.finditer(encoded, start)):
        marker = found[1][0]
        if not _FIRST_RESTART <= marker <= _LAST_RESTART:
            return found
        if not has_restarts or marker != _FIRST_RESTART + number % 8:
            raise DecodeError(f"damaged JPEG: the restart at byte {found.start()} is out of order")
    raise DecodeError(_NO_END)


def resize_crop(
    source_HWC: Pixels, top: int, left: int, height: int, width: int, destination_HWC: Pixels
) -> None:
    """Resize a box of ``source_HWC`` (H, W, 3) uint8 to fill ``destination_HWC`` (H', W', 3) uint8.

    OpenCV's ``INTER_AREA``: the mean over the pixels' areas where neither side grows, else its bilinear rule
    with fixed-point coefficients. Source: ``modules/imgproc/src/resize.cpp`` of OpenCV 4.6.
    """
    box = source_HWC[top : top + height, left : left + width]
    new_height, new_width, _ = destination_HWC.shape
    if (new_height, new_width) == (height, width):
        destination_HWC[:] = box
    elif new_height > height or new_width > width:
        destination_HWC[:] = _bilinear(box, new_height, new_width)
    elif height % new_height == 0 and width % new_width == 0:
        destination_HWC[:] = _mean_of_blocks(box, height // new_height, width // new_width)
    else:
        rows = _areas(box.reshape(height, width * 3).astype(np.float32), new_height)  # (H', W * 3)
        columns = rows.reshape(new_height, width, 3).transpose(1, 0, 2).reshape(width, new_height * 3)
        resized = _areas(columns, new_width).reshape(new_width, new_height, 3).transpose(1, 0, 2)
        np.rint(resized, out=resized)
        destination_HWC[:] = resized  # a mean of uint8 needs no clipping


def _mean_of_blocks(box: Pixels, rows: int, columns: int) -> NDArray[np.float32] | NDArray[np.int32]:
    height, width, _ = box.shape
    blocks = box.reshape(height // rows, rows, width // columns, columns, 3)
    total = blocks.sum(axis=(1, 3), dtype=np.int32)
    if rows == columns == 2:  # OpenCV rounds this case up at one half, all others to even
        return (total + 2) >> 2
    return np.rint(total.astype(np.float32) * np.float32(1 / (rows * columns)))


def _areas(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Means over ``count`` equal stretches of axis 0 of (n, k); pixels on a border count in part."""
    places, weights = _stretches(len(values), count)
    means = values[places[0]]
    means *= weights[0]
    part = np.empty_like(means)
    for place, weight in zip(places[1:], weights[1:], strict=True):
        np.take(values, place, axis=0, out=part, mode="clip")  # "raise" would make a copy
        part *= weight
        means += part
    return means


@functools.lru_cache(maxsize=1024)
def _stretches(length: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The pixels under each stretch and their shares of it: (p, count) and (p, count, 1), padded with zeros."""
    scale = 1 / (count / length)
    begin = np.arange(count) * scale
    end = begin + scale
    cell = np.minimum(scale, length - begin)
    last = np.minimum(np.floor(end).astype(np.int64), length - 1)
    first = np.minimum(np.ceil(begin).astype(np.int64), last)
    places = first - 1 + np.arange(int((last - first).max()) + 2)[:, None]
    # [first, last) are whole pixels; one on either side may be there in part.
    shares = ((places >= first) & (places < last)).astype(np.float64)
    before, after = first - begin, end - last
    shares += np.where((places == first - 1) & (before > _SLIVER_PIXELS), before, 0)
    shares += np.where((places == last) & (after > _SLIVER_PIXELS), np.minimum(np.minimum(after, 1), cell), 0)
    return np.clip(places, 0, length - 1), (shares / cell).astype(np.float32)[:, :, None]


def _bilinear(box: Pixels, new_height: int, new_width: int) -> NDArray[np.int32]:
    height, width, _ = box.shape
    left, right, from_left, from_right = _neighbours(width, new_width)
    wide = box[:, left] * from_left[:, None] + box[:, right] * from_right[:, None]  # (H, W', 3), 11 bits more
    upper, lower, from_upper, from_lower = _neighbours(height, new_height)
    wide >>= 4
    high = (from_upper[:, None, None] * wide[upper]) >> 16
    high += (from_lower[:, None, None] * wide[lower]) >> 16
    return (high + 2) >> 2


@functools.lru_cache(maxsize=1024)
def _neighbours(length: int, count: int) -> tuple[np.ndarray, ...]:
    """For each new pixel the two old ones it is between, and their int32 coefficients, which sum to 2048."""
    inverse = count / length
    places = np.arange(count)
    lower = np.floor(places * (1 / inverse)).astype(np.int64)
    share = ((places + 1) - (lower + 1) * inverse).astype(np.float32)
    share = np.where(share <= 0, np.float32(0), share - np.floor(share))
    share[lower >= length - 1] = 0
    lower = np.minimum(lower, length - 1)
    second = np.rint(share * _COEFFICIENT_ONE).astype(np.int32)
    first = np.rint((1 - share) * np.float32(_COEFFICIENT_ONE)).astype(np.int32)
    return lower, np.minimum(lower + 1, length - 1), first, second
