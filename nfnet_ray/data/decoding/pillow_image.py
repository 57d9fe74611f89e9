"""Reads an image with Pillow: any size that fits into memory, whatever texts and profiles are attached.

Data sets are written from what it gives, and images that are classified later are read by it, too: both have the same
pixels, and neither takes what the other refuses.
"""

from __future__ import annotations

import functools
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nfnet_ray.data.loading.free_memory import free_bytes

if TYPE_CHECKING:  # the command line's --help need not wait for Pillow
    from PIL import Image

# Pillow's modes of 8 bits a channel. Others (I, I;16, F) have no one meaning as 8-bit pixels.
_EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)
_GREY_MODES = frozenset({"1", "L"})
_BYTE_PER_PIXEL_MODES = frozenset({"1", "L", "P"})  # in Pillow's memory; all others have four
# Pillow's own limit is a quarter of this for a warning and half of it for an error. A gigapixel in colour takes 4 GB.
MOST_PIXELS = 1 << 30
# From this size on images are decoded one at a time, however many threads there are: Pillow's limit for a warning.
LARGE_PIXELS = 89_478_485
_one_large_image = threading.Lock()
# A JPEG of more pixels is decoded at a half, a quarter or an eighth of its size, to at least twice what is asked for,
# as Pillow's thumbnail() does. Up to here, where Pillow would refuse to read, it is decoded whole.
_SCALED_PIXELS = 2 * LARGE_PIXELS
_TARGET_TIMES = 2
# PNG, 11.3: what says nothing of the pixels and may be of any length.
_PNG_SIGNATURE, _PNG_TEXTS = b"\x89PNG\r\n\x1a\n", frozenset({b"iCCP", b"tEXt", b"zTXt", b"iTXt"})
_ORIENTATION = 0x0112  # Exif 2.32, table 4
_EXIF = b"Exif\0\0"


class UnreadableImageError(Exception):
    """The source has no image there, or no decoder can read it."""


@dataclass(frozen=True)
class OpenedImage:
    """What Pillow made of a file."""

    image: Image.Image
    """Grey (L) or RGB, of its final size."""
    was_shrunk: bool
    orientation: int
    """1 to 8, what is left to be done; 1: nothing."""


def open_image(encoded: bytes, max_side: int) -> OpenedImage:
    """Read an image and shrink it so that no side is longer than ``max_side`` pixels.

    Raises:
        UnreadableImageError: no image, or one of more than :data:`MOST_PIXELS`, or not of 8 bits a channel.
        MemoryError: there is not enough memory free, in words for people.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(_without_texts(encoded))) as opened:
            if opened.mode not in _EIGHT_BIT_MODES:
                raise UnreadableImageError(f"pixels of mode {opened.mode}: convert it to 8 bits a channel")
            size, pixels = opened.size, opened.width * opened.height
            if pixels > MOST_PIXELS:
                raise UnreadableImageError(
                    f"{size[0]:,} x {size[1]:,} pixels, more than {MOST_PIXELS:,}: shrink or cut it"
                )
            with _alone_if_large(pixels):
                final, is_huge = _final_size(size, max_side), pixels > _SCALED_PIXELS
                if is_huge:
                    opened.draft(None, (_TARGET_TIMES * final[0], _TARGET_TIMES * final[1]))
                _check_memory(opened)
                opened.load()
                orientation = _orientation(opened.getexif)
                wanted = "L" if opened.mode in _GREY_MODES else "RGB"
                # convert() copies even where there is nothing to convert.
                image = opened if opened.mode == wanted else opened.convert(wanted)
                small = _resized(image, final, quickly=True) if is_huge else shrunk(image, max_side)
                return OpenedImage(
                    small.copy() if small is opened else small, max(size) > max_side, orientation
                )
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them into
        if type(error).__name__ == "UnidentifiedImageError":
            raise UnreadableImageError("not an image of a known format") from error
        raise UnreadableImageError(str(error) or type(error).__name__) from error


def shrunk(image: Image.Image, max_side: int) -> Image.Image:
    """The image itself, or a smaller one whose longer side has ``max_side`` pixels."""
    return _resized(image, _final_size(image.size, max_side), quickly=False)


def _final_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    longest = max(size)
    if longest <= max_side:
        return size
    width, height = (max(1, round(side * max_side / longest)) for side in size)
    return width, height


def _resized(image: Image.Image, size: tuple[int, int], *, quickly: bool) -> Image.Image:
    """``quickly``: by whole pixels first, to at least twice the size that is wanted."""
    if image.size == size:
        return image
    gap = float(_TARGET_TIMES) if quickly else None
    return image.resize(size, _pillow().Resampling.LANCZOS, reducing_gap=gap)


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as its orientation tag, 2 to 8, says that it should be seen, with the table of exif_transpose()."""
    transpose = _pillow().Transpose
    method = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }[orientation]
    return image.transpose(method)


