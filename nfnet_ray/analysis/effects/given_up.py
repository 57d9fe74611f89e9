"""Finds the settings that were given up at rungs, which are rivals of the best setting, too."""

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
    """Settings that were given up, with their estimated later accuracies.

    Attributes:
        settings: each with the accuracy at its last rung plus the mean gain of other settings of its stratum from there
            on. Its correct images are those at the rung.
        rung: the index of the last rung of each setting.
        kept: for each rung, the share of the luck at the rung that is kept until later (:class:`Rung`).
    """

    settings: tuple[SettingResult, ...] = ()
    rung: tuple[int, ...] = ()
    kept: tuple[float, ...] = ()

    def only(self, chosen: Sequence[bool]) -> GivenUp:
        """Returns some of the settings."""
        numbers = [number for number, is_chosen in enumerate(chosen) if is_chosen]
        return replace(
            self,
            settings=tuple(self.settings[number] for number in numbers),
            rung=tuple(self.rung[number] for number in numbers),
        )

    def rungs(self, others: int) -> list[Rung]:
        """Returns the rungs that these settings did not pass and ``others`` did."""
        return [
            Rung(others + sum(last > number for last in self.rung), kept)
            for number, kept in enumerate(self.kept)
            if number in self.rung
        ]


NONE_GIVEN_UP = GivenUp()


def given_up(tables: StudyTables, results: Sequence[SettingResult], stage: Stage | None = None) -> GivenUp:
    """Returns the settings of the same stratum that were given up before ``stage``.

    The best of the promoted settings was also lucky at the rung, and a network keeps part of its luck. Settings that
    were given up are therefore rivals as well, to the extent that luck is kept. In simulation, the interval that takes
    all of them into account covers 94.5 to 96.7%, and the one that only considers finished settings 91.5 to 96.6%
    (``benchmarks/coverage.py``).

    Args:
        tables: the tables of one study; rungs of several studies are not comparable.
        results: the settings that were not given up before, among which the best one is chosen.
        stage: the stage at which they were measured; None for the end.

    Returns:
        The settings whose correct images are known. If all ``results`` have several seeds, settings with a single one
        are left out, because their noise between seeds is unknown. Empty if there are too many bits to compare.
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
    # A setting that continued and diverged later, or has yet to end, counts as promoted.
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
    """Returns a setting's conditions. Settings that share them learn about as much after a rung."""
    return tuple(result.point[field] for field in tables.conditions)


@dataclass(frozen=True)
class _Compared:
    """The settings at a rung, the promoted ones at the later stage, and the indices of the promoted ones."""

    there: Sequence[SettingResult]
    later: Sequence[SettingResult]
    let_through: Sequence[int]

    def luck_kept(self) -> float:
        """Returns the share of luck that is kept; 1 if the correct images are not known."""
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
