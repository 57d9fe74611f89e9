"""Represents the response of the accuracy to a field: its optimum, the uncertainty, and how flat the curve is there.

:mod:`nfnet_ray.analysis.effects.response_fit` computes it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from nfnet_ray.tracking.labels import stratum_label, value_label
from nfnet_ray.wording import as_points, count, in_points, percent

LEAST_VALUES = 5
"""The least number of different values for a parabola: three coefficients, and two more to test whether it fits."""

Kind = Literal["inside", "edge", "no effect", "poor fit", "too few"]


@dataclass(frozen=True)
class Apart:
    """The accuracy at a value that has no place on the axis: ``none``, or 0 on a logarithmic axis.

    Attributes:
        label: the value, as text.
        top1, low, high: its accuracy with its 95% interval, fractions.
        difference: its accuracy minus that of the curve at its optimum; NaN without a curve.
        difference_low, difference_high: the 95% interval of the difference.
    """

    label: str
    top1: float
    low: float
    high: float
    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan


@dataclass(frozen=True)
class Curve:
    """The fitted accuracy at values of the field, with its 95% band; all have one entry for each value."""

    values: tuple[float, ...]
    top1: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Shift:
    """How the optimum moves with another field, if the curve needs the product of both fields.

    Attributes:
        field: dotted name of the other field.
        middle: the value of the other field for which curve and optimum are given: the mean of its values on its axis.
        values: the lower and the upper quartile of the other field's values.
        optima: the optimum at each of them, within the range that was fitted.
        ends: for each of these optima -1 if it is the smallest value of that range, 1 if the largest, else 0.
        curves: the fitted accuracy at each of them, for the values of the response's curve.
    """

    field: str
    middle: float
    values: tuple[float, float]
    optima: tuple[float, float]
    ends: tuple[int, int]
    curves: tuple[tuple[float, ...], tuple[float, ...]] = dataclasses.field(repr=False)


@dataclass(frozen=True)
class Response:
    """The response of the accuracy to one field, under one condition.

    The optimum may depend on other fields that have ranges. It is then given for the middle of their ranges, and
    ``shifts`` says how it moves.

    Attributes:
        field: dotted name of the field.
        stratum: {condition: value}; empty if there is one condition only.
        kind: ``inside`` if the curve is highest between the smallest and the largest value, ``edge`` if at one of them;
            ``no effect`` if noise can explain the differences, ``poor fit`` if a parabola does not describe them,
            ``too few`` if there are too few values for a curve.
        where: the stage at which it was measured, in words.
        is_end: whether this stage is the end of training.
        values: the number of different values that were fitted.
        settings: the number of settings of the condition that were measured at this stage.
        given_up: the number of settings that were given up before it, so that the others were chosen by their accuracy.
        points: (value, top1, low, high) of each setting with a number on the axis.
        is_logarithmic: whether the parabola is in the logarithm of the field.
        optimum: the value at which the curve is highest; NaN without a curve.
        low, high: 95% interval of the optimum, within the range that was fitted.
        reaches_low, reaches_high: whether the interval ends at an end of the range, so that the optimum may lie beyond.
        covers: the sources of noise that the interval covers, in words.
        top1, top1_low, top1_high: the fitted accuracy at the optimum, and its 95% interval.
        flat_low, flat_high: between these values the curve is within ``equal_within`` of its highest accuracy.
        equal_within: the difference in accuracy below which settings count as equal, a fraction.
        range_low, range_high: the smallest and the largest fitted value. Values beyond them, at which the accuracy
            falls off a cliff, were left out, because no parabola describes all values.
        tried_low, tried_high: smallest and largest value that was tried, also of settings that diverged, were given up
            or do not fit.
        explains: p value of the hypothesis that the field does nothing.
        lack_of_fit: p value of the hypothesis that the response is a parabola
            (:class:`nfnet_ray.analysis.effects.parabola.Parabola`).
        misfit: the root mean squared distance from the curve that noise does not explain, a fraction.
        curve: the fitted curve, or None if there is none.
        apart: values without a place on the axis.
        shifts: the other fields that move the optimum.
        names: {dotted name: short name}.
    """

    field: str
    stratum: dict[str, Any]
    kind: Kind
    where: str
    is_end: bool
    values: int
    settings: int
    given_up: int
    points: tuple[tuple[float, float, float, float], ...]
    tried_low: float
    tried_high: float
    is_logarithmic: bool
    equal_within: float
    names: dict[str, str]
    apart: tuple[Apart, ...] = ()
    optimum: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reaches_low: bool = False
    reaches_high: bool = False
    covers: str = ""
    top1: float = math.nan
    top1_low: float = math.nan
    top1_high: float = math.nan
    flat_low: float = math.nan
    flat_high: float = math.nan
    range_low: float = math.nan
    range_high: float = math.nan
    explains: float = math.nan
    lack_of_fit: float = math.nan
    misfit: float = math.nan
    curve: Curve | None = dataclasses.field(default=None, repr=False)
    shifts: tuple[Shift, ...] = ()

    def sentence(self) -> str:
        """Describes the optimum, its interval and how flat the curve is; or why there is no optimum."""
        name = self.names[self.field]
        at = f" at {stratum_label(self.stratum, self.names)}" if self.stratum else ""
        where = "" if self.is_end or not self.where else f" {self.where}"
        if self.kind == "too few":
            return (
                f"Response to {name}{at}: {count(self.values, 'value')} with an accuracy{where or ' at the end'}; "
                f"a curve needs {LEAST_VALUES}"
            )
        if self.kind == "poor fit":
            return (
                f"Response to {name}{at}{where}: no parabola describes it (it misses the settings by "
                f"{in_points(self.misfit)} beyond noise), so no optimum is fitted"
            )
        if self.kind == "no effect":
            among = f" among {self._left()}" if self.given_up else ""
            return (
                f"Response to {name}{at}{where}: noise can explain the differences between {self.range_low:.3g} and "
                f"{self.range_high:.3g}{among} (p = {self.explains:.2g})"
            )
        if self.given_up:
            at += f" among {self._left()}"
        over = f"95% interval over {self.covers} {_short(self.low)} to {_short(self.high)}"
        within = as_points(f"{100 * self.equal_within:.2g}")
        if self.kind == "edge":
            is_low = self.optimum == self.range_low
            end, more = ("smallest", "smaller") if is_low else ("largest", "larger")
            is_last = self.optimum == (self.tried_low if is_low else self.tried_high)
            beyond = f"{more} ones {'may be better' if is_last else 'were tried and did worse'}"
            return (
                f"Optimum of {name}{at}{where}: the {end} value{'' if is_last else ' on the curve'}, "
                f"{value_label(self.optimum)} ({over}); {beyond}{self._apart()}{self._shifts()}"
            )
        open_at = [
            f"the {end} value"
            for end, reached in (("smallest", self.reaches_low), ("largest", self.reaches_high))
            if reached
        ]
        beyond = f", which reaches {' and '.join(open_at)}" if open_at else ""
        return (
            f"Optimum of {name}{at}{where}: {_short(self.optimum)} ({over}{beyond}), fitted top-1 "
            f"{percent(self.top1)}; from {_short(self.flat_low)} to {_short(self.flat_high)} the curve is within "
            f"{within} of that{self._apart()}{self._shifts()}"
        )

    def _left(self) -> str:
        return f"the {count(self.settings, 'setting')} that early stopping left"

    def _apart(self) -> str:
        words = ""
        for value in self.apart:
            if math.isnan(value.difference):
                continue
            more = in_points(value.difference)
            if value.difference_low <= 0 <= value.difference_high:
                words += f"; {value.label} cannot be told apart from it ({percent(value.top1)})"
            else:
                words += f"; {value.label} is {more} {'better' if value.difference > 0 else 'worse'}"
        return words

    def _shifts(self) -> str:
        words = ""
        for shift in self.shifts:
            name = self.names[shift.field]
            first, second = (
                f"{_short(at)}{(' or less', '', ' or more')[end + 1]} at {_short(value)}"
                for at, end, value in zip(shift.optima, shift.ends, shift.values, strict=True)
            )
            words += f"; this is at {name} {_short(shift.middle)}, and it moves: {first}, {second}"
        return words


def _short(value: float) -> str:
    return f"{value:.2g}"
