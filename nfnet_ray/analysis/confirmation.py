"""Computes the accuracy of the winner in its reruns, with seeds by which it was not chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nfnet_ray.analysis.inference.holdout import held_out
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.setting import SettingImages, SettingResult, setting_result
from nfnet_ray.tracking.trial_progress import LOST
from nfnet_ray.wording import agree, count, in_points, percent

# A smaller difference, as a fraction, is not visible in accuracies with one decimal.
_WORTH_SAYING = 0.0005


@dataclass(frozen=True)
class Confirmation:
    """The reruns of a winner.

    Attributes:
        planned: the number of reruns.
        result: the result of the reruns that have finished; None before the first one. It refers to the images on which
            the winner is quoted.
        lost: the number of reruns that diverged or failed.
        sweep_top1: the accuracy of the winner in the sweep, on the same images; a fraction.
    """

    planned: int
    result: SettingResult | None
    lost: int
    sweep_top1: float

    @property
    def drop(self) -> float | None:
        """The accuracy in the sweep minus that of the reruns, a fraction; None before the first rerun has finished."""
        return None if self.result is None else self.sweep_top1 - self.result.top1

    def sentence(self) -> str:
        """Compares the reruns with the sweep and says which are missing, as the middle part of a sentence."""
        words = []
        if self.drop is not None:
            words.append(f"the sweep had {percent(self.sweep_top1)}")
            if abs(self.drop) >= _WORTH_SAYING:
                change = in_points(self.drop)
                words[-1] += f", a drop of {change}" if self.drop > 0 else f", {change} less"
        if self.lost:
            words.append(f"{self.lost} of {count(self.planned, 'rerun')} diverged or failed")
        finished = 0 if self.result is None else len(self.result.seed_top1)
        if missing := self.planned - finished - self.lost:
            words.append(
                f"{missing} of {count(self.planned, 'rerun')} {agree(missing, 'has', 'have')} yet to finish"
            )
        return "; ".join(words)


def confirmation_of(record: StudyRecord, best: SettingResult, holdout: float | None) -> Confirmation | None:
    """Returns the confirmation of the winner; None for a setting that is not rerun.

    Args:
        best: the winner, with the result that is quoted.
        holdout: the share of the validation images on which the winner is quoted; None: all images.
    """
    planned = record.study.get("confirm", 0)
    if not planned:
        return None
    if record.reruns is None:  # the winners are not known yet
        return Confirmation(planned, None, 0, best.top1)
    reruns = [row for row in record.reruns.to_dict("records") if _is_at(row, best.point)]
    if not reruns:
        return None
    finished = [row for row in reruns if row["state"] == "finished" and not math.isnan(row["last_top1"])]
    lost = sum(row["state"] in LOST for row in reruns)
    images = SettingImages.of([record.correct(row["trial"], int(row["epochs"])) for row in finished])
    top1, number = [float(row["last_top1"]) for row in finished], record.study["data"]["validation_images"]
    if holdout is not None:
        if images is None:
            return Confirmation(len(reruns), None, lost, best.top1)
        images = images.only(held_out(len(images.measured), holdout))
        top1 = images.correct[:, images.measured].mean(axis=1).tolist()
        number = int(np.count_nonzero(images.measured))
    result = setting_result(best.point, top1, number, images) if finished else None
    return Confirmation(len(reruns), result, lost, best.top1)


def _is_at(row: Mapping[Any, Any], point: Mapping[str, Any]) -> bool:
    return all(row[field] == value for field, value in point.items())
