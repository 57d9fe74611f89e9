"""The settings at a stage, and how far their accuracies would move if the study were done again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nfnet_ray.analysis.effects.stages import Stage
from nfnet_ray.analysis.inference.paired import Moments
from nfnet_ray.analysis.inference.selection import Noise, moderated_variances, noise_of
from nfnet_ray.analysis.setting import SettingImages, SettingResult, setting_result, trials_by_setting
from nfnet_ray.analysis.tables import StudyTables

_MOST_BITS = 400_000_000
"""Bits of all trials together up to which covariances are taken from them: some seconds, and 1.6 GB in float32."""


def results_at(tables: StudyTables, stage: Stage) -> list[SettingResult]:
    """The settings of which every trial was measured at a stage, in the order of the study's space."""
    images = tables.study["data"]["validation_images"]
    found = []
    for point, rows in trials_by_setting(tables):
        trials = [str(row["trial"]) for row in rows]
        if not all(trial in stage.epoch for trial in trials):
            continue
        known = SettingImages.of([tables.correct(trial, stage.epoch[trial]) for trial in trials])
        found.append(setting_result(point, [stage.top1[trial] for trial in trials], images, known))
    return found


def noise_of_results(results: Sequence[SettingResult]) -> Noise:
    """Their noise: image by image where the bits are known, else as if each had been measured on images of its own."""
    seeds = [len(result.seed_top1) for result in results]
    images = [result.images for result in results if result.images is not None]
    if len(images) == len(results) and len({len(one.measured) for one in images}) == 1:
        measured = np.logical_and.reduce([one.measured for one in images])
        if measured.sum() >= 2 and sum(seeds) * len(measured) <= _MOST_BITS:
            return noise_of(Moments.of(np.concatenate([one.correct[:, measured] for one in images])), seeds)
    top1 = np.array([result.top1 for result in results])
    draws = np.array([result.validation_images for result in results])
    of_images = np.diag(top1 * (1 - top1) / draws)
    if min(seeds) == 1:
        return Noise(of_images, np.zeros(len(results)), 1)
    each = np.array(seeds, float)
    spreads = np.array([np.var(result.seed_top1, ddof=1) for result in results])
    variances, freedom = moderated_variances(spreads, each - 1)
    return Noise(of_images, variances / each, freedom)
