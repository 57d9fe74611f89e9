"""Fits the response of the accuracy to a field by a parabola, per stratum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.analysis.effects.levels import is_logarithmic, is_number
from nfnet_ray.analysis.effects.noise import noise_of_results, results_at
from nfnet_ray.analysis.effects.parabola import Parabola, fit_parabola, joint_fields, optimum_of
from nfnet_ray.analysis.effects.response import LEAST_VALUES, Apart, Curve, Kind, Response, Shift
from nfnet_ray.analysis.effects.stages import Stage, stages
from nfnet_ray.analysis.inference.paired import Floats
from nfnet_ray.analysis.inference.selection import Noise
from nfnet_ray.analysis.setting import SettingResult, setting_results
from nfnet_ray.analysis.tables import StudyTables
from nfnet_ray.analysis.verdict import EQUAL_WITHIN
from nfnet_ray.tracking.labels import ABSENT, value_label

if TYPE_CHECKING:
    import pandas as pd

# Significance levels. If the lack of fit is below the first, the parabola describes too little; if the p value of the
# field's effect is above the second, noise can explain it.
_POOR_FIT = 0.01
_NO_EFFECT = 0.05
_STEPS = 10
"""The number of steps in which the range is made narrower until a parabola describes it; fewer for few values."""

Integers = NDArray[np.int_]


def responses(tables: StudyTables, field: str) -> tuple[Response, ...]:
    """The response to ``field`` under each combination of the other conditions, in the order of the study's space.

    It is measured at the latest stage at which :data:`LEAST_VALUES` different values have an accuracy for all seeds.
    Diverged settings are left out. Each field that is not a condition is allowed for by a parabola of its own, and by
    its product with the field in question if that explains more than noise does. A plain list of points
    that differ in several fields has no response.
    """
    if "points" in tables.study and len(tables.fields) > 1:
        return ()
    conditions = tuple(name for name in tables.conditions if name != field)
    at_stage = [
        (stage, setting_results(tables) if stage.is_end else results_at(tables, stage))
        for stage in reversed(stages(tables))
    ]
    rows = tables.trials[list(conditions)].itertuples(index=False, name=None)
    found = []
    for key in dict.fromkeys(rows) if conditions else [()]:
        stratum = dict(zip(conditions, key, strict=True))
        found.append(_response(tables, field, stratum, at_stage))
    return tuple(response for response in found if response is not None)


def _response(
    tables: StudyTables,
    field: str,
    stratum: dict[str, Any],
    at_stage: Sequence[tuple[Stage, Sequence[SettingResult]]],
) -> Response | None:
    """The response under one condition; None if too few different numbers of the field were tried for a curve."""
    logarithmic = is_logarithmic(tables, field)

    def on_axis(value: Any) -> bool:
        return is_number(value) and (not logarithmic or value > 0)

    rows = tables.trials
    for name, value in stratum.items():
        rows = rows[[one == value for one in rows[name]]]
    tried = {float(value) for value in rows[field] if on_axis(value)}
    if len(tried) < LEAST_VALUES:
        return None
    chosen = None
    for stage, results in at_stage:
        mine = [r for r in results if all(r.point[name] == value for name, value in stratum.items())]
        number = len({r.point[field] for r in mine if on_axis(r.point[field])})
        if chosen is None or number >= LEAST_VALUES:
            chosen = stage, mine, number
        if number >= LEAST_VALUES:
            break
    if chosen is None:
        return None
    stage, mine, number = chosen
    fitted = [r for r in mine if on_axis(r.point[field])]
    outside = [r for r in mine if not on_axis(r.point[field]) and r.point[field] is not ABSENT]
    equal_within = tables.study.get("equal_within", EQUAL_WITHIN)
    common: dict[str, Any] = {
        "field": field,
        "stratum": stratum,
        "where": stage.where,
        "is_end": stage.is_end,
        "values": number,
        "tried_low": min(tried),
        "tried_high": max(tried),
        "settings": len(mine),
        "given_up": _given_up(rows, tables.fields, {tuple(r.point.values()) for r in mine}),
        "is_logarithmic": logarithmic,
        "equal_within": equal_within,
        "names": tables.names,
        "points": tuple((float(r.point[field]), r.top1, r.low, r.high) for r in fitted),
        "apart": tuple(_apart(label, rows) for label, rows in _by_label(outside, field).items()),
    }
    if number < LEAST_VALUES:
        return Response(kind="too few", **common)
    x = np.array([float(r.point[field]) for r in fitted])
    x = np.log(x) if logarithmic else x
    others = _other_fields(tables, [r.point for r in fitted], field)
    columns = _centred(others, len(fitted))
    if len(fitted) < 3 + columns.shape[1] + 2:
        return Response(kind="too few", **common)
    classes = tables.study["data"].get("classes", 0)
    chance = 1 / classes if classes else 0.0
    return _fitted(x, fitted, outside, others, columns, common, chance)


def _given_up(rows: pd.DataFrame, fields: Sequence[str], measured: set[tuple[Any, ...]]) -> int:
    """The number of settings that were not measured, and have a trial that was given up."""
    stopped = rows[rows["state"] == "stopped"]
    return len({tuple(row[field] for field in fields) for row in stopped.to_dict("records")} - measured)


def _fitted(
    x: Floats,
    fitted: Sequence[SettingResult],
    outside: Sequence[SettingResult],
    others: Sequence[_OtherField],
    columns: Floats,
    common: dict[str, Any],
    chance: float,
) -> Response:
    """The response, fitted to the widest range of values around the best one that a parabola describes."""
    top1 = np.array([result.top1 for result in fitted])
    noise = noise_of_results([*fitted, *outside])
    axis = _Axis(x.mean(), np.ptp(x) / 2, common["is_logarithmic"])
    place = (x - axis.middle) / axis.scale
    elsewhere = np.column_stack([np.empty((len(x), 0)), *(one.places for one in others)])
    widest = _WidestFit.of(place, top1, noise, columns, elsewhere, common["equal_within"], chance)
    fit, keep = widest.parabola, widest.keep
    numbers = [float(fitted[number].point[common["field"]]) for number in keep.tolist()]
    seeded = all(len(result.seed_top1) > 1 for result in fitted)
    told: dict[str, Any] = {
        **common,
        "range_low": min(numbers),
        "range_high": max(numbers),
        "explains": fit.explains,
        "lack_of_fit": fit.lack_of_fit,
        "misfit": fit.misfit,
        "covers": "seeds and images" if seeded else "images and the distance from the curve",
    }
    if widest.is_poor:
        return Response(kind="poor fit", **told)
    found = optimum_of(fit)
    at_optimum = fit.rows(np.array([found.x]))
    highest, half = float((at_optimum @ fit.beta)[0]), float(fit.half_width(at_optimum)[0])
    grid = fit.grid()
    flat = grid[fit.rows(grid) @ fit.beta >= highest - common["equal_within"]]
    end = told["range_low" if found.x == grid[0] else "range_high"]
    told |= {
        "curve": _curve(fit, axis),
        "optimum": end if found.is_edge else float(f"{axis.value(found.x):.4g}"),
        "low": axis.value(found.low),
        "high": axis.value(found.high),
        "reaches_low": found.reaches_low,
        "reaches_high": found.reaches_high,
        # A parabola may exceed 100%.
        "top1": _within(highest),
        "top1_low": _within(highest - half),
        "top1_high": _within(highest + half),
        "flat_low": axis.value(float(flat.min())),
        "flat_high": axis.value(float(flat.max())),
        "shifts": tuple(
            _shift(fit, number, others, other, keep, axis) for number, other in enumerate(widest.joint)
        ),
        "apart": _against(fit, at_optimum, common["field"], outside, noise, keep, len(fitted)),
    }
    kind: Kind = "no effect" if fit.explains > _NO_EFFECT else "edge" if found.is_edge else "inside"
    return Response(kind=kind, **told)


@dataclass(frozen=True)
class _Axis:
    """The axis of the field, scaled so that all values with an accuracy have places from -1 to 1."""

    middle: float
    scale: float
    is_logarithmic: bool

    def value(self, place: float) -> float:
        """The field's value at a place."""
        number = place * self.scale + self.middle
        return math.exp(number) if self.is_logarithmic else float(number)


