"""The settings that rungs gave up, among those that the best one is the best of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from nfnet_ray.analysis.effects.noise import MOST_BITS, results_at
from nfnet_ray.analysis.effects.stages import Stage, stages
from nfnet_ray.analysis.inference.kept_luck import luck_kept
from nfnet_ray.analysis.inference.selection import Rung
from nfnet_ray.analysis.setting import SettingResult, trials_by_setting
from nfnet_ray.analysis.tables import StudyTables


@dataclass(frozen=True)
class GivenUp:
    """Settings that were given up, as they might have been later on.

    Attributes:
        settings: each with the accuracy of its last rung and what others of its stratum learnt from there on average.
            The images that it had right are those at the rung.
        rung: the number of that rung for each of them.
        kept: of each rung how much of the luck there is kept until later on (:class:`Rung`).
    """

    settings: tuple[SettingResult, ...] = ()
    rung: tuple[int, ...] = ()
    kept: tuple[float, ...] = ()

    def only(self, chosen: Sequence[bool]) -> GivenUp:
        """Some of the settings."""
        numbers = [number for number, is_chosen in enumerate(chosen) if is_chosen]
        return replace(
            self,
            settings=tuple(self.settings[number] for number in numbers),
            rung=tuple(self.rung[number] for number in numbers),
        )

    def rungs(self, others: int) -> list[Rung]:
        """The rungs that these settings did not pass and ``others`` did."""
        return [
            Rung(others + sum(last > number for last in self.rung), kept)
            for number, kept in enumerate(self.kept)
            if number in self.rung
        ]


NONE_GIVEN_UP = GivenUp()


def given_up(tables: StudyTables, results: Sequence[SettingResult], stage: Stage | None = None) -> GivenUp:
    """The settings of the same stratum that were given up before ``stage``.

    The best of those that were let through was also lucky at the rung, and a network keeps a part of its luck. So its
    rivals are the ones that were given up, too, as far as that part allows. In simulation the interval that allows for
    all of them covers 94.5 to 96.7%, and that which allows for the finished ones alone 91.5 to 96.6%
    (``benchmarks/coverage.py``).

    Args:
        tables: of one study; of several ones, rungs are not comparable.
        results: the settings that were not given up before, of which the best one is chosen.
        stage: where they were measured; None for the end.

    Returns:
        The settings of which the images are known. Where all ``results`` have several seeds only those that have
        several, too: of a single one the noise of its seed would not be known. None if there are too many bits to
        compare.
    """
    if not results or tables.parts:
        return NONE_GIVEN_UP
    stratum = {
        field: results[0].point[field]
        for field in tables.conditions
        if len({result.point[field] for result in results}) == 1
    }
    several = min(len(result.seed_top1) for result in results) > 1
    later = {_key(result.point): result for result in results}
    # One that went on and diverged later, or has yet to end, was let through.
    stopped = {
        _key(point)
        for point, trials in trials_by_setting(tables)
        if any(trial["state"] == "stopped" for trial in trials)
    }
    found: dict[tuple[Any, ...], tuple[int, SettingResult]] = {}
    compared: list[_Compared] = []
    for rung in stages(tables):
        if rung.is_end or (stage is not None and rung.where == stage.where):
            break
        there = [
            one
            for one in results_at(tables, rung)
            if all(one.point[field] == value for field, value in stratum.items())
            and one.images is not None
            and (not several or len(one.seed_top1) > 1)
        ]
        let_through = [number for number, one in enumerate(there) if _key(one.point) in later]
        if not let_through:
            continue
        after = [later[_key(there[number].point)] for number in let_through]
        learnt: dict[tuple[Any, ...], list[float]] = {}
        for one, number in zip(after, let_through, strict=True):
            learnt.setdefault(_stratum(tables, one), []).append(one.top1 - there[number].top1)
        for one in there:
            gains = learnt.get(_stratum(tables, one)) or [
                gain for all_of in learnt.values() for gain in all_of
            ]
            if _key(one.point) in stopped:
                found[_key(one.point)] = len(compared), replace(one, top1=min(1.0, one.top1 + fmean(gains)))
        compared.append(_Compared(there, after, let_through))
    trials = sum(len(one.seed_top1) for one in [*results, *(one for _, one in found.values())])
    if not found or trials * tables.study["data"]["validation_images"] > MOST_BITS:
        return NONE_GIVEN_UP
    numbers, settings = zip(*found.values(), strict=True)
    return GivenUp(settings, numbers, tuple(one.luck_kept() for one in compared))


def _stratum(tables: StudyTables, result: SettingResult) -> tuple[Any, ...]:
    """Settings of one stratum were compared at the rungs, and learn about as much from there to the end."""
    return tuple(result.point[field] for field in tables.conditions)


@dataclass(frozen=True)
class _Compared:
    """The settings of a rung, those that were let through as they were later on, and which of the former these are."""

    there: Sequence[SettingResult]
    later: Sequence[SettingResult]
    let_through: Sequence[int]

    def luck_kept(self) -> float:
        """All of it where the images are not known."""
        before = [one.images for one in self.there if one.images is not None]
        after = [
            (number, one.images)
            for number, one in zip(self.let_through, self.later, strict=True)
            if one.images is not None
        ]
        every = [*before, *(images for _, images in after)]
        if not after or len({len(images.measured) for images in every}) > 1:
            return 1.0
        measured = np.logical_and.reduce([images.measured for images in every])
        if not measured.any():
            return 1.0
        return luck_kept(
            [images.correct[:, measured] for images in before],
            [images.correct[:, measured] for _, images in after],
            [number for number, _ in after],
        )


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(point.values())
