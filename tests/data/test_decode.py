"""A JPEG that is not whole, not of the announced size or not a JPEG is an error, never pixels. About 5 s."""

from __future__ import annotations

import ctypes
import io
import logging
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from PIL import Image

from nfnet_ray.data.decoding import compiled
from nfnet_ray.data.decoding.decode import decode_jpeg, decode_jpeg_box, decode_jpeg_top, resize_crop
from nfnet_ray.data.decoding.jpeg import DecodeError, jpeg_header

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


def test_anything_but_a_jpeg_is_an_error(encode: Encode) -> None:
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


# --- a box of a JPEG ------------------------------------------------------------------------------

TJPF_RGB, TJFLAG_NOREALLOC = 0, 1024  # turbojpeg.h
TURBOJPEG_SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "grey": 3, "4:4:0": 4, "4:1:1": 5}


def turbojpeg(pixels_HWC: np.ndarray, sampling: int, quality: int) -> bytes:
    """A JPEG by libturbojpeg, which knows samplings that Pillow does not."""
    library = compiled.libffcv()
    library.tjInitCompress.restype = ctypes.c_void_p
    library.tjCompress2.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, *(4 * [ctypes.c_int]), ctypes.c_void_p, ctypes.c_void_p, *(3 * [ctypes.c_int])
    ]  # fmt: skip
    height, width, _ = pixels_HWC.shape
    pixels_HWC, out = np.ascontiguousarray(pixels_HWC), np.empty(20_000 + 12 * pixels_HWC.size, np.uint8)
    address, size = ctypes.c_void_p(out.ctypes.data), ctypes.c_ulong(out.size)
    compressor = library.tjInitCompress()
    code = library.tjCompress2(
        compressor, pixels_HWC.ctypes.data, width, 0, height, TJPF_RGB, ctypes.byref(address), ctypes.byref(size),
        sampling, quality, TJFLAG_NOREALLOC,
    )  # fmt: skip
    library.tjDestroy(compressor)
    assert code == 0
    return out[: size.value].tobytes()


class Counter:
    """Stands in for jpeg_box.c's function, and counts how often it decoded."""

    def __init__(self) -> None:
        function = compiled.box_function()
        assert function is not None, "jpeg_box.c is not built: run make"
        self.function, self.calls, self.decoded = function, 0, 0

    def __call__(self, *arguments: int) -> int:
        code = self.function(*arguments)
        self.calls, self.decoded = self.calls + 1, self.decoded + (code == 0)
        return code


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(compiled, "box_function", lambda: counter)
    return counter


