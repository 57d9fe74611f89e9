"""RandAugment's operations give the bytes of the official TensorFlow code (tests/fixtures/README.md)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nfnet_ray.data.augmentation import randaugment
from nfnet_ray.data.augmentation.image_operations import OPERATIONS

NUMBERS = np.load(Path(__file__).parents[1] / "fixtures" / "randaugment.npz")
META = json.loads(str(NUMBERS["meta"]))
Case = dict[str, Any]


def distorted(cases: list[Case], image: np.ndarray) -> list[np.ndarray]:
    """The image after the operation of each case, in one batch of all cases in a mixed order."""
    distortions = [
        randaugment.distortion(
            case["operation"], case["magnitude"], case["sign"], translate_pixels=case["translate_const"]
        )
        for case in cases
    ]
    centres = np.array([case["centre"] or (0, 0) for case in cases])
    order = np.random.default_rng(0).permutation(len(cases))
    batch = torch.from_numpy(image).repeat(len(cases), 1, 1, 1)
    results = randaugment.apply(batch, order[:, None], distortions, centres[order][:, None])
    return [results[row].numpy() for row in np.argsort(order)]


@pytest.mark.parametrize("name", ["photo", "flat"])
def test_every_operation_equals_the_official_one(name: str) -> None:
    image, cases = NUMBERS[f"image/{name}"], META["cases"][name]
    assert {case["operation"] for case in cases} == set(OPERATIONS)
    for case, got, expected in zip(cases, distorted(cases, image), NUMBERS[f"out/{name}"], strict=True):
        assert np.array_equal(got, expected), f"{case}: {(got != expected).sum()} of {got.size} bytes differ"


def test_a_picture_larger_than_256_pixels_too() -> None:
    """Contrast's grey level, cut at 255, depends on the number of pixels; so do the edges of a wide rotation."""
    row, column, channel = np.indices((301, 270, 3))
    picture = (column * column * 3 + row * row * 5 + column * row * (channel + 1) + channel * 71) // 97 % 256
    cases = META["large_sha256"]
    for case, got in zip(cases, distorted(cases, picture.astype(np.uint8)), strict=True):
        assert hashlib.sha256(got.tobytes()).hexdigest() == case["sha256"], case


def test_magnitudes_stand_for_the_official_arguments() -> None:
    """Facts, section 4.1, at a magnitude of 15."""
    arguments = {name: randaugment.distortion(name, 15.0).argument for name in OPERATIONS}
    assert arguments == {
        "AutoContrast": None,
        "Equalize": None,
        "Invert": None,
        "Rotate": 45.0,
        "Posterize": 6,
        "Solarize": 384,
        "Color": 1.8 * 1.5 + 0.1,
        "Contrast": 1.8 * 1.5 + 0.1,
        "Brightness": 1.8 * 1.5 + 0.1,
        "Sharpness": 1.8 * 1.5 + 0.1,
        "ShearX": pytest.approx(0.45),
        "ShearY": pytest.approx(0.45),
        "TranslateX": 150.0,
        "TranslateY": 150.0,
        "Cutout": 60,
        "SolarizeAdd": 165,
    }
    assert randaugment.distortion("ShearX", 15.0, sign=-1).argument == pytest.approx(-0.45)
