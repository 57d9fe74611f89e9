"""A JPEG that is not whole, not of the announced size or not a JPEG is an error, never pixels. Under 1 s."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from nfnet_ray.data.decode import DecodeError, decode_jpeg, jpeg_header, resize_crop

from .conftest import Encode


def decode(encoded: bytes, height: int = 40, width: int = 48) -> np.ndarray:
    out = np.zeros((height, width, 3), np.uint8)
    decode_jpeg(np.frombuffer(encoded, np.uint8), out)
    return out


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 30}, {"exif": b"Exif\0\0" + b"x" * 9000}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_another_decoder(encode: Encode, mode: str, options: dict[str, object]) -> None:
    """libffcv asks libturbojpeg for its fast inverse transform, whose rounding differs by a few levels."""
    encoded = encode(0, mode=mode, **options)
    with Image.open(io.BytesIO(encoded)) as image:
        expected = np.asarray(image.convert("RGB"), np.int64)
    difference = np.abs(decode(encoded) - expected)
    assert difference.max() <= 8
    assert difference.mean() < 2
    assert jpeg_header(encoded) == (40, 48, 1 if mode == "L" else 3)


def test_every_truncation_is_an_error(encode: Encode) -> None:
    encoded = encode(1)
    for length in [*range(1, len(encoded) - 2, 37), len(encoded) - 2]:
        with pytest.raises(DecodeError):
            decode(encoded[:length])


@pytest.mark.parametrize(("height", "width"), [(20, 24), (80, 96), (40, 47), (48, 40)])
def test_another_size_than_announced_is_an_error(encode: Encode, height: int, width: int) -> None:
    """libturbojpeg itself would fill a part of the buffer and report success."""
    with pytest.raises(DecodeError, match="40x48"):
        decode(encode(2), height, width)


def test_what_is_not_a_jpeg_is_an_error(encode: Encode) -> None:
    for encoded in (
        b"",
        b"\xff",
        b"hello",
        encode(3, "PNG"),
        encode(3, mode="CMYK"),
        b"\xff\xd8" + b"\xff" * 50,
    ):
        with pytest.raises((DecodeError, ValueError)):
            decode(encoded)


def test_arrays_that_c_would_misread_are_refused(encode: Encode) -> None:
    encoded = np.frombuffer(encode(4), np.uint8)
    frozen = np.zeros((40, 48, 3), np.uint8)
    frozen.setflags(write=False)
    wrong = (
        np.zeros((40, 48, 3), np.int8),
        np.zeros((40, 48), np.uint8),
        np.zeros((40, 48, 4), np.uint8),
        np.zeros((40, 96, 3), np.uint8)[:, ::2],
        frozen,
    )
    for out in wrong:
        with pytest.raises(ValueError, match="destination"):
            decode_jpeg(encoded, out)
    with pytest.raises(ValueError, match="source"):
        decode_jpeg(encoded[::2], np.zeros((40, 48, 3), np.uint8))


@pytest.mark.parametrize(
    "box", [(-1, 0, 10, 10), (0, 0, 41, 10), (0, 40, 10, 9), (5, 5, 0, 10), (0, 0, 10, -1)]
)
def test_a_crop_outside_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not inside"):
        resize_crop(np.zeros((40, 48, 3), np.uint8), *box, np.zeros((8, 8, 3), np.uint8))
