"""Computes the best accuracy so far against its cost, with a band that fits the search."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nfnet_ray.analysis.effects.given_up import given_up
from nfnet_ray.analysis.effects.isolation import best_of
from nfnet_ray.analysis.effects.noise import NoiseWithin, noise_of_results
from nfnet_ray.analysis.inference.paired import Floats
from nfnet_ray.analysis.setting import (
    SettingImages,
    SettingResult,
    setting_result,
    setting_results,
    trials_by_setting,
)
from nfnet_ray.analysis.tables import StudyTables
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.search.axes import point_key
from nfnet_ray.tracking.descriptions import accelerators
from nfnet_ray.tracking.labels import without_absent

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("settings", "epochs", "accelerator_hours", "cost", "top1", "low", "high", "band")
ORDERS, INTERVAL = "orders", "interval"
_BETWEEN = 24
_FAR = 2.0
"""The distance below the best, in widths of its interval, at which a setting has no chance to be chosen: 8 standard
errors."""
_MOST_RIVALS = 100


def best_so_far(tables: StudyTables) -> pd.DataFrame:
    """Returns the best accuracy after each setting, and the cost of all settings up to it.

    The meaning of the band depends on the search, because only the settings of a random search can be reordered:

    * ``random``: settings were drawn independently, so all orders of them are equally likely. ``top1`` is the expected
      best of the first k settings over all orders, and the band contains 95% of the orders. The curve ends at the best
      setting found; the variation between the draws of different studies is not included. The Recipe's own setting and
      those of an earlier study, with which the search began, were not drawn, so they come first in every order.
    * all others (``grid``, ``sobol``, ``tpe``, ``gp``): the one path in the order of the plan. ``top1`` is the best
      observed so far, and the band is its 95% interval over images and, with at least two seeds, over seeds. As in the
      answer, the lower bound takes into account that the best setting was chosen among all settings so far, by drawing
      images and seeds again.

    A setting that was given up counts with its accuracy at that time, and a setting that diverged with chance accuracy.
    Settings with a trial that failed or has not ended are left out.

    Returns:
        A row for each setting: ``settings`` (the number so far), ``epochs`` (trained by their trials),
        ``accelerator_hours`` (of their training alone), ``cost`` (the hours times their price; NaN if it is unknown),
        ``top1``, ``low`` and ``high`` (fractions), ``band`` (``orders`` or ``interval``). For random orders, each drawn
        setting has the mean cost of all drawn settings.
    """
    import pandas as pd

    results, epochs, seconds = _settings(tables)
    if not results:
        return pd.DataFrame(columns=list(COLUMNS))
    worker = tables.study.get("worker", {"workers": 1, "gpus": 0})
    is_random = tables.study.get("search", {}).get("name") == "random"
    top1 = np.array([result.top1 for result in results])
    number = np.arange(1, len(results) + 1)
    if is_random:
        first = _not_drawn(tables, results)
        mean, low, high = _over_orders(top1, first)
        spent = [_mean_spent(np.array(each, float), first) for each in (epochs, seconds)]
    else:
        mean = np.maximum.accumulate(top1)
        low, high = _intervals(tables, results)
        spent = [np.cumsum(each) for each in (epochs, seconds)]
    hours = spent[1] * accelerators(worker["workers"], worker["gpus"]) / 3600
    price = math.nan if tables.price_per_hour is None else tables.price_per_hour
    band = ORDERS if is_random else INTERVAL
    columns = (number, spent[0], hours, hours * price, mean, low, high, [band] * len(results))
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def expected_best(top1: Floats, level: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """Returns the best of the first k of N accuracies over all orders, for k from 1 to N: (mean, low, high), (N,) each.

    The probability that the best of k is at most the i-th smallest accuracy is that of drawing all k from the i
    smallest, C(i, k) / C(N, k). The mean is unbiased for another study's k draws, unlike that of drawing with
    replacement as in Dodge et al. (2019); see Tang et al. (2020).
    """
    from scipy.special import gammaln

    ordered = np.sort(top1)
    n = len(ordered)
    rank = np.arange(1.0, n + 1)

    def log_choices(of: Any, k: int) -> Any:
        return gammaln(of + 1.0) - gammaln(k + 1.0) - gammaln(of - k + 1.0)

    mean, low, high = (np.empty(n) for _ in range(3))
    for k in range(1, n + 1):
        at_most = np.zeros(n)
        at_most[k - 1 :] = np.exp(log_choices(rank[k - 1 :], k) - log_choices(n, k))
        at_most[-1] = 1.0
        mean[k - 1] = float(ordered @ np.diff(at_most, prepend=0.0))
        for bound, share in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
            bound[k - 1] = ordered[int(np.searchsorted(at_most, share - 1e-12))]
    return mean, low, high


def _over_orders(top1: Floats, first: int) -> tuple[Floats, Floats, Floats]:
    """Applies :func:`expected_best` to the orders in which the ``first`` settings come first."""
    path = np.maximum.accumulate(top1[:first])
    if first == len(top1):
        return path, path, path
    # A setting that is not better than the first ones does not change the best so far.
    least = path[-1] if first else -math.inf
    mean, low, high = (np.append(path, each) for each in expected_best(np.maximum(top1[first:], least)))
    return mean, low, high


def _mean_spent(each: Floats, first: int) -> Floats:
    """Returns (S,) the cumulative cost of the settings up to each one, averaged over the orders."""
    drawn = each[first:]
    return np.cumsum(np.append(each[:first], np.full(len(drawn), drawn.mean() if len(drawn) else 0.0)))


def _not_drawn(tables: StudyTables, results: Sequence[SettingResult]) -> int:
    """Returns the number of settings given to the search at the start: the Recipe's own, and those of another study."""
    recipe = tables.study.get("recipe", {})
    own = [recipe]
    with contextlib.suppress(UserError):  # a journal of another version
        own.append(with_published_values(Recipe.from_values(recipe)).to_values())
    given = {point_key(point) for point in tables.study.get("search", {}).get("first_points", ())}
    points = [without_absent(one.point) for one in results]
    is_given = [
        point_key(point) in given
        or any(point_key({name: values.get(name) for name in point}) == point_key(point) for values in own)
        for point in points
    ]
    return next((number for number, one in enumerate(is_given) if not one), len(is_given))


