"""The outcome of one setting: its accuracy, how certain it is, and which images its trials had right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nfnet_ray.analysis.inference.intervals import accuracy_interval
from nfnet_ray.analysis.inference.paired import Bits, paired_accuracy_interval
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

    point: dict[str, Any]
    top1: float
    low: float
    high: float
    seed_top1: tuple[float, ...]
    validation_images: int
    images: SettingImages | None = field(default=None, compare=False, repr=False)


def setting_result(
    point: dict[str, Any], top1: Sequence[float], validation_images: int, images: SettingImages | None
) -> SettingResult:
    """The result of a setting from the accuracy of each seed, with its interval."""
    if images is not None and images.measured.any():
        low, high = paired_accuracy_interval(images.correct[:, images.measured])
    else:
        images = None
        low, high = accuracy_interval(top1, validation_images)
    return SettingResult(point, sum(top1) / len(top1), low, high, tuple(top1), validation_images, images)
