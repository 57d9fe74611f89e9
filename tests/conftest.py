"""Data that several promises are tested with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from data_prep.__main__ import main as data_prep


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 handwritten digits of 32 px as a data set: 240 to train with, 60 to validate."""
    folder = tmp_path_factory.mktemp("few_digits")
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:300], digits.target, strict=False)):
        (folder / "source" / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        image.resize((32, 32), Image.Resampling.BICUBIC).save(
            folder / "source" / str(label) / f"{number}.png"
        )
    assert data_prep(["convert", str(folder / "source"), str(folder / "out")]) == 0
    return folder / "out"