@dataclass(frozen=True)
class _WidestFit:
    """The parabola over the widest range of values around the best one that a parabola describes.

    Attributes:
        keep: the indices of the settings in that range.
        joint: the indices of the other fields whose product with the field is in the parabola.
        is_poor: whether no range was found that it describes.
    """

    parabola: Parabola
    keep: Integers
    joint: list[int]
    is_poor: bool

    @classmethod
    def of(
        cls,
        place: Floats,
        top1: Floats,
        noise: Noise,
        columns: Floats,
        elsewhere: Floats,
        equal_within: float,
        chance: float,
    ) -> _WidestFit:
        keep = np.arange(len(place)) if columns.shape[1] else _learnt(place, top1, chance)
        step = max(1, len(set(place)) // _STEPS)
        while True:
            x, y, others, products = place[keep], top1[keep], columns[keep], elsewhere[keep]
            joint = joint_fields(x, y, others, products)
            fit = fit_parabola(x, y, _part(noise, keep), others, products[:, joint])
            is_poor = fit.lack_of_fit < _POOR_FIT and fit.misfit > equal_within
            # Far from the optimum the accuracy falls off a cliff, so the worse end is left out.
            tried = sorted(set(x))
            left, right = x < tried[step], x > tried[-1 - step]
            fewer = keep[~left] if y[left].mean() < y[right].mean() else keep[~right]
            if not is_poor or len(tried) - step < LEAST_VALUES or len(fewer) < 5 + columns.shape[1]:
                return cls(fit, keep, joint, is_poor)
            keep = fewer


def _learnt(place: Floats, top1: Floats, chance: float) -> Integers:
    """The settings without the values at the ends at which the network learnt little, if enough are left.

    Such an accuracy, nearer to chance than to the best, lies beyond a cliff. The height of the cliff does not tell
    where the optimum is, and a parabola through these values has its optimum too far from the cliff.
    """
    enough = (top1.max() + chance) / 2
    values = sorted(set(place))
    learnt = {value: bool(top1[place == value].mean() >= enough) for value in values}
    while len(values) > LEAST_VALUES and not (learnt[values[0]] and learnt[values[-1]]):
        del values[0 if not learnt[values[0]] else -1]
    return np.flatnonzero(np.isin(place, values))


def _curve(fit: Parabola, axis: _Axis) -> Curve:
    places = _places(fit)
    rows = fit.rows(places)
    mean, half = rows @ fit.beta, fit.half_width(rows)
    return Curve(
        tuple(axis.value(at) for at in places.tolist()),
        tuple(np.clip(mean, 0, 1).tolist()),
        tuple(np.clip(mean - half, 0, 1).tolist()),
        tuple(np.clip(mean + half, 0, 1).tolist()),
    )


def _places(fit: Parabola) -> Floats:
    """The places at which a curve is drawn."""
    return np.linspace(fit.x.min(), fit.x.max(), 61)


def _shift(
    fit: Parabola, product: int, others: Sequence[_OtherField], which: int, keep: Integers, axis: _Axis
) -> Shift:
    """How the optimum moves with ``others[which]``; ``keep`` are the settings that were fitted."""
    other = others[which]
    quartiles = np.quantile(other.places[keep][other.is_number[keep]], (0.25, 0.75)).tolist()
    low, high = (fit.optimum_at(place, product) for place in quartiles)
    smallest, largest = float(fit.x.min()), float(fit.x.max())

    def end(optimum: float) -> int:
        return -1 if optimum <= smallest else 1 if optimum >= largest else 0

    def curve(place: float) -> tuple[float, ...]:
        places = _places(fit)
        rows = fit.rows(places)
        rows[:, 3 + product] = places * place
        if own := len(_centred_at(others, which, place)):
            rows[:, -own:] = _centred_at(others, which, place)
        return tuple(np.clip(rows @ fit.beta, 0, 1).tolist())

    return Shift(
        other.name,
        other.value(0.0),
        (other.value(quartiles[0]), other.value(quartiles[1])),
        (axis.value(low), axis.value(high)),
        (end(low), end(high)),
        (curve(quartiles[0]), curve(quartiles[1])),
    )


def _against(
    fit: Parabola,
    at_optimum: Floats,
    field: str,
    outside: Sequence[SettingResult],
    noise: Noise,
    keep: Integers,
    fitted: int,
) -> tuple[Apart, ...]:
    """The values without a place on the axis, compared with the optimum of the curve."""
    found = []
    highest = float((at_optimum @ fit.beta)[0])
    place = {id(result): number for number, result in enumerate(outside, start=fitted)}
    for label, rows in _by_label(outside, field).items():
        # These settings add noise to the comparison, and have no influence on the curve.
        both = _part(noise, np.append(keep, [place[id(result)] for result in rows]))
        solver = np.column_stack([fit.solver, np.zeros((len(fit.beta), len(rows)))])
        own = np.zeros((1, len(keep) + len(rows)))
        own[0, len(keep) :] = 1 / len(rows)
        half = float(replace(fit, noise=both, solver=solver).half_width(at_optimum, own)[0])
        mean = _apart(label, rows)
        difference = mean.top1 - highest
        found.append(
            replace(
                mean,
                difference=difference,
                difference_low=difference - half,
                difference_high=difference + half,
            )
        )
    return tuple(found)


def _by_label(results: Sequence[SettingResult], field: str) -> dict[str, list[SettingResult]]:
    found: dict[str, list[SettingResult]] = {}
    for result in results:
        found.setdefault(value_label(result.point[field]), []).append(result)
    return found


def _apart(label: str, results: Sequence[SettingResult]) -> Apart:
    """The mean over the settings with this value, with the mean of their intervals."""
    means = [float(np.mean([getattr(one, name) for one in results])) for name in ("top1", "low", "high")]
    return Apart(label, *means)


@dataclass(frozen=True)
class _OtherField:
    """Another field that has numbers, and what it adds to the fit.

    Attributes:
        places: (n,) the values of the n settings on the field's axis, minus their mean and in standard deviations; 0
            for a value that is not a number.
        is_number: (n,) bool, whether each value is a number.
    """

    name: str
    places: Floats
    is_number: NDArray[np.bool_]
    mean: float
    deviation: float
    is_logarithmic: bool

    @classmethod
    def of(cls, name: str, values: Sequence[Any], *, logarithmic: bool) -> _OtherField:
        numbers = np.array([is_number(value) and (not logarithmic or value > 0) for value in values])
        on_axis = np.array(
            [
                (math.log(value) if logarithmic else float(value)) if known else math.nan
                for value, known in zip(values, numbers, strict=True)
            ]
        )
        mean, deviation = (
            (float(np.nanmean(on_axis)), float(np.nanstd(on_axis)) or 1.0) if numbers.any() else (0.0, 1.0)
        )
        return cls(name, np.nan_to_num((on_axis - mean) / deviation), numbers, mean, deviation, logarithmic)

    @property
    def columns(self) -> list[Floats]:
        """The columns of a parabola, and one that is 1 where the value is a number."""
        return [self.places, self.places**2, self.is_number.astype(float)]

    def columns_at(self, place: float) -> list[float]:
        """The same columns at one place."""
        return [place, place**2, 1.0]

    def value(self, place: float) -> float:
        number = place * self.deviation + self.mean
        return math.exp(number) if self.is_logarithmic else number


def _other_fields(tables: StudyTables, points: Sequence[Mapping[str, Any]], field: str) -> list[_OtherField]:
    """The fields that are not conditions and have at least one number."""
    found = [
        _OtherField.of(name, [point[name] for point in points], logarithmic=is_logarithmic(tables, name))
        for name in tables.fields
        if name != field and name not in tables.conditions
    ]
    return [one for one in found if one.is_number.any()]


def _centred(others: Sequence[_OtherField], settings: int) -> Floats:
    """(settings, m) the columns of the other fields that differ between settings, minus their means."""
    columns = [column for one in others for column in one.columns]
    kept = [column - column.mean() for column in columns if np.ptp(column) > 0]
    return np.column_stack(kept) if kept else np.empty((settings, 0))


def _centred_at(others: Sequence[_OtherField], which: int, place: float) -> Floats:
    """(m,) the same columns if ``others[which]`` is at a place, and each other field has its mean effect."""
    at = [
        value - column.mean() if number == which else 0.0
        for number, one in enumerate(others)
        for value, column in zip(one.columns_at(place), one.columns, strict=True)
        if np.ptp(column) > 0
    ]
    return np.array(at)


def _part(noise: Noise, chosen: Integers) -> Noise:
    return Noise(noise.images[np.ix_(chosen, chosen)], noise.seeds[chosen], noise.freedom)


def _within(top1: float) -> float:
    return min(max(top1, 0.0), 1.0)