def boxes_of(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that begin and end at, before and behind each border of 8 pixels and each edge of the image."""
    starts = [{0, 1, 7, 8, 15, 16, 17, 31, 32, 33, side - 2, side - 1} for side in (height, width)]
    tops, lefts = (
        [place for place in places if 0 <= place < side]
        for places, side in zip(starts, (height, width), strict=True)
    )
    for number, top in enumerate(tops):
        for left in lefts:
            for rows, columns in ((1, 1), (2, 17), (16, 1), (height, width), (15 + number, 9)):
                yield top, left, min(rows, height - top), min(columns, width - left)


@pytest.mark.parametrize("sampling", TURBOJPEG_SAMPLINGS.values(), ids=TURBOJPEG_SAMPLINGS.keys())
@pytest.mark.parametrize("size", [(53, 67), (64, 96), (3, 41), (37, 2), (18, 35), (1, 1)])
def test_a_box_has_the_pixels_of_the_whole_image(
    photograph: Image.Image, native: Counter, sampling: int, size: tuple[int, int]
) -> None:
    """To the bit, wherever its edges are: chroma is interpolated between blocks, and not at the image's edge."""
    height, width = size
    pixels = np.asarray(photograph)[100 : 100 + height, 200 : 200 + width]
    for quality in (30, 100):  # 100: long codes
        encoded = turbojpeg(pixels, sampling, quality)
        whole = decode(encoded, height, width)
        for top, left, rows, columns in boxes_of(height, width):
            box = decode_jpeg_box(stored(encoded), height, width, top, left, rows, columns)
            assert np.array_equal(box, whole[top : top + rows, left : left + columns])
            assert box.flags.c_contiguous
    assert native.decoded == native.calls > 0


def test_a_box_of_noise_has_the_pixels_of_the_whole_image(native: Counter) -> None:
    """Values so large that no look-up holds them, blocks without an end, and runs of sixteen zeros."""
    generator = np.random.default_rng(0)
    for number in range(40):
        height, width = (int(side) for side in generator.integers(17, 60, size=2))
        pixels = generator.integers(0, 2, (height, width, 3), np.uint8) * 255
        pixels[generator.random((height, width)) < number / 40] = 255
        encoded = turbojpeg(pixels, number % 6, 100 - number % 3)
        whole = decode(encoded, height, width)
        top, left = int(generator.integers(0, height)), int(generator.integers(0, width))
        box = decode_jpeg_box(stored(encoded), height, width, top, left, height - top, width - left)
        assert np.array_equal(box, whole[top:, left:])
    assert native.decoded == native.calls > 0


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3},
        {"progressive": True, "mode": "L"},
    ],
)
def test_a_box_of_other_kinds_of_jpeg_is_left_to_libffcv(
    encode: Encode, native: Counter, options: dict[str, object]
) -> None:
    encoded = encode(12, size=(90, 70), **options)  # type: ignore[arg-type]
    whole = decode(encoded, 70, 90)
    for top, left, rows, columns in boxes_of(70, 90):
        box = decode_jpeg_box(stored(encoded), 70, 90, top, left, rows, columns)
        assert np.array_equal(box, whole[top : top + rows, left : left + columns])
        assert box.flags.c_contiguous
    assert native.calls > native.decoded == 0


@pytest.mark.parametrize(
    "options", [{"optimize": True}, {"exif": b"Exif\0\0" + b"x" * 40_000}, {"comment": b"x" * 65_000}]
)
def test_a_box_of_a_jpeg_with_more_in_its_header(
    encode: Encode, native: Counter, options: dict[str, object]
) -> None:
    encoded = encode(13, size=(90, 70), quality=90, **options)  # type: ignore[arg-type]
    for variant in (encoded, encoded[:-2] + b"\xff\xff\xff\xd9", encoded + b"\0thumbnail\xff\xd8"):
        whole = decode(variant, 70, 90)
        for box in ((10, 20, 30, 40), (0, 0, 70, 90)):
            top, left, rows, columns = box
            pixels = decode_jpeg_box(stored(variant), 70, 90, *box)
            assert np.array_equal(pixels, whole[top : top + rows, left : left + columns])
    assert native.decoded == native.calls > 0


def test_a_box_of_a_truncated_jpeg_is_an_error(encode: Encode) -> None:
    """Also where the box ends long before the place at which it is cut off."""
    encoded = encode(14, size=(96, 96), quality=90)
    for length in [*range(0, len(encoded) - 2, 29), len(encoded) - 2, len(encoded) - 1]:
        with pytest.raises(DecodeError):
            decode_jpeg_box(stored(encoded[:length]), 96, 96, 8, 8, 16, 16)


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0", "grey"])
def test_what_becomes_of_a_damaged_jpeg_is_what_libffcv_makes_of_it(
    photograph: Image.Image, native: Counter, sampling: str
) -> None:
    """The same error, or the same pixels: of a flipped bit, and of bytes that are left out, repeated or overwritten."""
    generator = np.random.default_rng(3)
    pixels = np.asarray(photograph)[100:164, 200:280]
    encoded = turbojpeg(pixels, TURBOJPEG_SAMPLINGS[sampling], 85)
    outcomes = {True: 0, False: 0}
    for number in range(600):
        damaged, at = bytearray(encoded), int(generator.integers(2, len(encoded)))
        if number % 3:
            damaged[at] ^= 1 << int(generator.integers(0, 8))
        else:
            damaged[at : at + int(generator.integers(0, 4))] = generator.bytes(int(generator.integers(0, 4)))
        bottom = int(generator.integers(1, 65))
        source, top = stored(bytes(damaged)), bottom // 2
        try:
            expected: bytes | str = decode_jpeg_top(source, 64, 80, bottom)[top:bottom, 13:70].tobytes()
        except DecodeError as error:
            expected = str(error)
        try:
            got: bytes | str = decode_jpeg_box(source, 64, 80, top, 13, bottom - top, 57).tobytes()
        except DecodeError as error:
            got = str(error)
        assert got == expected
        outcomes[isinstance(got, bytes)] += 1
    assert min(outcomes.values()) > 50
    assert native.decoded > 100


