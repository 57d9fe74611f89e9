"""The luck of the best of those that rungs let through, in studies that are drawn, against what it truly is."""

from __future__ import annotations

import numpy as np
import pytest

from nfnet_ray.analysis.inference.kept_luck import luck_kept
from nfnet_ray.analysis.inference.selection import Noise, Rung, optimism
from nfnet_ray.analysis.inference.simulation import shared_variance, simulated_rung

SETTINGS, PASSED = 12, 4


@pytest.mark.parametrize("rungs", [1, 2])
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_the_best_of_equal_settings_is_as_lucky_as_its_rungs_made_it(kept: float, rungs: int) -> None:
    """Each of two rungs lets a half or a third through and keeps the root of what both keep."""
    ladder = [Rung(PASSED, kept)] if rungs == 1 else [Rung(6, kept), Rung(PASSED, kept**0.5)]
    draw = np.random.default_rng(0)
    end = draw.standard_normal((40_000, SETTINGS))
    lost = np.zeros(end.shape, bool)
    root = ladder[-1].kept
    last = root * end + (1 - root**2) ** 0.5 * draw.standard_normal(end.shape)
    first = root * last + (1 - root**2) ** 0.5 * draw.standard_normal(end.shape)
    for rung, luck in zip(ladder, [first, last][-rungs:], strict=True):
        seen = np.where(lost, -np.inf, luck)
        lost |= seen.argsort(axis=1).argsort(axis=1) < SETTINGS - rung.passed
    true = np.where(lost, -np.inf, end).max(axis=1).mean()

    error = 0.01
    noise = Noise(np.eye(SETTINGS) * error**2, np.zeros(SETTINGS), 1)
    found = optimism(np.full(SETTINGS, 0.8), noise, 0.78, seeds=1, rungs=ladder)
    assert found.mean / error == pytest.approx(true, abs=0.04)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("lasts", [0.0, 0.5, 0.9])
def test_how_much_luck_is_kept_is_seen_in_the_bits(lasts: float, seeds: int) -> None:
    """It is the correlation over studies of what the accuracies have to themselves.

    Of several seeds it is up to 0.1 too large: a variance between seeds of 0 is not estimated as less than that.
    """
    images, shared, accuracy = 500, shared_variance(0.8, 0.8), np.full(6 * seeds, 0.8)
    draw = np.random.default_rng(1)
    own, found = [], []
    for _ in range(150):
        both = simulated_rung(draw, accuracy - 0.05, accuracy, images, shared, lasts)
        rung, end = (bits.reshape(6, seeds, images) for bits in both)
        own.append([bits.mean(axis=(1, 2)) - bits.mean() for bits in (rung, end)])
        found.append(luck_kept(list(rung), list(end[:2]), [0, 1]))
    at_rung, at_end = np.array(own).transpose(1, 0, 2).reshape(2, -1)
    assert np.mean(found) == pytest.approx(np.corrcoef(at_rung, at_end)[0, 1], abs=0.15)


def test_what_a_seed_adds_on_all_images_is_kept() -> None:
    draw = np.random.default_rng(2)
    shared = shared_variance(0.8, 0.8)
    accuracy = np.repeat(0.8, 12) + np.tile([0.08, 0.0, -0.08], 4)
    rung, end = (
        list(bits.reshape(4, 3, 2000)) for bits in simulated_rung(draw, accuracy, accuracy, 2000, shared, 0.0)
    )
    assert luck_kept(rung, end[:2], [0, 1]) > 0.9


def test_one_setting_that_was_let_through_by_itself_has_some_luck_all_the_same() -> None:
    draw = np.random.default_rng(3)
    rung, end = (list(bits[:, None]) for bits in simulated_rung(draw, *np.full((2, 3), 0.8), 2000, 0.5, 1.0))
    assert luck_kept(rung, end[:1], [0]) == pytest.approx(1, abs=1e-4)
    assert luck_kept(rung[:1], end[:1], [0]) == pytest.approx(1, abs=1e-4)
