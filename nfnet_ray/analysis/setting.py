"""The outcome of one setting: its accuracy, how certain it is, and which images its trials had right."""

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
    """Which images the trials of a setting had right.

    Attributes:
        correct: bool (seeds, N), in the order of the data set.
        measured: bool (N,): measured by every one of them.
    """

    correct: Bits
    measured: Bits

    @staticmethod
    def of(trials: Sequence[CorrectImages | None]) -> SettingImages | None:
        """Those of the trials; None unless they are known of each."""
        known = [trial for trial in trials if trial is not None]
        if len(known) < len(trials) or not known or len({len(trial.correct) for trial in known}) > 1:
            return None
        return SettingImages(
            np.stack([trial.correct for trial in known]),
            np.logical_and.reduce([trial.measured for trial in known]),
        )

    def only(self, chosen: Bits) -> SettingImages:
        """With only the chosen images, bool (N,), taken as measured."""
        return SettingImages(self.correct, self.measured & chosen)


@dataclass(frozen=True)
class SettingResult:
    """The outcome of one setting.

    Attributes:
        point: {dotted name: value} of the swept fields.
        top1: mean over seeds of the accuracy after the last epoch, a fraction.
        low, high: 95% interval of ``top1``, for the draw of validation images and, from two seeds on, of seeds
            (:func:`nfnet_ray.analysis.inference.intervals.accuracy_interval`, or
            :func:`nfnet_ray.analysis.inference.paired.paired_accuracy_interval` where ``images`` are known).
        seed_top1: each seed's accuracy, whose mean ``top1`` is.
        validation_images: how many images each of them was measured on.
        images: which images each seed had right; None where the journal does not say.
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
    """The result of a setting from the accuracy of each seed, with its interval."""
    if images is not None and images.measured.any():
        low, high = paired_accuracy_interval(images.correct[:, images.measured])
    else:
        images = None
        low, high = accuracy_interval(top1, validation_images)
    return SettingResult(point, sum(top1) / len(top1), low, high, tuple(top1), validation_images, images)


@once_of_a_record
def setting_results(record: StudyTables) -> Sequence[SettingResult]:
    """The settings that can be compared, in the order of the study's space.

    A setting counts when at least one of its trials has finished and none was stopped early, diverged or
    failed: a setting that fails for one seed in three is not as good as its two survivors, and accuracy
    after an early stop is not accuracy after all epochs. Trials that have yet to run are only missing.
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
    """Of the study that the trial is of."""
    if not record.parts:
        return record.study["data"]["validation_images"]
    study = record.trials.set_index("trial").at[trial, STUDY]
    return record.parts[str(study)].study["data"]["validation_images"]


@once_of_a_record
def trials_by_setting(
    record: StudyTables,
) -> Sequence[tuple[Mapping[str, Any], Sequence[Mapping[Hashable, Any]]]]:
    """Each point of the space with its trials, in the order of the trials' plan."""
    settings: dict[tuple[Any, ...], list[dict[Hashable, Any]]] = {}
    for trial in record.trials.to_dict("records"):
        settings.setdefault(tuple(trial[field] for field in record.fields), []).append(trial)
    return [(dict(zip(record.fields, point, strict=True)), trials) for point, trials in settings.items()]
