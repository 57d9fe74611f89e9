"""The stored bytes of an image: its own wherever possible, or else its pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_prep.sources.source import WriteMode
from nfnet_ray.data.decoding.decode import decode_jpeg
from nfnet_ray.data.decoding.jpeg import DecodeError, jpeg_header
from nfnet_ray.data.decoding.pillow_image import (
    UnreadableImageError,
    open_image,
    orientation_of_jpeg,
    shrunk,
    turned_upright,
)
from nfnet_ray.data.files.beton import JPEG, PAGE_BYTES, RAW
from nfnet_ray.data.files.manifest import hash_stored

if TYPE_CHECKING:  # the command line's --help need not wait for Pillow
    from PIL import Image

# No chroma subsampling in what is encoded here: in a 32-pixel image, halving the colour's resolution
# is a visible change of the data, and the bytes it saves do not matter where re-encoding is the exception.
CHROMA_SUBSAMPLING = "4:4:4"
# Images of up to 64x64 pixels (CIFAR, Tiny ImageNet) are better kept as pixels: 1.2 GB for 100,000 of them, and nothing
# to decode in any epoch.
SMALL_RAW_BYTES = 64 * 64 * 3
_NOT_A_JPEG, _PIXELS = "not a JPEG", "pixels, not a JPEG"
_TURNED = "turned upright, as its orientation tag says"


@dataclass(frozen=True)
class EncodeSettings:
    """How images are stored."""

    write_mode: WriteMode = "auto"
    """``auto``: clean JPEGs byte for byte; of the rest, raw pixels where they take at most :data:`SMALL_RAW_BYTES`, and
    encoded where they are more. ``jpg``: the rest encoded, whatever its size. ``raw``: decoded pixels of all.
    ``smart``: raw where the pixels take at most :data:`SMALL_RAW_BYTES`, or no more than the JPEG; else as ``jpg``.

    FFCV's ``smart`` (``fields/rgb_image.py`` of 1.0.2) weighs nothing against the JPEG: it is raw for every image
    unless ``smart_threshold`` is given, and encodes what is larger than that. Its ``jpg`` re-encodes every image.
    """
    jpeg_quality: int = 90
    """1 to 100, for JPEGs that are encoded here. 90 is what FFCV's RGBImageField uses unless told otherwise."""
    max_side: int = 1024
    """Pixels. Larger images are shrunk. NFNet-F6 is evaluated at 576 pixels, and every pixel beyond costs
    decoding time in every epoch."""
    apply_orientation: bool = False
    """Rotate images by their orientation tags, and re-encode those."""


@dataclass(frozen=True)
class StoredImage:
    """An image ready to be stored."""

    data: bytes
    """A JPEG, or height x width x 3 pixels: as ``mode`` says."""
    mode: int
    """:data:`nfnet_ray.data.files.beton.JPEG` or ``RAW``."""
    hash: str
    height: int
    width: int
    re_encoded: str | None
    """Why training sees other pixels than the source has, or None where it does not. Raw pixels of a clean JPEG
    are what training would decode from it."""
    orientation: int = 1
    """The orientation tag of the source, 1 to 8 (Exif 2.32, 4.6.5); 1 is upright, or no tag."""


def prepare_image(image: bytes | np.ndarray, settings: EncodeSettings) -> StoredImage:
    """Store an image as ``settings.write_mode`` says, changing no pixel that need not change.

    A JPEG that the training's own decoder reads without complaint is kept, or decoded by that decoder. Reading
    anything else follows torchvision's ``ImageFolder``: transparency is dropped, and orientation tags are ignored
    unless the settings say otherwise (Pillow applies those of TIFF files by itself).

    Args:
        image: a file's bytes, or (height, width, 3) uint8 pixels.

    Raises:
        UnreadableImageError: nothing decodes it, or it is too large to be stored.
        MemoryError: there is not enough memory to decode it.
    """
    if isinstance(image, np.ndarray):
        return _from_pixels(image, settings)
    reason, pixels_HWC = _decode_clean_jpeg(image, settings.max_side)
    orientation = 1 if reason == _NOT_A_JPEG else orientation_of_jpeg(image)
    turns = settings.apply_orientation and orientation != 1
    if pixels_HWC is not None and not turns:
        height, width, _ = pixels_HWC.shape
        if _raw_is_right((height, width), len(image), settings.write_mode, is_clean_jpeg=True):
            return _raw(pixels_HWC, None, orientation)
        if len(image) <= PAGE_BYTES:
            return StoredImage(
                image, JPEG, hash_stored(image), height, width, re_encoded=None, orientation=orientation
            )
        reason = "a JPEG of more bytes than a page"
    opened = open_image(image, settings.max_side)
    if reason == _NOT_A_JPEG:
        orientation = opened.orientation
        turns = settings.apply_orientation and orientation != 1
        if opened.was_shrunk:  # then raw pixels lose something too
            reason = f"a side longer than {settings.max_side} pixels"
    if not turns:
        return _from_pillow(opened.image, reason, settings, orientation)
    return _from_pillow(turned_upright(opened.image, orientation), _TURNED, settings, orientation)


