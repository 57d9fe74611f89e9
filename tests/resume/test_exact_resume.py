"""A run that was killed anywhere ends with the same weights, metrics and samples as one that was not.

Here half of the combinations run on one worker and the other half on two; ``python -m tests.resume.campaign``
runs all of them on either.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.resume import campaign

SEED = 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_every_combination_goes_on_to_the_same_bits(tiny_digits: Path, workers: int) -> None:
    half = workers - 1
    process = subprocess.run(
        [sys.executable, "-m", "tests.resume.campaign", str(tiny_digits), str(workers), str(SEED), str(half)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stderr
    results: list[dict[str, Any]] = [json.loads(line) for line in process.stdout.splitlines()]
    assert sorted(tuple(result["combination"]) for result in results) == sorted(campaign.combinations(half))
    assert [result for result in results if result["differs"]] == []
    # Most were killed within an epoch, and went on from there and not from the epoch's beginning or the run's.
    within = [result for result in results if result["goes_on_from"] % campaign.STEPS]
    assert len(within) > len(results) / 2
