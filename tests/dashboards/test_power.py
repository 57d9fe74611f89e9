"""What a design is said to tell, it tells in simulated studies; a plan says it by earlier studies, or by assumptions.

Takes about three seconds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nfnet_ray.analysis.earlier_noise import earlier_noise
from nfnet_ray.analysis.inference.paired import difference_parts
from nfnet_ray.analysis.inference.power import (
    Design,
    PairNoise,
    images_to_tell,
    power,
    seeds_to_tell,
    smallest_difference,
)
from nfnet_ray.analysis.inference.simulation import simulated_moments, trial_accuracies
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study
from studies.running.planning.power_text import power_sentences
from tests.dashboards.test_answer import study_with_bits
from tests.tracking.example_study import CLIP_FACTOR

NOISE = PairNoise.assumed(disagreement=0.1, seed_spread=0.003)


@pytest.mark.parametrize(("seeds", "images"), [(1, 10_000), (2, 10_000), (3, 2000), (3, 50_000), (5, 10_000)])
def test_the_smallest_difference_is_told_in_80_percent_of_studies(seeds: int, images: int) -> None:
    difference = smallest_difference(NOISE, Design(seeds, images))
    draw = np.random.default_rng([seeds, images])
    truth = np.array([0.8 + difference / 2, 0.8 - difference / 2])
    spread = 0.003 if seeds > 1 else 0.0
    moments = simulated_moments(draw, trial_accuracies(draw, 2000, truth, seeds, spread), images, 0.9)
    parts = difference_parts(moments, seeds)
    assert float((parts.value > parts.half_width()).mean()) == pytest.approx(0.8, abs=0.035)


def test_the_power_of_two_seeds_is_that_of_the_noncentral_t_distribution() -> None:
    """Without a difference between images; with two seeds each the spreads are always pooled."""
    for difference in (1.0, 3.0, 5.0, 8.0):  # in points of which the spread between seeds is one
        found = power(PairNoise(0.0, 0.0, 1.0), Design(2, 1000), difference)
        assert found == pytest.approx(stats.nct.sf(stats.t.ppf(0.975, 2), 2, difference), abs=0.005)


def test_more_seeds_and_more_images_tell_smaller_differences() -> None:
    assert images_to_tell(PairNoise.assumed(0.1, 0.0), 0.005, 1) == 32_000  # 0.1 (1.96 + 0.84)^2 / 0.005^2
    seeds = seeds_to_tell(NOISE, 0.005, 10_000)
    assert seeds is not None
    assert (
        smallest_difference(NOISE, Design(seeds, 10_000))
        <= 0.005
        < smallest_difference(NOISE, Design(seeds - 1, 10_000))
    )
    assert seeds_to_tell(NOISE, 0.0001, 360) is None
    assert images_to_tell(NOISE, 0.0001, 2) is None


def study(seeds: int) -> tuple[Study, DatasetSummary]:
    data = DatasetSummary(
        path=Path("data/imagenet_samples.beton"),
        fingerprint="9f86d081884c",
        class_names=tuple("abcdefghij"),
        train_images=1440,
        validation_images=360,
        uniform_size=(32, 32),
    )
    return Study("s", "?", Recipe(), {CLIP_FACTOR: (0.01, 0.02)}, seeds=tuple(range(seeds))), data


def test_a_plan_says_what_it_assumes(tmp_path: Path) -> None:
    first, second = power_sentences(*study(3), tmp_path, 0.5, "worker")
    assert first.startswith("Power: with 3 seeds and 360 validation images it can tell two settings apart")
    assert "assumed: two trials judge 10% of the images differently and seeds spread by 0.3 points" in first
    assert second.startswith("To tell 0.5 points it would take")
    assert "worker-hours" in second
    [first, _] = power_sentences(*study(1), tmp_path, None, "worker")
    assert "but not whether other seeds would turn their order" in first


def test_with_a_holdout_the_power_is_that_of_the_images_that_are_held_out(tmp_path: Path) -> None:
    asked, data = study(9)
    data = replace(data, validation_images=10_000)
    whole, _ = power_sentences(asked, replace(data, validation_images=4_884), tmp_path, None, "worker")
    half, price = power_sentences(replace(asked, holdout=0.5), data, tmp_path, None, "worker")
    assert "and 4,884 held-out validation images it can tell" in half
    assert half.split("differ by")[1] == whole.split("differ by")[1]
    [of_half, of_all] = (
        int(said.split("9 seeds with ")[1].split()[0].replace(",", ""))
        for said in (power_sentences(asked, data, tmp_path, None, "worker")[1], price)
    )
    assert of_all == 2 * of_half


def test_a_plan_goes_by_earlier_studies_of_the_network_on_these_images(tmp_path: Path) -> None:
    study_with_bits(tmp_path / "before", [[0.8, 0.82], [0.81, 0.79]], 2000, agreement=0.8)
    found = earlier_noise(tmp_path, "9f86d081884c", Recipe().model.name)
    assert found.studies == 1
    assert found.disagreement == pytest.approx(0.2, abs=0.03)
    assert found.seed_spread == pytest.approx(0.014, abs=0.01)
    [first, _] = power_sentences(*study(2), tmp_path, None, "worker")
    assert "by 1 earlier study, two trials judge" in first
    assert "assumed" not in first
    assert earlier_noise(tmp_path, "another", Recipe().model.name).studies == 0
