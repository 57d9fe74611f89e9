"""Returns the settings at a stage, and the noise that their accuracies would have if the study were repeated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from nfnet_ray.analysis.effects.stages import Stage
from nfnet_ray.analysis.inference.paired import Moments
from nfnet_ray.analysis.inference.selection import Noise, moderated_variances, noise_of
from nfnet_ray.analysis.setting import SettingImages, SettingResult, setting_result, trials_by_setting
from nfnet_ray.analysis.tables import StudyTables

MOST_BITS = 400_000_000
"""The most bits of all trials from which covariances are computed, which takes some seconds and 1.6 GB in float32."""


def results_at(tables: StudyTables, stage: Stage) -> list[SettingResult]:
    """Returns the settings whose trials were all measured at a stage, in the order of the study's space.

    Further seeds of contenders pass no rungs: they are used where measured, but not required.
    """
    images = tables.study["data"]["validation_images"]
    found = []
    for point, rows in trials_by_setting(tables):
        every = [str(row["trial"]) for row in rows]
        trials = [trial for trial in every if trial in stage.epoch]
        if not trials or not all(trial in stage.epoch or trial in tables.further for trial in every):
            continue
        known = SettingImages.of([tables.correct(trial, stage.epoch[trial]) for trial in trials])
        found.append(setting_result(point, [stage.top1[trial] for trial in trials], images, known))
    return found


class NoiseWithin:
    """Computes the noise of any subset of settings. Their bits are compared only once, and not for each subset."""

    def __init__(self, results: Sequence[SettingResult]) -> None:
        firsts = accumulate((len(result.seed_top1) for result in results), initial=0)
        self._first_trial = {id(result): first for result, first in zip(results, firsts, strict=False)}
        self._results = results  # keeping the results keeps their ids unique
        self._moments = _moments_on_the_same_images(results)

    def of(self, chosen: Sequence[SettingResult]) -> Noise:
        """Returns the noise of some of the results."""
        if self._moments is None:
            return noise_of_results(chosen)
        seeds = [len(result.seed_top1) for result in chosen]
        firsts = [self._first_trial[id(result)] for result in chosen]
        trials = [first + seed for first, own in zip(firsts, seeds, strict=True) for seed in range(own)]
        return noise_of(self._moments.only(trials), seeds)


def _moments_on_the_same_images(results: Sequence[SettingResult]) -> Moments | None:
    """Returns the moments of all trials if the bits of all are known for the same images; else None."""
    images = [result.images for result in results if result.images is not None]
    if not images or len(images) < len(results):
        return None
    measured = images[0].measured
    is_same = all(np.array_equal(one.measured, measured) for one in images)
    trials = sum(len(result.seed_top1) for result in results)
    if not is_same or measured.sum() < 2 or trials * len(measured) > MOST_BITS:
        return None
    return Moments.of(np.concatenate([one.correct[:, measured] for one in images]))


def noise_of_results(results: Sequence[SettingResult]) -> Noise:
    """Returns the noise of results: paired by image if the bits are known, else as if measured on separate images."""
    seeds = [len(result.seed_top1) for result in results]
    images = [result.images for result in results if result.images is not None]
    if len(images) == len(results) and len({len(one.measured) for one in images}) == 1:
        measured = np.logical_and.reduce([one.measured for one in images])
        if measured.sum() >= 2 and sum(seeds) * len(measured) <= MOST_BITS:
            return noise_of(Moments.of(np.concatenate([one.correct[:, measured] for one in images])), seeds)
    top1 = np.array([result.top1 for result in results])
    draws = np.array([result.validation_images for result in results])
    of_images = np.diag(top1 * (1 - top1) / draws)
    if min(seeds) == 1:
        return Noise(of_images, np.zeros(len(results)), 1)
    each = np.array(seeds, float)
    spreads = np.array([float(np.var(result.seed_top1, ddof=1)) for result in results])
    variances, freedom = moderated_variances(spreads, each - 1)
    return Noise(of_images, variances / each, freedom)
