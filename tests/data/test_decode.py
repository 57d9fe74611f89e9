"""A JPEG that is not whole, not of the announced size or not a JPEG is an error, never pixels. Under 1 s."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from nfnet_ray.data.decode import DecodeError, decode_jpeg, decode_jpeg_top, jpeg_header, resize_crop

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


# --- the upper part of a JPEG ---------------------------------------------------------------------

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def stored(encoded: bytes) -> np.ndarray:
    return np.frombuffer(encoded, np.uint8)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("size", [(96, 131), (61, 80)])
def test_upper_rows_are_those_of_the_whole_image(
    encode: Encode, sampling: int, size: tuple[int, int]
) -> None:
    """To the bit, at every height: where chroma is subsampled, a row depends on the one below it."""
    encoded, (width, height) = encode(5, size=size, subsampling=sampling, quality=95), size
    whole, cut = decode(encoded, height, width), 0
    for bottom in range(1, height + 1):
        rows = decode_jpeg_top(stored(encoded), height, width, bottom)
        assert np.array_equal(rows[:bottom], whole[:bottom])
        assert rows.shape == (len(rows), width, 3)
        cut += len(rows) < height
    assert cut > height / 2  # it does leave rows out


@pytest.mark.parametrize(
    "options", [{"mode": "L"}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}]
)
def test_upper_rows_of_other_kinds_of_jpeg(encode: Encode, options: dict[str, object]) -> None:
    encoded = encode(6, size=(64, 128), **options)  # type: ignore[arg-type]
    whole = decode(encoded, 128, 64)
    for bottom in (1, 16, 17, 64, 127, 128):
        rows = decode_jpeg_top(stored(encoded), 128, 64, bottom)
        assert np.array_equal(rows[:bottom], whole[:bottom])


def test_damage_in_the_upper_rows_is_an_error(encode: Encode) -> None:
    """A marker in the middle. Changed bits are another matter: the loader compares hashes."""
    encoded = encode(7, size=(128, 128), quality=95)
    start = encoded.index(b"\xff\xda") + 14
    for place in range(start, start + 600, 7):
        for wrong in (b"\xff\xd9", b"\xff\xd0", b"\xff\xff\xff"):
            damaged = encoded[:place] + wrong + encoded[place + len(wrong) :]
            with pytest.raises(DecodeError):
                decode_jpeg_top(stored(damaged), 128, 128, 100)


@pytest.mark.parametrize("length", [100, 700, 1500])
def test_upper_rows_of_a_truncated_jpeg_are_an_error(encode: Encode, length: int) -> None:
    encoded = encode(9, size=(128, 128), quality=95)
    assert len(encoded) > 3000
    with pytest.raises(DecodeError):
        decode_jpeg_top(stored(encoded[:length]), 128, 128, 100)


def test_damage_below_the_rows_does_not_matter(encode: Encode) -> None:
    encoded = bytearray(encode(10, size=(64, 256), quality=95))
    whole = decode(bytes(encoded), 256, 64)
    encoded[-200:-100] = bytes(100)
    rows = decode_jpeg_top(stored(bytes(encoded)), 256, 64, 40)
    assert np.array_equal(rows[:40], whole[:40])
    with pytest.raises(DecodeError):
        decode(bytes(encoded), 256, 64)


@pytest.mark.parametrize("bottom", [0, -1, 41])
def test_rows_that_there_are_not_are_refused(encode: Encode, bottom: int) -> None:
    with pytest.raises(ValueError, match="rows"):
        decode_jpeg_top(stored(encode(11)), 40, 48, bottom)
    with pytest.raises(DecodeError, match="40x48"):
        decode_jpeg_top(stored(encode(11)), 48, 40, 30)


def without_huffman_tables(encoded: bytes) -> bytes:
    """A baseline JPEG that leaves the standard tables out, as cameras' motion JPEGs do: its DHT segments cut away."""
    kept, position = encoded[:2], 2
    while encoded[position + 1] != 0xDA:  # start of scan
        end = position + 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
        if encoded[position + 1] != 0xC4:
            kept += encoded[position:end]
        position = end
    return kept + encoded[position:]


def test_an_image_is_decoded_alike_whatever_was_decoded_before(encode: Encode) -> None:
    """libturbojpeg's handles keep tables from one image to the next."""
    bare = without_huffman_tables(encode(0))
    expected = decode(bare)
    for seed in range(1, 4):
        decode(encode(seed, optimize=True))
        assert np.array_equal(decode(bare), expected)
