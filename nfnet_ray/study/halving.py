"""Describes the early stopping of a study: where trials are compared, and how many of them continue."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Final, Literal, TypeVar, get_args

from nfnet_ray.command_line.python_arguments import plain
from nfnet_ray.errors import UserError
from nfnet_ray.printable import shown
from nfnet_ray.recipe import Recipe, ScheduleRecipe
from nfnet_ray.settings import did_you_mean
from nfnet_ray.tracking.descriptions import HalvingDescription
from nfnet_ray.tracking.labels import value_label

Rule = Literal["synchronous", "asynchronous", "median", "hyperband"]
RULES: Final[tuple[Rule, ...]] = get_args(Rule)
Unit = Literal["epochs", "seconds", "money"]
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
Schedule = Literal["truncated", "stretched"]
SCHEDULES: Final[tuple[Schedule, ...]] = get_args(Schedule)
OPTIONS = ("first_rung", "unit", "eta", "finalists", "group")

N = TypeVar("N", int, float)

# In theory e is optimal, in practice 3 or 4 (Li et al. 2018, on the choice of eta).
ETA = 3.0
# The answer compares the best setting with those within its noise, which takes more than two complete trials.
FINALISTS = 3
# An accuracy from before the end of the warm-up only shows how well a network copes with the warm-up.
WARMUPS_BEFORE_FIRST_RUNG = 2
# This makes three rungs at eta 3. Earlier rungs would save little, as the trials at the first rung then cost most.
LEAST_SHARE_OF_EPOCHS = 1 / 27


@dataclass(frozen=True)
class Halving:
    """Early stopping: trials pause at a *rung*, where they are compared, and the best 1 / ``eta`` of them continue.

    Trials compete only within a stratum, i.e. with other trials of the same seed and the same conditions. A clip factor
    that suits batch 64 must not stop one that suits batch 256.

    Attributes:
        first_rung: the first rung, in ``unit``; each later rung is ``eta`` times the previous one. None: the larger of
            twice the warm-up and 1/27 of all epochs.
        eta: the share of trials that continue is 1 / ``eta``.
        rule: ``synchronous``: a trial continues as soon as it is certain to be among the best of its rung, whatever the
            others reach, and is given up as soon as it is certain not to be, so the decisions depend only on accuracies
            (Jamieson & Talwalkar 2016). ``asynchronous``: a trial continues when it is among the best 1 / ``eta`` of
            the trials that have reached the rung so far (Li et al. 2020), so decisions depend on the order in which
            trials arrive, and no place has to wait. ``median``: at the first rung and each multiple of it, a trial is
            given up if its accuracy is below the median of the trials that reached the rung before (Golovin et al.
            2017), once there are ``finalists`` of these. ``hyperband``: synchronous, in brackets, each of which starts
            at a later rung (Li et al. 2018).
        finalists: the least number of competing trials (of a stratum, or of a group or bracket within it) that run to
            the end, if there are as many.
        group: the number of trials in each group that competes, in the order of the plan; None: the whole stratum.
        unit: the unit of rungs. ``epochs``; ``seconds`` of the trial's own training: a trial reaches the rung at the
            end of the first epoch at which it has trained for that time; ``money``: the price of those seconds.
        schedule: ``truncated``: at a rung, a trial is within the learning-rate schedule of all its epochs, which it
            then continues. ``stretched``: a trial starts anew for each rung, with a complete schedule that ends there.
        money_seconds: the seconds of training that one unit of money buys; None until the price is known.
    """

    first_rung: float | None = None
    eta: float = ETA
    rule: Rule = "synchronous"
    finalists: int = FINALISTS
    group: int | None = None
    unit: Unit = "epochs"
    schedule: Schedule = "truncated"
    money_seconds: float | None = None

    def __post_init__(self) -> None:
        in_epochs = _is_word(self.unit, ("epochs",))
        is_median = _is_word(self.rule, ("median",))
        wrong = {
            f"rule={shown(self.rule)}": (_is_word(self.rule, RULES), f"one of {', '.join(RULES)}"),
            f"unit={shown(self.unit)}": (_is_word(self.unit, UNITS), f"one of {', '.join(UNITS)}"),
            f"schedule={shown(self.schedule)}": (
                _is_word(self.schedule, SCHEDULES),
                f"one of {', '.join(SCHEDULES)}",
            ),
            f"eta={shown(self.eta)}": (_is_number(self.eta) and 1 < self.eta < math.inf, "a number above 1"),
            f"first_rung={shown(self.first_rung)}": (
                self.first_rung is None or _is_rung(self.first_rung, self.unit),
                "a whole number of epochs, at least 1" if in_epochs else "a number above 0",
            ),
            f"unit={self.unit} without first_rung": (
                in_epochs or self.first_rung is not None,
                f"first_rung=NUMBER, in {self.unit}",
            ),
            f"unit={self.unit} with {self.rule}": (
                in_epochs or self.rule in ("synchronous", "asynchronous"),
                "synchronous or asynchronous",
            ),
            f"--schedule stretched with unit={self.unit}": (
                in_epochs or self.schedule == "truncated",
                "rungs in epochs: how many epochs fit into a time is unknown before they are trained",
            ),
            f"--schedule stretched with {self.rule}": (
                not is_median or self.schedule == "truncated",
                "synchronous, asynchronous or hyperband",
            ),
            f"finalists={shown(self.finalists)}": (
                _is_whole(self.finalists) and self.finalists >= 1,
                "a whole number, at least 1",
            ),
            f"group={shown(self.group)}": (
                self.group is None or (_is_whole(self.group) and self.group >= 2),
                "a whole number, at least 2",
            ),
        }
        for value, (is_right, allowed) in wrong.items():
            if not is_right:
                raise UserError(f"early stopping: {value} is not allowed; use {allowed}")
        for name in ("first_rung", "eta", "finalists", "group"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    def description(self, schedule: ScheduleRecipe) -> HalvingDescription:
        """Returns the description for a journal, in which the first rung is always a number."""
        described: HalvingDescription = {
            "grace_epochs": self.first_rung_of(schedule),
            "reduction_factor": self.eta,
            "rule": self.rule,
            "finalists": self.finalists,
            "cohort": self.group,
        }
        if self.unit != "epochs":
            described["unit"] = self.unit
        if self.unit == "money":
            described["money_seconds"] = self.money_seconds
        if self.is_stretched:
            described["schedule"] = self.schedule
        return described

    def text(self) -> str:
        """Formats the early stopping as the value of ``--early-stopping``.

        >>> Halving(first_rung=2).text(), parse_halving("median:first_rung=3").text()
        ('synchronous:first_rung=2,eta=3,finalists=3', 'median:first_rung=3,eta=3,finalists=3')
        """
        given = {name: getattr(self, name) for name in OPTIONS}
        if self.unit == "epochs":
            del given["unit"]
        options = ",".join(
            f"{name}={value_label(value)}" for name, value in given.items() if value is not None
        )
        return f"{self.rule}:{options}" + (", with stretched schedules" if self.is_stretched else "")

    @staticmethod
    def from_description(described: HalvingDescription) -> Halving:
        """Returns the early stopping that a journal describes. Earlier versions only had asynchronous halving."""
        return Halving(
            first_rung=described["grace_epochs"],
            eta=described["reduction_factor"],
            rule=described.get("rule", "asynchronous"),
            finalists=described.get("finalists", 1),
            group=described.get("cohort"),
            unit=described.get("unit", "epochs"),
            schedule=described.get("schedule", "truncated"),
            money_seconds=described.get("money_seconds"),
        )

    @property
    def in_seconds(self) -> bool:
        """Whether rungs are in seconds of training, to which money is converted."""
        return self.unit != "epochs"

    @property
    def is_stretched(self) -> bool:
        """Whether each rung is the end of a complete learning-rate schedule."""
        return self.schedule == "stretched"

    def priced(self, price_per_hour: float | None, accelerators: float) -> Halving:
        """Returns the same early stopping with ``money_seconds`` set, if its rungs are in money and it is not set yet.

        Args:
            price_per_hour: the price of one accelerator-hour.
            accelerators: the number of accelerators that a trial occupies.

        Raises UserError if a price is needed and not given.
        """
        if self.unit != "money" or self.money_seconds is not None:
            return self
        if price_per_hour is None:
            raise UserError(
                "early stopping: unit=money needs the price of an accelerator-hour: --price-per-hour P"
            )
        return replace(self, money_seconds=3600 / (price_per_hour * accelerators))

    def first_rung_of(self, schedule: ScheduleRecipe) -> float:
        """Returns the first rung of a trial with this schedule, in ``unit``; epochs are returned as an int."""
        if self.first_rung is not None:
            return self.first_rung if self.in_seconds else int(self.first_rung)
        least = max(
            WARMUPS_BEFORE_FIRST_RUNG * schedule.warmup_epochs, schedule.epochs * LEAST_SHARE_OF_EPOCHS
        )
        return max(1, math.ceil(least))

    def rungs(self, schedule: ScheduleRecipe) -> list[int]:
        """Returns the epochs, before the last one, at which trials are compared; only for rungs in epochs."""
        first, last = int(self.first_rung_of(schedule)), schedule.epochs
        if self.rule == "median":
            return list(range(first, last, first))
        rungs: list[int] = []
        rung = float(first)
        while round(rung) < last:
            if not rungs or round(rung) > rungs[-1]:
                rungs.append(round(rung))
            rung *= self.eta
        return rungs

    def ladder(
        self, trials: int, schedule: ScheduleRecipe, bracket: int = 0
    ) -> list[tuple[int, int]] | list[tuple[float, int]]:
        """Returns (rung, number of trials that continue) for each rung of ``trials`` that compete with each other.

        A rung is an epoch or, where rungs are in time or money, seconds of training. With stretched schedules it is the
        length of a schedule. Rungs at which all trials would continue are left out. The actual numbers differ if
        accuracies are within noise of each other or if trials diverge. The rule ``median`` does not fix these numbers
        and may let all trials continue; the numbers returned for it are the least.
        """
        if not self.in_seconds:
            return list(self._thinned(trials, self.rungs(schedule)[bracket:]))
        # Trials take different times, so there is no last rung in seconds. The rungs end where no more trials are given
        # up.
        first = self.first_rung_of(schedule) * (
            1.0 if self.unit == "seconds" else self.money_seconds or math.nan
        )
        seconds = (first * self.eta**number for number in itertools.count())
        return list(self._thinned(trials, seconds))

    def _thinned(self, trials: int, rungs: Iterable[N]) -> Iterator[tuple[N, int]]:
        left = trials
        for number, rung in enumerate(rungs, start=1):
            best = left / 2 if self.rule == "median" else trials / self.eta**number
            kept = min(left, max(self.finalists, math.ceil(best - 1e-9)))
            if kept < left or self.rule == "median":
                yield rung, kept
            left = kept
            if self.in_seconds and left <= self.finalists:
                return

    @property
    def is_certain(self) -> bool:
        """Whether the number of trials that continue is known in advance."""
        return self.rule in ("synchronous", "hyperband")

    def brackets(self, schedule: ScheduleRecipe) -> int:
        """Returns the number of brackets into which a stratum is divided; more than one only with Hyperband."""
        return 1 + len(self.rungs(schedule)) if self.rule == "hyperband" else 1


def with_schedule_of(recipe: Recipe, epochs: int) -> Recipe:
    """Returns the Recipe with its learning-rate schedule stretched or compressed to another number of epochs.

    The curve keeps its shape: the warm-up, the steps of a staircase decay and the growth of the images keep their share
    of the epochs. The peak learning rate is unchanged. Raises RecipeError if images cannot grow in that few epochs.

    >>> short = with_schedule_of(Recipe(), 36).schedule
    >>> Recipe().schedule.warmup_epochs, short.epochs, short.warmup_epochs
    (5.0, 36, 0.5)
    """
    schedule, growth = recipe.schedule, recipe.data.progressive
    if epochs == schedule.epochs:
        return recipe
    share = epochs / schedule.epochs
    changed: dict[str, Any] = {
        "schedule.epochs": epochs,
        "schedule.warmup_epochs": schedule.warmup_epochs * share,
        "schedule.decay_epochs": schedule.decay_epochs * share,
        "data.progressive.start_epoch": round(growth.start_epoch * share),
    }
    if growth.end_epoch is not None:
        changed["data.progressive.end_epoch"] = round(growth.end_epoch * share)
    return recipe.with_values(changed)


def _is_word(value: object, words: Sequence[str]) -> bool:
    return isinstance(value, str) and value in words


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_rung(rung: float, unit: Unit) -> bool:
    return _is_number(rung) and 0 < rung < math.inf and (unit != "epochs" or rung == int(rung))


def parse_halving(text: str) -> Halving | None:
    """Parses the value of ``--early-stopping``; None for ``none``.

    >>> halving = parse_halving("asynchronous:eta=4,first_rung=60,unit=seconds")
    >>> halving.rule, halving.eta, halving.first_rung, halving.unit
    ('asynchronous', 4.0, 60.0, 'seconds')

    Raises UserError for an unknown rule or option, and for a value that is not allowed.
    """
    rule, _, options = text.strip().partition(":")
    if rule == "none":
        if options:
            raise UserError(
                f"early stopping: none stops no trial, so it has no options; leave out {options!r}"
            )
        return None
    if rule not in RULES:
        raise UserError(f"early stopping: {rule!r} is not a rule; {did_you_mean(rule, [*RULES, 'none'])}")
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name not in OPTIONS:
            raise UserError(f"early stopping: {name!r} is not an option; {did_you_mean(name, OPTIONS)}")
        if name in values:
            raise UserError(f"early stopping: {name} is given twice; leave one out")
        if name == "unit":
            values[name] = value
            continue
        number = float if name in ("eta", "first_rung") else int
        try:
            values[name] = number(value)
        except ValueError:
            raise UserError(f"early stopping: {option!r} is not allowed; {name} takes a number") from None
    return Halving(rule=rule, **values)
