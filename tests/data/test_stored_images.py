"""How images are stored: as they are, as pixels or as JPEGs; odd, damaged and very large ones."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep.conversion.encode import SMALL_RAW_BYTES, EncodeSettings, StoredImage, prepare_image
from data_prep.sources.source import WriteMode
from nfnet_ray.data.decoding import pillow_image
from nfnet_ray.data.decoding.decode import decode_jpeg
from nfnet_ray.data.decoding.pillow_image import UnreadableImageError
from nfnet_ray.data.files.beton import JPEG, PAGE_BYTES, RAW
from nfnet_ray.data.loading import free_memory

from .conftest import Encode, convert


def stored(image: bytes | np.ndarray, write_mode: WriteMode = "jpg", max_side: int = 1024) -> StoredImage:
    return prepare_image(image, EncodeSettings(write_mode=write_mode, max_side=max_side))


def stored_pixels(image: StoredImage) -> np.ndarray:
    """(H, W, 3) uint8, by the decoder that trains."""
    shape = (image.height, image.width, 3)
    if image.mode == RAW:
        return np.frombuffer(image.data, np.uint8).reshape(shape)
    out = np.empty(shape, np.uint8)
    decode_jpeg(np.frombuffer(image.data, np.uint8), out)
    return out


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_raw_pixels_of_a_jpeg_are_those_that_training_would_decode(encode: Encode, mode: str) -> None:
    image = encode(3, size=(150, 130), mode=mode)
    as_it_is, raw = stored(image), stored(image, "raw")
    assert (as_it_is.mode, raw.mode) == (JPEG, RAW)
    assert as_it_is.data == image
    assert len(raw.data) == 3 * 150 * 130
    assert raw.re_encoded is as_it_is.re_encoded is None
    np.testing.assert_array_equal(stored_pixels(raw), stored_pixels(as_it_is))


def test_raw_pixels_of_a_lossless_image_are_its_own(encode: Encode, photograph: Image.Image) -> None:
    raw = stored(encode(3, "PNG", size=(150, 130)), "raw")
    with Image.open(io.BytesIO(encode(3, "PNG", size=(150, 130)))) as image:
        np.testing.assert_array_equal(stored_pixels(raw), np.asarray(image))
    assert raw.re_encoded is None
    pixels = np.asarray(photograph)
    np.testing.assert_array_equal(stored_pixels(stored(pixels, "raw")), pixels)
    shrunk = stored(encode(3, "PNG", size=(150, 130)), "raw", max_side=75)
    assert (shrunk.height, shrunk.width, shrunk.re_encoded) == (65, 75, "a side longer than 75 pixels")


def test_smart_is_raw_where_that_is_small_or_smaller(encode: Encode) -> None:
    side = int((SMALL_RAW_BYTES / 3) ** 0.5)
    for kind in ("JPEG", "PNG"):
        assert stored(encode(1, kind, size=(side, side)), "smart").mode == RAW
        assert stored(encode(1, kind, size=(side + 1, side)), "smart").mode == JPEG
    noise = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=100, subsampling="4:4:4")
    assert len(buffer.getvalue()) > noise.nbytes
    assert stored(buffer.getvalue(), "smart").mode == RAW
    assert stored(buffer.getvalue(), "jpg").mode == JPEG


def test_pixels_of_more_than_a_page_are_refused_in_words(encode: Encode) -> None:
    """FFCV's pages hold 8 MiB, and no image straddles one."""
    image = encode(1, size=(1700, 1700))
    with pytest.raises(UnreadableImageError, match="lower --max-side"):
        stored(image, "raw", max_side=2000)
    assert PAGE_BYTES < 3 * 1700 * 1700
    assert stored(image, "smart", max_side=2000).mode == JPEG
    assert stored(image, "raw", max_side=1000).width == 1000


def turned(encode: Encode) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn it by 90 degrees; ImageFolder does not, so neither do we
    return encode(1, exif=exif)


