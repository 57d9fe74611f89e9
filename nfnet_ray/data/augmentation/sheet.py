"""A contact sheet: the effect of each RandAugment operation, MixUp and CutMix on a photograph."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nfnet_ray.data.augmentation.image_operations import OPERATIONS
from nfnet_ray.data.augmentation.mixing import mix
from nfnet_ray.data.augmentation.randaugment import distortion
from nfnet_ray.data.files.regular_file import read_regular_file
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import MixingRecipe

MAGNITUDES = (5.0, 10.0, 15.0)  # of F0, of F1 and F2, of F3 to F7
PIXELS = 224  # the operations see this size, F1's; translations and Cutout count pixels
THUMBNAIL, GAP, LABEL, TITLE = 88, 6, 100, 24
CANDIDATES = 256  # samples among whose draws those are picked that show MixUp and CutMix best
INK, PAPER = (40, 40, 40), (255, 255, 255)


def write_sheet(path: Path, image_path: Path | None) -> None:
    """Draws the sheet; the suffix of ``path`` says whether as JPEG or PNG.

    Raises UserError for an image that cannot be read, or a suffix that means no kind of picture.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise UserError(f"{path}: give a name that ends in .jpg or .png")
    image = _opened(image_path if image_path is not None else _photograph("flower.jpg"))
    partner = _opened(_photograph("china.jpg"))
    names = list(OPERATIONS)
    rows = 1 + len(names) // 2 + 1
    block = LABEL + len(MAGNITUDES) * (THUMBNAIL + GAP) + GAP
    sheet = Image.new("RGB", (2 * block, TITLE + rows * (THUMBNAIL + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)

    def put(row: int, side: int, label: str, pictures: list[Tensor], captions: list[str]) -> None:
        top = TITLE + row * (THUMBNAIL + GAP)
        draw.text((side * block + GAP, top + THUMBNAIL // 2 - 8), label, INK, font)
        for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            left = side * block + LABEL + column * (THUMBNAIL + GAP)
            thumbnail = Image.fromarray(picture[0].numpy()).resize(2 * (THUMBNAIL,), Image.Resampling.BOX)
            sheet.paste(thumbnail, (left, top))
            if caption:
                draw.rectangle((left, top + THUMBNAIL - 15, left + 32, top + THUMBNAIL - 1), PAPER)
                draw.text((left + 3, top + THUMBNAIL - 15), caption, INK, ImageFont.load_default(size=11))

    title = f"{PIXELS} px; columns: magnitude " + ", ".join(f"{magnitude:g}" for magnitude in MAGNITUDES)
    draw.text((GAP, 4), title, INK, font)
    draw.text((block + GAP, 4), "MixUp and CutMix: the image's label share", INK, font)
    put(0, 0, "the image", [image], [""])
    put(0, 1, "its partner", [partner], [""])
    centre = torch.tensor([[PIXELS // 3, PIXELS // 2]])
    for number, name in enumerate(names):
        pictures = [distortion(name, magnitude)(image, centre) for magnitude in MAGNITUDES]
        side, row = divmod(number, len(names) // 2)
        put(1 + row, side, name, pictures, len(pictures) * [""])
    for side, (label, recipe) in enumerate(
        {"MixUp": MixingRecipe(0.2, None), "CutMix": MixingRecipe(None, 1.0)}.items()
    ):
        put(rows - 1, side, label, *_mixed(image, partner, recipe))
    options: dict[str, Any] = {"quality": 82} if path.suffix.lower() != ".png" else {"optimize": True}
    sheet.save(path, **options)


def _mixed(image: Tensor, partner: Tensor, recipe: MixingRecipe) -> tuple[list[Tensor], list[str]]:
    """The image mixed with its partner at label shares near 1/4, 1/2 and 3/4, and those shares in words."""
    indices = np.arange(CANDIDATES)
    tiny = torch.zeros(CANDIDATES, PIXELS, PIXELS, 1, dtype=torch.uint8)
    _, shares = mix(tiny, tiny, indices, indices, recipe, seed=0, epoch=0)
    chosen = [int((shares - target).abs().argmin()) for target in (0.25, 0.5, 0.75)]
    pictures = []
    for index in chosen:
        picture, _ = mix(image, partner, np.array([index]), np.array([0]), recipe, seed=0, epoch=0)
        pictures.append(picture.to(torch.uint8))
    return pictures, [f"{float(shares[index]):.2f}" for index in chosen]


def _opened(path: Path) -> Tensor:
    """The central square of a picture at PIXELS per side, uint8 (1, H, W, 3)."""
    try:
        with Image.open(io.BytesIO(read_regular_file(path))) as file:
            picture = file.convert("RGB")
    except OSError as error:
        reason = "not a picture of a known format" if error.errno is None else error.strerror
        raise UserError(f"{path}: cannot be read as a picture ({reason}); give another") from error
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them into
        raise UserError(f"{path}: cannot be read as a picture ({error}); give another") from error
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    resized = square.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))[None]


def _photograph(name: str) -> Path:
    """One of the photographs that come with scikit-learn, which is not imported: that takes seconds."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("scikit-learn's photographs are not installed: pip install scikit-learn")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "images" / name
