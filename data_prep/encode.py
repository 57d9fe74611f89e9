"""What bytes of an image are stored: its own wherever that is possible."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from data_prep.sources import UnreadableImageError
from nfnet_ray.data.beton import PAGE_BYTES
from nfnet_ray.data.decode import DecodeError, decode_jpeg, jpeg_header
from nfnet_ray.data.manifest import hash_stored

# No chroma subsampling in what is encoded here: in a 32-pixel image, halving the colour's resolution
# is a visible change of the data, and the bytes it saves do not matter where re-encoding is the exception.
CHROMA_SUBSAMPLING = "4:4:4"
# Pillow's modes of 8 bits a channel. Others (I, I;16, F) have no one meaning as 8-bit pixels.
_EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)


@dataclass(frozen=True)
class EncodeSettings:
    """How images that cannot be stored as they are get encoded."""

    jpeg_quality: int = 90
    """1 to 100. 90 is what FFCV's RGBImageField uses unless told otherwise."""
    max_side: int = 1024
    """Pixels. Larger images are shrunk. NFNet-F6 is evaluated at 576 pixels, and every pixel beyond costs
    decoding time in every epoch."""


@dataclass(frozen=True)
class StoredImage:
    """An image ready to be stored."""

    jpeg: bytes
    hash: str
    height: int
    width: int
    re_encoded: str | None
    """Why it is not the source's own bytes, or None where it is."""


def prepare_image(encoded: bytes, settings: EncodeSettings) -> StoredImage:
    """Keep a JPEG that the training's own decoder reads without complaint; re-encode anything else.

    Re-encoding follows torchvision's ``ImageFolder``: orientation tags are ignored, transparency is dropped.

    Raises:
        UnreadableImageError: nothing decodes it.
    """
    reason, size = _why_not_as_it_is(encoded, settings)
    if reason is None:
        return StoredImage(encoded, hash_stored(encoded), *size, re_encoded=None)
    jpeg, (height, width) = _re_encode(encoded, settings)
    if len(jpeg) > PAGE_BYTES:
        raise UnreadableImageError(
            f"{len(jpeg):,} bytes, more than a page of {PAGE_BYTES:,}: lower --max-side"
        )
    return StoredImage(jpeg, hash_stored(jpeg), height, width, re_encoded=reason)


def _why_not_as_it_is(encoded: bytes, settings: EncodeSettings) -> tuple[str | None, tuple[int, int]]:
    """A reason to re-encode, if there is one; and the JPEG's (height, width), else (0, 0)."""
    try:
        header = jpeg_header(encoded)
    except DecodeError:
        return "not a JPEG", (0, 0)
    size = (header.height, header.width)
    if header.components not in (1, 3):
        return "a JPEG with neither one nor three channels", size
    if max(size) > settings.max_side:
        return f"a side longer than {settings.max_side} pixels", size
    if len(encoded) > PAGE_BYTES:
        return "a JPEG of more bytes than a page", size
    if 0 in size:
        return "a JPEG of unknown size", size
    try:
        decode_jpeg(np.frombuffer(encoded, np.uint8), np.empty((*size, 3), np.uint8))
    except DecodeError:
        return "a damaged JPEG that Pillow reads all the same", size
    return None, size


def _re_encode(encoded: bytes, settings: EncodeSettings) -> tuple[bytes, tuple[int, int]]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            if opened.mode not in _EIGHT_BIT_MODES:
                raise UnreadableImageError(f"pixels of mode {opened.mode}: convert it to 8 bits a channel")
            image = opened.convert("L" if opened.mode in ("1", "L") else "RGB")
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image of a known format") from error
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them into
        raise UnreadableImageError(str(error) or type(error).__name__) from error
    longest = max(image.size)
    if longest > settings.max_side:
        width, height = (max(1, round(side * settings.max_side / longest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=settings.jpeg_quality, subsampling=CHROMA_SUBSAMPLING)
    return buffer.getvalue(), (image.height, image.width)
