"""The training that the disturbed ones are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.training import Undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), few_digits)