def _settings(
    tables: StudyTables,
) -> tuple[list[SettingResult], list[int], list[float]]:
    """Returns the settings that ended, in the order of the plan: results, epochs, seconds of training."""
    images = tables.study["data"]["validation_images"]
    chance = 1 / max(tables.study["data"].get("classes", 0), 1)
    ended = {"finished", "stopped", "diverged"}
    results, epochs, seconds = [], [], []
    for point, rows in trials_by_setting(tables):
        if any(row["state"] not in ended for row in rows):
            continue
        top1 = [
            chance if row["state"] == "diverged" or math.isnan(row["last_top1"]) else float(row["last_top1"])
            for row in rows
        ]
        known = SettingImages.of([tables.correct(str(row["trial"]), int(row["epochs"])) for row in rows])
        if any(row["state"] == "diverged" for row in rows):
            known = None
        results.append(setting_result(point, top1, images, known))
        epochs.append(sum(int(row["epochs"]) for row in rows))
        seconds.append(sum(float(row["train_seconds"]) for row in rows if row["train_seconds"] > 0))
    return results, epochs, seconds


def _intervals(tables: StudyTables, results: Sequence[SettingResult]) -> tuple[Floats, Floats]:
    """Returns the 95% interval of the best so far after each setting; the last one equals the answer's interval.

    The interval is computed where the best setting changes and a few times in between, because additional rivals lower
        its lower bound only slowly.
    """
    top1 = np.array([result.top1 for result in results])
    best = np.maximum.accumulate(top1)
    ends = np.unique(np.geomspace(1, len(results), _BETWEEN).round().astype(int)) - 1
    low, high = np.empty(len(results)), np.empty(len(results))
    finished = {_key(result) for result in setting_results(tables)}
    rivals = given_up(tables, [result for result in results if _key(result) in finished])
    later = {_key(rival): rival for rival in rivals.settings}
    # If the best setting has finished, settings that were given up are compared by their estimated accuracy at the end.
    as_at_end = [later.get(_key(result), result) for result in results]
    noise = NoiseWithin(as_at_end)
    for number, seen in enumerate(best):
        if number and seen == best[number - 1] and number not in ends:
            low[number], high[number] = low[number - 1], high[number - 1]
            continue
        leader = results[int(top1[: number + 1].argmax())]
        near = seen - _FAR * (leader.high - leader.low)
        is_at_end = _key(leader) in finished
        rows = (as_at_end if is_at_end else results)[: number + 1]
        near_it = sorted((one for one in rows if one.top1 >= near), key=lambda one: -one.top1)[:_MOST_RIVALS]
        if is_at_end:
            others = [one for one in near_it if _key(one) not in later]
            ids = set(map(id, near_it))
            found, _ = best_of(others, noise.of, rivals.only([id(one) in ids for one in rivals.settings]))
        else:
            found, _ = best_of(near_it, noise_of_results)
        low[number], high[number] = found.low, found.high
    return low, high


def _key(result: SettingResult) -> tuple[Any, ...]:
    return tuple(result.point.values())