def grey_block(symbols: str) -> bytes:
    """A grey JPEG of 8 x 8 pixels; of its coefficients R are 15 zeros and a one, 1 is a one, and E ends the block."""
    codes = {"R": "01", "1": "101", "E": "110"}  # Huffman code, and the value 1 as a bit
    bits = "0" + "".join(codes[symbol] for symbol in symbols)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (2 + len(content)).to_bytes(2, "big") + content

    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, bytes([0]) + bytes([9]) * 64),  # quantisation
            segment(0xC0, bytes([8, 0, 8, 0, 8, 1, 1, 0x11, 0])),  # frame
            segment(0xC4, bytes([0x00, 1, *(15 * [0]), 0])),  # DC: 0 means no difference
            segment(0xC4, bytes([0x10, 1, 1, 1, *(13 * [0]), 0xF1, 0x01, 0x00])),  # AC: 0, 10 and 110
            segment(0xDA, bytes([1, 1, 0, 0, 63, 0])),  # scan
            data,
            b"\xff\xd9",
        ]
    )


def test_a_block_may_end_and_overflow_anywhere(native: Counter) -> None:
    """libjpeg moves a run that leaves the block into its last coefficient without a word; that is not done here."""
    for ones in range(64):
        for runs in range(5):
            places = 1 + ones + 16 * runs
            symbols = "1" * ones + "R" * runs + ("E" if places < 64 else "")
            if places > 64 + 15:
                continue
            decoded = native.decoded
            encoded = grey_block(symbols)
            whole = decode(encoded, 8, 8)
            assert np.array_equal(decode_jpeg_box(stored(encoded), 8, 8, 0, 0, 8, 8), whole)
            assert native.decoded - decoded == (places <= 64), symbols


@pytest.mark.parametrize(
    "box", [(-1, 0, 10, 10), (0, -1, 10, 10), (0, 0, 41, 10), (0, 40, 10, 9), (5, 5, 0, 10), (0, 0, 10, -1)]
)
def test_a_box_outside_the_image_is_refused(encode: Encode, box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not inside"):
        decode_jpeg_box(stored(encode(15)), 40, 48, *box)
    with pytest.raises(DecodeError, match="40x48"):
        decode_jpeg_box(stored(encode(15)), 48, 40, 0, 0, 8, 8)


@pytest.fixture
def looked_for_again() -> Iterator[None]:
    """The compiled functions are looked for again in the test, and after it."""
    compiled.box_function.cache_clear()
    yield
    compiled.box_function.cache_clear()


@pytest.mark.usefixtures("looked_for_again")
@pytest.mark.parametrize(
    ("found", "says"), [(None, "not built"), ("of another version", "nfnet_ray_jpeg_box")]
)
def test_without_the_compiled_function_libffcv_gives_the_same_pixels_and_one_line_says_so(
    encode: Encode,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    found: str | None,
    says: str,
) -> None:
    encoded = encode(16, size=(90, 70))
    whole = decode(encoded, 70, 90)
    if found is None:
        monkeypatch.setitem(sys.modules, "_nfnet_ray_jpeg", None)  # as if it were not there
    else:
        other = types.ModuleType("_nfnet_ray_jpeg")
        other.__spec__ = ModuleSpec("_nfnet_ray_jpeg", None, origin=str(compiled.libffcv_path()))
        monkeypatch.setitem(sys.modules, "_nfnet_ray_jpeg", other)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            box = decode_jpeg_box(stored(encoded), 70, 90, 10, 20, 30, 40)
            assert np.array_equal(box, whole[10:40, 20:60])
    (record,) = caplog.records
    assert says in record.message
