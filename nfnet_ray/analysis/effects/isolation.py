"""Finds the best setting for each value of a field, as in the Tuning Playbook's isolation plot."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nfnet_ray.analysis.effects.given_up import NONE_GIVEN_UP, GivenUp, given_up
from nfnet_ray.analysis.effects.levels import field_levels
from nfnet_ray.analysis.effects.noise import NoiseWithin, results_at
from nfnet_ray.analysis.effects.stages import Stage, stages
from nfnet_ray.analysis.inference.selection import Noise, optimism
from nfnet_ray.analysis.setting import SettingResult, setting_results, trials_by_setting
from nfnet_ray.analysis.tables import StudyTables

if TYPE_CHECKING:
    import pandas as pd

LEVELS_AT_MOST = 8
"""The most numbers of a list that are shown one by one; longer lists and ranges are shown in this number of bins."""
COLUMNS = ("value", "label", "top1", "low", "high", "optimism", "compared", "settings", "where")


def isolation(tables: StudyTables, field: str) -> pd.DataFrame:
    """Returns the best setting for each value of ``field``, whatever the values of the other fields.

    If no setting with a value can be compared at the end, the best one at the latest stage that they reached is
    returned.

    Returns:
        A row for each value or bin: ``value`` (that of the best setting in a bin), ``label``, ``top1`` (a fraction),
        ``low`` and ``high`` (its 95% interval, whose lower bound allows for the choice of the best setting and for
        settings that were given up before), ``optimism`` (the amount by which that choice inflates ``top1``),
        ``compared`` (the number of settings among which it was chosen), ``settings`` (the number with this value),
        ``where`` (the stage), and the best setting's values of the other fields. Accuracies at different stages cannot
        be compared.
    """
    import pandas as pd

    points = [point for point, _ in trials_by_setting(tables)]
    levels = field_levels((point[field] for point in points), LEVELS_AT_MOST)
    found = [_AtStage(tables, stage) for stage in reversed(stages(tables))]
    others = [name for name in tables.fields if name != field]

    def place(result: SettingResult) -> tuple[Any, ...]:
        """Returns the level of the field and the conditions, because rungs compare only the settings of a stratum."""
        return levels.index[result.point[field]], *(result.point[name] for name in tables.conditions)

    rows = []
    for level, label in enumerate(levels.labels):
        row: dict[str, Any] = {
            "value": levels.centres[level],
            "label": label,
            **dict.fromkeys(("top1", "low", "high", "optimism"), math.nan),
            "compared": 0,
            "settings": sum(levels.index[point[field]] == level for point in points),
            "where": "",
        }
        for at in found:
            mine = [result for result in at.results if levels.index[result.point[field]] == level]
            if mine:
                among = set(map(place, mine))
                rivals = at.rivals.only([place(one) in among for one in at.rivals.settings])
                best, luck = best_of(mine, at.noise.of, rivals)
                row |= {"value": best.point[field], "top1": best.top1, "low": best.low, "high": best.high}
                row |= {"optimism": luck, "compared": len(mine), "where": at.stage.where}
                row |= _rest(best.point, others)
                break
        rows.append(row)
    table = pd.DataFrame(rows, columns=[*COLUMNS, *others])
    for name in ("value", *others):  # None and NaN are not the same value
        table[name] = pd.Series([row.get(name) for row in rows], dtype=object)
    return table


@dataclass(frozen=True)
class _AtStage:
    """The settings that can be compared at a stage, those that were given up before, and their noise."""

    tables: StudyTables
    stage: Stage

    @functools.cached_property
    def results(self) -> Sequence[SettingResult]:
        return setting_results(self.tables) if self.stage.is_end else results_at(self.tables, self.stage)

    @functools.cached_property
    def rivals(self) -> GivenUp:
        return given_up(self.tables, self.results, self.stage)

    @functools.cached_property
    def noise(self) -> NoiseWithin:
        return NoiseWithin([*self.results, *self.rivals.settings])


def best_of(
    results: Sequence[SettingResult],
    noise: Callable[[Sequence[SettingResult]], Noise],
    rivals: GivenUp = NONE_GIVEN_UP,
) -> tuple[SettingResult, float]:
    """Returns the best result, with its lower bound corrected for the choice, and its optimism.

    Args:
        noise: returns the noise of some of the results and rivals.
        rivals: the settings that were given up before the results were measured.
    """
    best = max(results, key=lambda result: result.top1)
    every = [*results, *rivals.settings]
    if len(every) == 1:
        return best, 0.0
    top1 = np.minimum([result.top1 for result in every], best.top1)
    rungs = rivals.rungs(len(results))
    luck = optimism(top1, noise(every), best.low, len(best.seed_top1), draws=2000, rungs=rungs)
    return replace(best, low=luck.low), luck.mean


def _rest(point: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: point[name] for name in names}
