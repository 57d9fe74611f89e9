"""Training crops follow the law of the op that the official code calls (tests/fixtures/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nfnet_ray.data.augmentation.crop import central_square_boxes, random_resized_boxes

OFFICIAL = json.loads((Path(__file__).parents[1] / "fixtures" / "random_resized_crop.json").read_text())
COUNT = OFFICIAL["draws"]
# Both sides are samples of 20,000: a quantile's standard error is 0.003 of the range where values are spread out.
TOLERANCE = 0.02


def boxes(height: int, width: int) -> np.ndarray:
    indices = np.arange(COUNT)
    return random_resized_boxes(7, 3, indices, np.full(COUNT, height), np.full(COUNT, width), size=224)


@pytest.mark.parametrize("case", OFFICIAL["cases"], ids=lambda case: f"{case['width']}x{case['height']}")
def test_boxes_are_distributed_as_the_official_ones(case: dict[str, Any]) -> None:
    height, width = case["height"], case["width"]
    top, left, box_height, box_width = boxes(height, width).astype(float).T
    ours = {
        "area": box_height * box_width / (height * width),
        "aspect": box_width / box_height,
        "box_height": box_height / height,
        "top": (top / np.maximum(height - box_height, 1))[box_height < height],
        "left": (left / np.maximum(width - box_width, 1))[box_width < width],
    }
    assert case["failed"] < 0.001
    for name, values in ours.items():
        official = np.array(case[name])
        quantiles = np.quantile(values, np.linspace(0, 1, len(official)))
        # The ends are single draws of a thin tail.
        np.testing.assert_allclose(quantiles[1:-1], official[1:-1], atol=TOLERANCE, err_msg=name)


def test_an_image_that_no_box_fits_is_cut_as_in_evaluation() -> None:
    height, width = np.array([10] * 50), np.array([1000] * 50)
    centre = central_square_boxes(height, width, 224)
    assert (random_resized_boxes(0, 0, np.arange(50), height, width, size=224) == centre).all()
