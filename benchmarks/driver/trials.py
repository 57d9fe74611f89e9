"""Building the trials of a study, with and without compiled annotations kept: ``python -m benchmarks.driver.trials``.

A section of a Recipe checks its fields whenever it is built, against annotations that are text until they are compiled.
``nfnet_ray.settings`` compiles them once for each class; here that is compared, in one run, with compiling them at
every check. Both build the same Recipes. Appends a row for each number of trials to ``results/trials.csv``.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from unittest import mock

from benchmarks.driver.by_number_of_trials import CPU, main
from benchmarks.record import Row, seconds
from nfnet_ray import settings
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study, Trial

RESULTS = Path(__file__).parents[1] / "results" / "trials.csv"
REPEATS = 5
CLIP_FACTORS = (None, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
BATCH_SIZES = (1024, 2048)


def built(study: Study) -> list[Trial]:
    """The trials of a new study of the same settings: a study keeps those that it has built."""
    return replace(study).trials()


def measure(trials: int) -> Row:
    """Medians in milliseconds of building the trials of one study, and their ratio."""
    settings_each = len(CLIP_FACTORS) * len(BATCH_SIZES)
    if trials % settings_each:
        raise SystemExit(f"{trials} trials: take a multiple of {settings_each}")
    study = Study(
        name="benchmark",
        question="how long does it take to build these trials?",
        recipe=Recipe(),
        space={"optimizer.agc.clip_factor": CLIP_FACTORS, "batch_size": BATCH_SIZES},
        seeds=tuple(range(trials // settings_each)),
    )
    compiling = mock.patch.object(settings, "_fields", settings._read_fields)
    with compiling:
        expected = built(study)
    assert built(study) == expected
    kept, compiled = [], []
    for _ in range(REPEATS):
        kept.append(seconds(lambda: built(study), CPU))
        with compiling:
            compiled.append(seconds(lambda: built(study), CPU))
    medians = {"kept": 1e3 * statistics.median(kept), "compiled": 1e3 * statistics.median(compiled)}
    return {
        "trials": trials,
        "kept_ms": round(medians["kept"], 1),
        "compiled_each_time_ms": round(medians["compiled"], 1),
        "speed_up": round(medians["compiled"] / medians["kept"], 1),
        "n": REPEATS,
    }


if __name__ == "__main__":
    main(__doc__, measure, RESULTS)