ODDITIES: dict[str, tuple[Callable[[Encode], bytes], str | None]] = {
    "grey JPEG": (lambda encode: encode(1, mode="L"), None),
    "progressive JPEG": (lambda encode: encode(1, progressive=True), None),
    "JPEG with an orientation": (turned, None),
    "JPEG with bytes after its end": (lambda encode: encode(1) + b"\0" * 100, None),
    "CMYK JPEG": (lambda encode: encode(1, mode="CMYK"), "a JPEG with neither one nor three channels"),
    "PNG in JPEG's clothing": (lambda encode: encode(1, "PNG"), "not a JPEG"),
    "PNG with a palette": (lambda encode: encode(1, "PNG", mode="P"), "not a JPEG"),
    "transparent PNG": (lambda encode: encode(1, "PNG", mode="RGBA"), "not a JPEG"),
    "grey PNG": (lambda encode: encode(1, "PNG", mode="L"), "not a JPEG"),
    "grey PNG with transparency": (lambda encode: encode(1, "PNG", mode="LA"), "not a JPEG"),
    "black and white PNG": (lambda encode: encode(1, "PNG", mode="1"), "not a JPEG"),
    "GIF": (lambda encode: encode(1, "GIF", mode="P"), "not a JPEG"),
    "BMP": (lambda encode: encode(1, "BMP"), "not a JPEG"),
    "WebP": (lambda encode: encode(1, "WEBP", lossless=True), "not a JPEG"),
    "CMYK TIFF": (lambda encode: encode(1, "TIFF", mode="CMYK"), "not a JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("write_mode", ["auto", "jpg", "raw", "smart"])
@pytest.mark.parametrize("name", ODDITIES)
def test_odd_images_are_stored_as_what_they_show(encode: Encode, name: str, write_mode: WriteMode) -> None:
    build, reason = ODDITIES[name]
    image = build(encode)
    result = stored(image, write_mode)
    with Image.open(io.BytesIO(image)) as opened:
        expected = np.asarray(opened.convert("RGB"), np.int64)
    assert (result.height, result.width) == expected.shape[:2] == (40, 48)
    difference = np.abs(stored_pixels(result).astype(np.int64) - expected)
    # What the JPEG of quality 90 that was made of it loses; CMYK and a palette's dither lose more than photographs.
    assert difference.mean() < (6 if write_mode == "jpg" and reason is not None else 1)
    assert result.orientation == (6 if name == "JPEG with an orientation" else 1)
    if write_mode == "jpg" or (write_mode == "auto" and reason is None):
        assert result.re_encoded == reason
        assert (result.data == image) == (reason is None)
    else:
        assert result.mode == RAW
        assert result.re_encoded == (reason if name == "CMYK JPEG" else None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(encode: Encode, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    image = encode(1, kind, exif=exif, **options)
    settings = EncodeSettings(write_mode="raw", apply_orientation=True)
    turned = prepare_image(image, settings)
    with Image.open(io.BytesIO(image)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened), np.int64)
    assert np.abs(stored_pixels(turned).astype(np.int64) - expected).mean() < 2
    assert turned.orientation == (
        1 if kind == "TIFF" else orientation
    )  # Pillow turns those whatever one says
    if orientation == 1:
        assert turned == prepare_image(image, EncodeSettings(write_mode="raw"))


@pytest.mark.parametrize(
    "tag", [b"", b"MM", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0"]
)
def test_a_damaged_orientation_is_none(encode: Encode, tag: bytes) -> None:
    image = encode(1, exif=b"Exif\0\0" + tag)
    assert stored(image).orientation == 1
    assert stored(image).data == image


# Large images, and what is attached to images


def png_with(chunks: dict[bytes, bytes], image: bytes) -> bytes:
    """A PNG with more chunks behind its header, each with a checksum (PNG, 5.3)."""
    header = 8 + 25
    more = b"".join(
        len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in chunks.items()
    )
    return image[:header] + more + image[header:]


MUCH = bytes(40 << 20)
PROFILE, TEXT = b"profile\0\0" + zlib.compress(MUCH), zlib.compress(MUCH)


@pytest.mark.parametrize(
    "chunks",
    [
        {b"iCCP": PROFILE},
        {b"zTXt": b"Comment\0\0" + TEXT},
        {b"iTXt": b"Comment\0\1\0\0\0" + TEXT},
        {b"tEXt": b"Comment\0" + MUCH[: 2 << 20]},
        {b"iCCP": b"no profile at all", b"zTXt": b""},
    ],
    ids=lambda chunks: "+".join(map(bytes.decode, chunks)),
)
def test_what_is_attached_to_a_png_does_not_keep_it_from_being_read(
    encode: Encode, chunks: dict[bytes, bytes]
) -> None:
    image = encode(3, "PNG")
    assert stored(png_with(chunks, image), "raw") == stored(image, "raw")


def test_what_is_attached_to_a_jpeg_does_not_keep_it_from_being_read(encode: Encode) -> None:
    image = encode(3, icc_profile=bytes(3 << 20), comment=bytes(60_000))
    assert stored(image).data == image
    assert stored(image, max_side=30).width == 30


def test_an_image_above_pillows_limit_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    side = 13_600  # above 89 megapixels Pillow warns, and above 179 it refuses
    image = b"P4 %d %d\n" % (side, side) + (bytes(side // 16) + b"\xff" * (side // 16)) * side
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = stored(image, "raw", max_side=100)
    assert (result.height, result.width) == (100, 100)
    assert stored_pixels(result)[50, [0, 40, 60, 99], 0].tolist() == [255, 255, 0, 0]
    assert capfd.readouterr().err == ""


def test_pillows_warnings_reach_nobody(encode: Encode) -> None:
    """Nobody can do anything about them, and they name lines of the library."""
    image = encode(1, "PNG", mode="P", transparency=bytes(range(64)))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(image)) as opened:
            opened.convert("RGB")
        assert len(shown) == 1
        pillow_image._pillow.cache_clear()
        stored(image)
    assert len(shown) == 1


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(
    photograph: Image.Image, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    del encode
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=95)
    whole = stored(buffer.getvalue(), "raw", max_side=80)
    sizes: list[tuple[int, int]] = []
    check_memory = pillow_image._check_memory
    monkeypatch.setattr(pillow_image, "_SCALED_PIXELS", 100_000)
    monkeypatch.setattr(
        pillow_image, "_check_memory", lambda image: (sizes.append(image.size), check_memory(image))
    )
    part = stored(buffer.getvalue(), "raw", max_side=80)
    assert sizes == [(160, 107)]
    assert (part.height, part.width) == (whole.height, whole.width) == (53, 80)
    difference = stored_pixels(part).astype(np.int64) - stored_pixels(whole)
    assert np.abs(difference).mean() < 2


def test_an_image_that_does_not_fit_into_memory_stops_the_conversion(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pillow_image, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(pillow_image, "free_bytes", lambda: 5_000)
    assert convert(image_folder, tmp_path / "out", "--max-side", 30, "--skip-unreadable") == 2
    error = capsys.readouterr().err
    assert (
        "0.jpg: decoding its 0 megapixels takes 0.0 GB of memory, and 0.0 GB are free; shrink or remove it"
        in error
    )
    assert error.count("\n") == 1
    monkeypatch.setattr(pillow_image, "MOST_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="48 x 40 pixels, more than 1,000: shrink or cut it"):
        stored((image_folder / "rose" / "0.jpg").read_bytes(), max_side=30)


def test_files_that_a_container_has_read_leave_room_for_a_large_image(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive that is converted fills its page cache, up to the limit."""
    for name, text in (
        ("memory.max", str(1 << 30)),
        ("memory.current", str(1 << 30)),
        ("memory.stat", f"anon {1 << 20}\ninactive_file {(1 << 30) - (1 << 20)}\nactive_file 0\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(free_memory.free_bytes, "__defaults__", (tmp_path,))
    monkeypatch.setattr(pillow_image, "LARGE_PIXELS", 1000)
    assert stored(encode(1), max_side=30).width == 30


UNREADABLE: dict[str, Callable[[Encode], bytes]] = {
    "nothing": lambda _: b"",
    "text": lambda _: b"<html>404 not found</html>",
    "the start of a JPEG": lambda encode: encode(1)[:300],
    "the start of a PNG": lambda encode: encode(1, "PNG")[:300],
    "a JPEG without its scan": lambda encode: encode(1)[: encode(1).index(b"\xff\xda")],
    "16 bits a channel": lambda _: png_of_16_bits(),
}


def png_of_16_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("write_mode", ["auto", "raw"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_anything_but_an_image_is_refused(encode: Encode, name: str, write_mode: WriteMode) -> None:
    with pytest.raises(UnreadableImageError):
        stored(UNREADABLE[name](encode), write_mode)
