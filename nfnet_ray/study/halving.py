"""Early stopping as a study describes it: at which epochs trials are compared, and how many of them continue."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import ScheduleRecipe
from nfnet_ray.settings import did_you_mean
from nfnet_ray.tracking.events import HalvingDescription

Rule = Literal["synchronous", "asynchronous", "median", "hyperband"]
RULES: Final[tuple[Rule, ...]] = get_args(Rule)
OPTIONS = ("first_rung", "eta", "finalists", "cohort")

# Theory gives e, and practice 3 or 4 (Li et al. 2018, on the choice of eta).
ETA = 3.0
# The answer names the best setting and what is within its noise: that takes more than two complete trials.
FINALISTS = 3
# Before the end of the warm-up an accuracy says how a network bears the warm-up.
WARMUPS_BEFORE_FIRST_RUNG = 2
# Three rungs at eta 3. Earlier ones save little more: the trials at the first rung then cost most.
LEAST_SHARE_OF_EPOCHS = 1 / 27


@dataclass(frozen=True)
class Halving:
    """Trials run to a *rung*, an epoch at which they are compared, and pause there; the best 1 / ``eta`` continue.

    Trials compete within a stratum alone: with other trials of the same seed and the same conditions. A factor that
    suits batch 64 must not end one that suits batch 256.

    Attributes:
        first_rung: the epoch of the first rung; the others follow at ``eta`` times the one before. None: the larger of
            twice the warm-up and 1/27 of all epochs.
        eta: the share of trials that continue is 1 / ``eta``.
        rule: ``synchronous``: a trial continues as soon as it is certain to be among the best of its rung, whatever the
            others reach, and is given up as soon as it is certain not to be, so the decisions depend on accuracies
            alone (Jamieson & Talwalkar 2016). ``asynchronous``: a trial continues when it is among the best 1 / ``eta``
            of those that have reached the rung so far (Li et al. 2020), so decisions depend on who is first, and no
            place ever waits. ``median``: at the first rung and each of its multiples a trial ends whose accuracy is
            below the median of those that had been there before it (Golovin et al. 2017), once ``finalists`` had.
            ``hyperband``: synchronous, in brackets of which each starts at a later rung (Li et al. 2018).
        finalists: of the trials that compete with each other (a stratum, or a cohort or bracket of it) at least this
            number runs to the end, if there are as many.
        cohort: trials compete in groups of this number, in the order of the plan; None: all of a stratum.
    """

    first_rung: int | None = None
    eta: float = ETA
    rule: Rule = "synchronous"
    finalists: int = FINALISTS
    cohort: int | None = None

    def __post_init__(self) -> None:
        wrong = {
            f"rule={self.rule!r}": (self.rule in RULES, f"one of {', '.join(RULES)}"),
            f"eta={self.eta!r}": (self.eta > 1, "a number above 1"),
            f"first_rung={self.first_rung!r}": (
                self.first_rung is None or self.first_rung >= 1,
                "at least 1",
            ),
            f"finalists={self.finalists!r}": (self.finalists >= 1, "at least 1"),
            f"cohort={self.cohort!r}": (self.cohort is None or self.cohort >= 2, "at least 2"),
        }
        for value, (is_right, allowed) in wrong.items():
            if not is_right:
                raise UserError(f"early stopping: {value} is not allowed; use {allowed}")

    def description(self, schedule: ScheduleRecipe) -> HalvingDescription:
        """The description in a journal, in which the first rung is a number."""
        return {
            "grace_epochs": self.first_rung_of(schedule),
            "reduction_factor": self.eta,
            "rule": self.rule,
            "finalists": self.finalists,
            "cohort": self.cohort,
        }

    @staticmethod
    def from_description(described: HalvingDescription) -> Halving:
        """What a journal describes. Earlier versions had nothing but asynchronous halving."""
        return Halving(
            first_rung=described["grace_epochs"],
            eta=described["reduction_factor"],
            rule=described.get("rule", "asynchronous"),
            finalists=described.get("finalists", 1),
            cohort=described.get("cohort"),
        )

    def first_rung_of(self, schedule: ScheduleRecipe) -> int:
        """The epoch of the first rung of a trial with this schedule."""
        if self.first_rung is not None:
            return self.first_rung
        least = max(
            WARMUPS_BEFORE_FIRST_RUNG * schedule.warmup_epochs, schedule.epochs * LEAST_SHARE_OF_EPOCHS
        )
        return max(1, math.ceil(least))

    def rungs(self, schedule: ScheduleRecipe) -> list[int]:
        """The epochs, before the last one, at which trials are compared."""
        first, last = self.first_rung_of(schedule), schedule.epochs
        if self.rule == "median":
            return list(range(first, last, first))
        rungs: list[int] = []
        rung = float(first)
        while round(rung) < last:
            if not rungs or round(rung) > rungs[-1]:
                rungs.append(round(rung))
            rung *= self.eta
        return rungs

    def ladder(self, trials: int, schedule: ScheduleRecipe, bracket: int = 0) -> list[tuple[int, int]]:
        """(epoch of a rung, number of trials that continue after it) of ``trials`` that compete with each other.

        Rungs at which all would continue are left out. Trials that are within noise of each other, or that diverge,
        change the numbers. The rule ``median`` has no such numbers, and may let all continue: these are the least.
        """
        ladder, left = [], trials
        for number, rung in enumerate(self.rungs(schedule)[bracket:], start=1):
            best = left / 2 if self.rule == "median" else trials / self.eta**number
            kept = min(left, max(self.finalists, math.ceil(best - 1e-9)))
            if kept < left or self.rule == "median":
                ladder.append((rung, kept))
            left = kept
        return ladder

    @property
    def is_certain(self) -> bool:
        """Whether the number of trials that continue is known beforehand."""
        return self.rule in ("synchronous", "hyperband")

    def brackets(self, schedule: ScheduleRecipe) -> int:
        """Into how many brackets the trials of a stratum are dealt: one but for Hyperband."""
        return 1 + len(self.rungs(schedule)) if self.rule == "hyperband" else 1


def parse_halving(text: str) -> Halving | None:
    """Early stopping as ``--early-stopping`` names it; None for ``none``.

    >>> parse_halving("asynchronous:eta=4,first_rung=2")
    Halving(first_rung=2, eta=4.0, rule='asynchronous', finalists=3, cohort=None)

    Raises UserError for a rule or an option that does not exist, and for a value that is not allowed.
    """
    rule, _, options = text.strip().partition(":")
    if rule == "none" and not options:
        return None
    if rule not in RULES:
        raise UserError(f"early stopping: {rule!r} is no rule; {did_you_mean(rule, [*RULES, 'none'])}")
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        number = float if name == "eta" else int
        if name not in OPTIONS:
            raise UserError(f"early stopping: {name!r} is no option; {did_you_mean(name, OPTIONS)}")
        try:
            values[name] = number(value)
        except ValueError:
            raise UserError(f"early stopping: {option!r} is not allowed; {name} takes a number") from None
    return Halving(rule=rule, **values)