def _from_pixels(pixels_HWC: np.ndarray, settings: EncodeSettings) -> StoredImage:
    from PIL import Image

    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(f"pixels must be (H, W, 3) uint8, not {pixels_HWC.dtype} {pixels_HWC.shape}")
    image = Image.fromarray(pixels_HWC)
    reason = _PIXELS
    if max(image.size) > settings.max_side:
        reason = f"a side longer than {settings.max_side} pixels"
    return _from_pillow(shrunk(image, settings.max_side), reason, settings, 1)


def _from_pillow(image: Image.Image, reason: str, settings: EncodeSettings, orientation: int) -> StoredImage:
    """Raw or as a JPEG, ``image`` being of mode L or RGB and of its final size."""
    size = (image.height, image.width)
    jpeg = b""
    # Whether raw is right may depend on how small a JPEG is, but for most images it does not.
    if not _raw_is_right(size, 0, settings.write_mode):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=settings.jpeg_quality, subsampling=CHROMA_SUBSAMPLING)
        jpeg = buffer.getvalue()
    if _raw_is_right(size, len(jpeg), settings.write_mode):
        lossless = reason in (_NOT_A_JPEG, _PIXELS)
        return _raw(np.asarray(image.convert("RGB")), None if lossless else reason, orientation)
    if len(jpeg) > PAGE_BYTES:
        raise _too_large(len(jpeg))
    return StoredImage(jpeg, JPEG, hash_stored(jpeg), *size, re_encoded=reason, orientation=orientation)


def _raw_is_right(
    size: tuple[int, int], jpeg_bytes: int, write_mode: WriteMode, *, is_clean_jpeg: bool = False
) -> bool:
    """Whether to store pixels of ``size`` (height, width) instead of a JPEG of ``jpeg_bytes``."""
    raw_bytes = 3 * size[0] * size[1]
    if write_mode == "auto":
        return not is_clean_jpeg and raw_bytes <= SMALL_RAW_BYTES
    return write_mode == "raw" or (
        write_mode == "smart" and raw_bytes <= min(max(SMALL_RAW_BYTES, jpeg_bytes), PAGE_BYTES)
    )


def _raw(pixels_HWC: np.ndarray, reason: str | None, orientation: int) -> StoredImage:
    if pixels_HWC.nbytes > PAGE_BYTES:
        raise _too_large(pixels_HWC.nbytes)
    data = pixels_HWC.tobytes()
    height, width, _ = pixels_HWC.shape
    return StoredImage(
        data, RAW, hash_stored(data), height, width, re_encoded=reason, orientation=orientation
    )


def _too_large(size: int) -> UnreadableImageError:
    return UnreadableImageError(f"{size:,} bytes, more than a page of {PAGE_BYTES:,}: lower --max-side")


def _decode_clean_jpeg(encoded: bytes, max_side: int) -> tuple[str, np.ndarray | None]:
    """The pixels (H, W, 3) of a JPEG that can stay as it is, else None and the reason why it cannot."""
    try:
        header = jpeg_header(encoded)
    except DecodeError:
        return _NOT_A_JPEG, None
    if header.components not in (1, 3):
        return "a JPEG with neither one nor three channels", None
    if max(header.height, header.width) > max_side:
        return f"a side longer than {max_side} pixels", None
    if 0 in (header.height, header.width):
        return "a JPEG of unknown size", None
    pixels_HWC = np.empty((header.height, header.width, 3), np.uint8)
    try:
        decode_jpeg(np.frombuffer(encoded, np.uint8), pixels_HWC)
    except DecodeError:
        return "a damaged JPEG that Pillow reads all the same", None
    return "", pixels_HWC
