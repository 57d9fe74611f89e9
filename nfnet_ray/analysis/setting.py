"""Computes the result of one setting: its accuracy, the uncertainty, and the images that were classified correctly."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nfnet_ray.analysis.inference.intervals import accuracy_interval
from nfnet_ray.analysis.inference.paired import Bits, paired_accuracy_interval
from nfnet_ray.analysis.tables import STUDY, StudyTables, once_of_a_record
from nfnet_ray.correct_images import CorrectImages


@dataclass(frozen=True)
class SettingImages:
    """The images that the trials of a setting classified correctly.

    Attributes:
        correct: bool (seeds, N), whether each seed classified each image correctly, in the order of the data set.
        measured: bool (N,), whether every trial was measured on each image.
    """

    correct: Bits
    measured: Bits

    @staticmethod
    def of(trials: Sequence[CorrectImages | None]) -> SettingImages | None:
        """Combines the images of several trials; None unless they are known for each trial."""
        known = [trial for trial in trials if trial is not None]
        if len(known) < len(trials) or not known or len({len(trial.correct) for trial in known}) > 1:
            return None
        return SettingImages(
            np.stack([trial.correct for trial in known]),
            np.logical_and.reduce([trial.measured for trial in known]),
        )

    def only(self, chosen: Bits) -> SettingImages:
        """Returns a copy in which only the chosen images, bool (N,), count as measured."""
        return SettingImages(self.correct, self.measured & chosen)


@dataclass(frozen=True)
class SettingResult:
    """The result of one setting.

    Attributes:
        point: {dotted name: value} of the swept fields.
        top1: the mean over seeds of the accuracy after the last epoch, a fraction.
        low, high: the 95% interval of ``top1`` over the draw of validation images and, with at least two seeds, over
            seeds (:func:`nfnet_ray.analysis.inference.intervals.accuracy_interval`, or
            :func:`nfnet_ray.analysis.inference.paired.paired_accuracy_interval` if ``images`` are known).
        seed_top1: the accuracy of each seed; ``top1`` is their mean.
        validation_images: the number of images on which each seed was measured.
        images: the images that each seed classified correctly; None if the journal does not contain them.
    """

    point: Mapping[str, Any]
    top1: float
    low: float
    high: float
    seed_top1: tuple[float, ...]
    validation_images: int
    images: SettingImages | None = field(default=None, compare=False, repr=False)


def setting_result(
    point: Mapping[str, Any], top1: Sequence[float], validation_images: int, images: SettingImages | None
) -> SettingResult:
    """Returns the result of a setting with its interval, from the accuracy of each seed."""
    if images is not None and images.measured.any():
        low, high = paired_accuracy_interval(images.correct[:, images.measured])
    else:
        images = None
        low, high = accuracy_interval(top1, validation_images)
    return SettingResult(point, sum(top1) / len(top1), low, high, tuple(top1), validation_images, images)


@once_of_a_record
def setting_results(record: StudyTables) -> Sequence[SettingResult]:
    """Returns the results of the settings that can be compared, in the order of the study's space.

    A setting can be compared when at least one of its trials has finished and none was stopped early, diverged or
    failed. Otherwise a setting that fails for one seed in three would be judged by its two survivors, or an accuracy
    after an early stop would be compared with accuracies after all epochs. Trials that have not run yet are simply
    missing.
    """
    results = []
    for point, trials in trials_by_setting(record):
        finished = [trial for trial in trials if trial["state"] == "finished"]
        top1 = [float(trial["last_top1"]) for trial in finished]
        out_of_the_race = any(trial["state"] in ("stopped", "diverged", "failed") for trial in trials)
        if not top1 or out_of_the_race or any(math.isnan(value) for value in top1):
            continue
        images = _validation_images(record, str(finished[0]["trial"]))
        known = SettingImages.of([record.correct(trial["trial"], int(trial["epochs"])) for trial in finished])
        results.append(setting_result(point, top1, images, known))
    return results


def _validation_images(record: StudyTables, trial: str) -> int:
    """Returns the number of validation images of the study to which a trial belongs."""
    if not record.parts:
        return record.study["data"]["validation_images"]
    study = record.trials.set_index("trial").at[trial, STUDY]
    return record.parts[str(study)].study["data"]["validation_images"]


@once_of_a_record
def trials_by_setting(
    record: StudyTables,
) -> Sequence[tuple[Mapping[str, Any], Sequence[Mapping[Hashable, Any]]]]:
    """Returns each point of the space with its trials, in the order of the trials' plan."""
    settings: dict[tuple[Any, ...], list[dict[Hashable, Any]]] = {}
    for trial in record.trials.to_dict("records"):
        settings.setdefault(tuple(trial[field] for field in record.fields), []).append(trial)
    return [(dict(zip(record.fields, point, strict=True)), trials) for point, trials in settings.items()]
