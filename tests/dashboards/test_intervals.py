"""Intervals are the published ones, and equal settings are seldom told apart.

Takes about five seconds.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nfnet_ray.analysis import accuracy_interval, difference_interval, wilson_interval
from nfnet_ray.analysis.inference.intervals import setting_half_width

STUDIES = 1000
# Equal settings are told apart in 3.5% of studies or less. Of 1,000 studies 5% would be exceeded by chance once in 200.
LARGEST_SHARE = 0.05


def test_the_images_part_is_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-890: 81 of 263, method 3; and 873-890, table II, method 10.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(1.0, 360)[1] == pytest.approx(1.0)
    assert wilson_interval(0.0, 360)[0] == pytest.approx(0.0)
    assert difference_interval([9 / 10], [3 / 10], 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference_interval([10 / 10], [0 / 10], 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_the_seeds_part_is_students_and_welchs_where_there_are_images_without_end() -> None:
    a, b, images = [0.71, 0.74, 0.72], [0.60, 0.66, 0.61, 0.65], 10**12
    student = stats.t.interval(0.95, 2, np.mean(a), stats.sem(a))
    assert accuracy_interval(a, images) == pytest.approx(student, abs=1e-5)
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert difference_interval(a, b, images) == pytest.approx(tuple(welch), abs=1e-5)


def test_a_single_seed_may_be_taken_to_spread_as_the_seeds_of_the_other() -> None:
    """That is Student's t test with one spread, which takes all of it from the setting with several."""
    a, b, images = [0.71, 0.74, 0.72], [0.60], 10**12
    pooled = stats.ttest_ind(a, b, equal_var=True).confidence_interval(0.95)
    assert difference_interval(a, b, images, one_spread=True) == pytest.approx(tuple(pooled), abs=1e-5)
    low, high = difference_interval(b, a, images, one_spread=True)
    assert (-high, -low) == pytest.approx(tuple(pooled), abs=1e-5)


@pytest.mark.parametrize(
    ("freedom", "low", "high"), [(1, 0.935, 0.969), (2, 0.9495, 0.962), (4, 0.9495, 0.96)]
)
def test_of_a_setting_it_covers_whatever_the_ratio_of_seeds_to_images(
    freedom: int, low: float, high: float
) -> None:
    """Added up over the chi-squared distribution of the squared error that is seen of the seeds."""
    ratio = np.concatenate([[0.0], np.logspace(-3, 4, 57)])[
        :, None
    ]  # of the true squared errors, seeds to images
    quantiles = (np.arange(2000) + 0.5) / 2000
    seen = ratio * stats.chi2.ppf(quantiles, freedom) / freedom
    half = setting_half_width(np.ones_like(seen), seen, freedom)
    covered = (2 * stats.norm.cdf(half / np.sqrt(1 + ratio)) - 1).mean(axis=1)
    assert low <= covered.min() <= covered.max() <= high


def test_seeds_that_agree_and_a_single_seed_leave_the_images_part() -> None:
    assert accuracy_interval([0.9], 360) == wilson_interval(0.9, 360)
    assert accuracy_interval([0.9, 0.9, 0.9], 360) == pytest.approx(wilson_interval(0.9, 360))
    assert difference_interval([0.9], [0.8, 0.82], 360) == pytest.approx(
        difference_interval([0.9], [0.81], 360)
    )


def test_an_interval_stays_within_what_an_accuracy_can_be() -> None:
    assert accuracy_interval([0.2, 0.9], 360) == (0.0, 1.0)


@pytest.mark.parametrize("images", [360, 10_000, 50_000])
@pytest.mark.parametrize("spread", [0.002, 0.01])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("settings", [2, 6])
def test_the_best_of_equal_settings_is_seldom_ahead(
    settings: int, seeds: int, spread: float, images: int
) -> None:
    """Every setting has the mean 80%; seeds vary by ``spread``; each network errs on images of its own."""
    draw = np.random.default_rng([settings, seeds, round(1000 * spread), images])
    ahead = 0
    for _ in range(STUDIES):
        expected = np.clip(0.8 + spread * draw.standard_normal((settings, seeds)), 0, 1)
        top1 = draw.binomial(images, expected) / images
        second, best = top1[np.argsort(top1.mean(axis=1))[-2:]].tolist()
        ahead += difference_interval(best, second, images)[0] > 0
    assert ahead / STUDIES <= LARGEST_SHARE


def test_what_differs_is_told_apart() -> None:
    """Or the promise above would be kept by never saying anything."""
    low, high = difference_interval([0.801, 0.803, 0.799], [0.781, 0.779, 0.783], 50_000)
    assert 0 < low < 0.02 < high
    assert math.isclose(low + high, 0.04, abs_tol=1e-3)
