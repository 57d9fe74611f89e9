"""A data set so small that an epoch is five steps of 24 images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from data_prep.__main__ import main as data_prep


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 handwritten digits of 20 px: 120 to train with, 30 to validate."""
    folder = tmp_path_factory.mktemp("tiny_digits")
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:150], digits.target, strict=False)):
        (folder / "source" / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        image.resize((20, 20)).save(folder / "source" / str(label) / f"{number}.png")
    assert data_prep(["convert", str(folder / "source"), str(folder / "out")]) == 0
    return folder / "out"
