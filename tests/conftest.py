"""Data that several promises are tested with."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.digits import write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits as a data set: 1,437 training and 360 validation images of 32 px."""
    return write_digits(tmp_path_factory.mktemp("data") / "digits")
