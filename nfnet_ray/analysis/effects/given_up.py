"""The settings that rungs gave up, among those that the best one is the best of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from nfnet_ray.analysis.effects.noise import MOST_BITS, results_at
from nfnet_ray.analysis.effects.stages import stages
from nfnet_ray.analysis.setting import SettingResult
from nfnet_ray.analysis.tables import StudyTables


def given_up_rivals(tables: StudyTables, results: Sequence[SettingResult]) -> list[SettingResult]:
    """The settings of the same stratum that a rung gave up, as they might have been at the end.

    The best of those that finished was also lucky at the rung, and a network keeps a part of its luck. So its rivals
    are the ones that were given up, too: each with the accuracy of its last rung and what the finished ones learnt from
    there to the end on average, but never above the best. The images that it had right are those at the rung.

    In simulation, where a network keeps a part of the rung's luck, the interval that allows for all of them covers 94.2
    to 97.5%, and that which allows for the finished ones alone 91.5 to 96.6% (``benchmarks/coverage.py``).

    Args:
        tables: of one study.
        results: the settings that finished, of which the best one is chosen.

    Returns:
        The others of which the images are known, in the order of their rungs. Where all ``results`` have several seeds
        only those that have several, too: of a single one the noise of its seed would not be known. None if there are
        too many bits to compare.
    """
    several = min(len(result.seed_top1) for result in results) > 1
    stratum = {
        field: results[0].point[field]
        for field in tables.conditions
        if len({result.point[field] for result in results}) == 1
    }
    at_end = {_key(result.point): result.top1 for result in results}
    best = max(at_end.values())
    found: dict[tuple[Any, ...], SettingResult] = {}
    for stage in stages(tables):
        there = [] if stage.is_end else results_at(tables, stage)
        learnt = [at_end[key] - one.top1 for one in there if (key := _key(one.point)) in at_end]
        for one in there:
            is_rival = _key(one.point) not in at_end and all(one.point[f] == v for f, v in stratum.items())
            if learnt and is_rival and one.images is not None and (not several or len(one.seed_top1) > 1):
                found[_key(one.point)] = replace(one, top1=min(best, one.top1 + fmean(learnt)))
    rivals = list(found.values())
    trials = sum(len(one.seed_top1) for one in [*results, *rivals])
    return rivals if trials * tables.study["data"]["validation_images"] <= MOST_BITS else []


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(point.values())
