"""A run that was killed anywhere ends with the same weights, metrics and samples as one that was not.

Here a quarter of the combinations runs on one worker and another quarter on two; ``python -m tests.resume.campaign``
runs all of them on either.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from tests.resume import campaign

SEED = 0


def test_a_quarter_has_each_pair_of_switches_with_each_method() -> None:
    names = list(campaign.SWITCHES)
    for quarter in range(4):
        chosen = campaign.combinations(quarter)
        assert len(chosen) == len(campaign.combinations()) / 4
        for method, (first, second) in product(campaign.METHODS, combinations(names, 2)):
            settings = {(first in on, second in on) for of, *on in chosen if of == method}
            assert len(settings) == 4, (method, first, second)
        assert len({frozenset(on) for _, *on in chosen}) == 2 ** len(names)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_every_combination_resumes_to_the_same_bits(tiny_digits: Path, workers: int) -> None:
    quarter = workers - 1
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.resume.campaign",
            str(tiny_digits),
            str(workers),
            str(SEED),
            str(quarter),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stderr
    results: list[dict[str, Any]] = [json.loads(line) for line in process.stdout.splitlines()]
    assert sorted(tuple(result["combination"]) for result in results) == sorted(
        campaign.combinations(quarter)
    )
    assert [result for result in results if result["differs"]] == []
    # Most were killed within an epoch, and went on from there and not from the epoch's beginning or the run's.
    within = [result for result in results if result["goes_on_from"] % campaign.STEPS]
    assert len(within) > len(results) / 2
