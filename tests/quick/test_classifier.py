"""The classifier that MLflow serves, with a network that knows nothing."""

from __future__ import annotations

import io
import re
import struct
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from data_prep.conversion.encode import EncodeSettings, prepare_image
from nfnet_ray.data.decoding.pillow_image import UnreadableImageError
from nfnet_ray.data.normalise import normalise
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import DataRecipe
from nfnet_ray.serving import classifier
from nfnet_ray.serving.classifier import Classifier, Description


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_no_more_images_are_decoded_than_the_network_sees_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = seen = waiting_at_most = 0
    decode = classifier._decoded

    def counted(content: bytes, description: Description) -> np.ndarray:
        nonlocal decoded, waiting_at_most
        decoded += 1
        waiting_at_most = max(waiting_at_most, decoded - seen)
        return decode(content, description)

    class Brightness(nn.Module):
        """Bright images are of the second class."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += len(images)
            mean = images.mean(dim=(1, 2, 3))
            return torch.stack([-mean, mean], dim=1)

    monkeypatch.setattr(classifier, "_decoded", counted)
    files = [png(250 if number % 3 else 5) for number in range(3 * classifier._IMAGES_AT_ONCE + 5)]
    table = pd.DataFrame({"image": files}, index=range(1000, 1000 + len(files)))
    predicted = Classifier(Brightness(), Description(["dark", "bright"], 8, "squash")).predict(table)
    assert predicted["class"].tolist() == ["bright" if number % 3 else "dark" for number in range(len(files))]
    assert waiting_at_most == classifier._IMAGES_AT_ONCE


@pytest.mark.parametrize(("crop", "edges"), [("whole", True), ("central", False), ("squash", False)])
def test_only_a_whole_image_has_its_edges(crop: str, edges: bool) -> None:
    """A dark image of 24 pixels with a white frame, seen at 8; the others see its central 5 pixels."""
    framed = Image.new("RGB", (24, 24), "white")
    framed.paste("black", (3, 3, 21, 21))
    network = FirstPixel()
    Classifier(network, Description(["a"], 8, crop)).predict(pd.DataFrame({"image": [encoded(framed)]}))
    assert bool(network.images.amax() > network.images.amin() + 1) == edges


def test_no_images_have_no_classes() -> None:
    predicted = Classifier(nn.Identity(), Description(["a"], 8, "squash")).predict(
        pd.DataFrame({"image": []})
    )
    assert predicted.columns.tolist() == ["class", "index", "probability"]
    assert predicted.empty


class FirstPixel(nn.Module):
    """Remembers what it is given."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return torch.zeros(len(images), 1)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(channels: int, color_type: int) -> bytes:
    """Pillow writes no PNG of 16 bits but grey ones (PNG, 5.2, 11.2.2)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + NOISE.integers(0, 256, 16 * channels, np.uint8).tobytes() for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, color_type, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


ORIENTATION = 0x0112  # Exif 2.32, 4.6.4
NOISE = np.random.default_rng(0)
COLOURED = Image.fromarray(NOISE.integers(0, 256, (8, 8, 3), np.uint8))
CLEAR = COLOURED.copy()
CLEAR.putalpha(Image.fromarray(NOISE.integers(0, 256, (8, 8), np.uint8)))
TEXTS = PngInfo()
TEXTS.add_text("a", "x" * 3_000_000, zip=True)
FILES = {
    **{mode: encoded(COLOURED.convert(mode)) for mode in ("RGB", "L", "1", "P")},
    **{f"{mode} of TIFF": encoded(COLOURED.convert(mode), "TIFF") for mode in ("CMYK", "YCbCr", "LAB")},
    **{f"{mode} of JPEG": encoded(COLOURED.convert(mode), "JPEG") for mode in ("CMYK", "L", "RGB")},
    "RGBA": encoded(CLEAR),
    "LA": encoded(CLEAR.convert("LA")),
    "P with a transparent colour": encoded(COLOURED.convert("P"), transparency=3),
    "P with transparency": encoded(COLOURED.convert("P"), transparency=bytes(range(256))),
    "16 bits, grey": encoded(Image.fromarray(NOISE.integers(0, 65_536, (8, 8), np.uint16))),
    "16 bits, RGB": png_of_16_bits(3, 2),
    "16 bits, RGBA": png_of_16_bits(4, 6),
    "16 bits, LA": png_of_16_bits(2, 4),
    "32 bits": encoded(Image.fromarray(NOISE.integers(0, 65_536, (8, 8), np.int32)), "TIFF"),
    "float": encoded(Image.fromarray(NOISE.random((8, 8), np.float32)), "TIFF"),
    "long texts": encoded(COLOURED, pnginfo=TEXTS),
    "cut off": encoded(COLOURED)[:-80],
    "a JPEG, cut off": encoded(COLOURED, "JPEG")[:-80],
    "no image": b"no image",
    "empty": b"",
}


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_read_or_refused_as_for_a_data_set(name: str) -> None:
    network, model_input = FirstPixel(), pd.DataFrame({"image": [png(0), FILES[name]]})
    serving = Classifier(network, Description(["a"], 8, "squash"))
    refusal = ""
    try:
        stored = prepare_image(FILES[name], EncodeSettings(write_mode="raw"))
    except UnreadableImageError as error:
        refusal = f"image 2: {error}"
    if refusal:
        with pytest.raises(UserError, match=f"^{re.escape(refusal)}$"):
            serving.predict(model_input)
        return
    pixels = np.frombuffer(stored.data, np.uint8).reshape(1, 8, 8, 3)
    serving.predict(model_input)
    assert torch.equal(network.images[1:], normalise(torch.from_numpy(pixels.copy())))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("settings", "orientation", "shape"),
    [
        ({}, 6, (6, 8, 3)),
        ({"max_side": 4}, 6, (3, 4, 3)),
        ({"apply_orientation": True}, 1, (6, 8, 3)),
        ({"apply_orientation": True}, 3, (6, 8, 3)),
        ({"apply_orientation": True}, 6, (8, 6, 3)),
        ({"apply_orientation": True, "max_side": 4}, 6, (4, 3, 3)),
    ],
)
def test_an_image_is_shrunk_and_turned_as_those_of_the_data_set_were(
    kind: str, settings: dict[str, Any], orientation: int, shape: tuple[int, ...]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(NOISE.integers(0, 256, (6, 8, 3), np.uint8))
    content = encoded(image, kind, exif=exif)
    stored = prepare_image(content, EncodeSettings(write_mode="raw", **settings))
    expected = np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
    written = {"jpeg_quality": 90, **settings}
    dataset: Any = SimpleNamespace(
        class_names=("a",), validation=SimpleNamespace(manifest=SimpleNamespace(settings=written))
    )
    data: Any = DataRecipe(eval_size=8)
    description = Description.of(dataset, data)
    assert expected.shape == shape
    assert np.array_equal(classifier._decoded(content, description), expected)


def test_what_is_no_base64_is_refused() -> None:
    with pytest.raises(UserError, match="image 1: "):
        Classifier(nn.Identity(), Description(["a"], 8, "squash")).predict(pd.DataFrame({"image": ["a"]}))