def orientation_of_jpeg(encoded: bytes) -> int:
    """The orientation tag of a JPEG, 1 to 8; 1 where there is none, or none that can be read."""
    exif = _exif_segment(encoded)
    if exif is None:
        return 1

    def read() -> Any:
        found = _pillow().Exif()
        found.load(exif)
        return found

    return _orientation(read)


def _exif_segment(encoded: bytes) -> bytes | None:
    """The first APP1 segment with Exif in it, before the image's frame (ITU-T T.81, B.1.1.4; Exif 2.32, 4.7.2)."""
    position = 2
    while position + 4 <= len(encoded) and encoded[position] == 0xFF:
        marker, length = encoded[position + 1], int.from_bytes(encoded[position + 2 : position + 4], "big")
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
            continue
        if marker == 0xE1 and encoded.startswith(_EXIF, position + 4):
            return encoded[position + 4 : position + 2 + length]
        if not 0xE0 <= marker <= 0xEF and marker != 0xFE:  # applications' segments and comments come first
            return None
        position += 2 + length
    return None


def _orientation(read_exif: Any) -> int:
    try:
        value = read_exif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises whatever damaged tags lead it into; the pixels are sound all the same
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _without_texts(encoded: bytes) -> bytes:
    """A PNG without its texts and its colour profile, of which Pillow reads no more than a megabyte each."""
    if not encoded.startswith(_PNG_SIGNATURE) or not any(name in encoded for name in _PNG_TEXTS):
        return encoded
    return _PNG_SIGNATURE + b"".join(chunk for name, chunk in _png_chunks(encoded) if name not in _PNG_TEXTS)


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and whole chunk, length and checksum included (PNG, 5.3); what is cut short comes as it is."""
    position = len(_PNG_SIGNATURE)
    while position < len(encoded):
        length = int.from_bytes(encoded[position : position + 4], "big")
        yield encoded[position + 4 : position + 8], encoded[position : position + 12 + length]
        position += 12 + length


def _alone_if_large(pixels: int) -> AbstractContextManager[object]:
    return _one_large_image if pixels > LARGE_PIXELS else nullcontext()


def _check_memory(opened: Image.Image) -> None:
    """Raises MemoryError where decoding a large image would take more than there is."""
    pixels = opened.width * opened.height
    if pixels <= LARGE_PIXELS:
        return
    needed = pixels * (1 if opened.mode in _BYTE_PER_PIXEL_MODES else 4)
    if opened.mode not in ("L", "RGB"):
        needed += pixels * (1 if opened.mode in _GREY_MODES else 4)  # converted, in addition to the original
    free = free_bytes()
    if needed > free:
        raise MemoryError(
            f"decoding its {pixels / 1e6:,.0f} megapixels takes {needed / 1e9:,.1f} GB of memory, and"
            f" {free / 1e9:,.1f} GB are free"
        )


@functools.cache
def _pillow() -> Any:
    """Pillow's Image module, which reads images of any size here and prints no warnings of its own."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # MOST_PIXELS and the free memory are looked at instead
    # They are of tags and palettes, name a line of the library, and change nothing of what is stored.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    return Image
