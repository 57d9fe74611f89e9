"""Computes what each rule of early stopping would have cost on the curves of a finished study, and what it would miss.

The decisions are made by the same code as in a study (:mod:`nfnet_ray.study.decisions`), on the accuracies in the
journal. The further course of trials that were given up is unknown, so their settings are left out, and the numbers
refer to a study of the other settings. Further seeds of contenders are left out as well: they pass no rung, and another
rule would have led to other contenders.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nfnet_ray.analysis.setting import trials_by_setting
from nfnet_ray.analysis.tables import StudyTables
from nfnet_ray.analysis.verdict import EQUAL_WITHIN
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.decisions import Decider, Leg, ends, has_ended
from nfnet_ray.study.halving import FINALISTS, Halving
from nfnet_ray.study.legs import Legs, record_decision
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import TrialOutcome, trial_paused
from nfnet_ray.tracking.journal import Journal
from nfnet_ray.tracking.labels import without_absent
from nfnet_ray.wording import agree, as_points, count, in_points

if TYPE_CHECKING:
    import pandas as pd

ORDERS = 20
"""The number of random orders in which trials reach a rung, for rules that depend on the order."""
DRAWS = 1000
"""The number of draws of a random search, which is cheaper to simulate."""
ETAS = (2.0, 3.0, 4.0)
_DEFAULT = f"synchronous, eta {Halving().eta:g}"
# Rules that wait until it is certain whether a trial is among the best of its rung, so the order does not matter.
_WHATEVER_THE_ORDER = ("synchronous", "hyperband")
ENDED_AS_THEY_WOULD = ("finished", "diverged", "failed")
"""States of trials that ended as they would have without early stopping."""

Trained = dict[str, int]
"""{trial: number of epochs for which a rule would have trained it}."""


@dataclass(frozen=True)
class _Group:
    """Trials that compete with each other: one seed of the settings of a stratum."""

    points: tuple[Mapping[str, Any], ...]
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """The settings of a study that trained every trial to its end, with their recorded curves.

    Attributes:
        recipe: the study's Recipe.
        images: the number of validation images, from which the noise of an accuracy is computed.
        epochs: the number of epochs of each trial.
        curves: {trial: top-1 after each epoch, a fraction}; after a divergence the values are missing or None.
        seconds: {trial: seconds of training after each epoch}.
        strata: the settings of each stratum, each as a tuple of its trials in the same order of seeds.
        points: {trial: its point}.
        best: the accuracy of the best setting of each stratum in the whole study; None if no setting has finished all
            its seeds.
        left_out: the number of settings that are left out because one of their trials was not trained to its end.
        further: the number of contenders' further trials that are left out.
        equal_within: a loss of accuracy, a fraction, that does not matter (``--equal-within``).
    """

    recipe: Recipe
    images: int
    epochs: int
    curves: Mapping[str, Sequence[float | None]]
    seconds: Mapping[str, Sequence[float]]
    strata: tuple[tuple[tuple[str, ...], ...], ...]
    points: Mapping[str, Mapping[str, Any]]
    best: tuple[float | None, ...]
    left_out: int = 0
    further: int = 0
    equal_within: float = EQUAL_WITHIN

    @staticmethod
    def of(record: StudyTables) -> Pool:
        """Creates the pool. Raises UserError if the curves do not show what another rule would have done."""
        _check(record)
        curves: dict[str, list[float | None]] = {name: [] for name in record.trials["trial"]}
        seconds: dict[str, list[float]] = {name: [] for name in curves}
        epochs = record.epochs.sort_values("epoch")
        train_seconds = epochs.get("train_seconds", [math.nan] * len(epochs))
        for trial, accuracy, spent in zip(epochs["trial"], epochs[METRIC], train_seconds, strict=True):
            curves[trial].append(None if accuracy is None or math.isnan(accuracy) else float(accuracy))
            seconds[trial].append(float(spent))
        strata: dict[tuple[Any, ...], list[tuple[str, ...]]] = {}
        points = {}
        left_out = 0
        for point, every in trials_by_setting(record):
            trials = [trial for trial in every if trial["trial"] not in record.further]
            if not trials:
                continue
            if not all(trial["state"] in ENDED_AS_THEY_WOULD for trial in trials):
                left_out += 1
                continue
            stratum = tuple(point[field] for field in record.conditions)
            strata.setdefault(stratum, []).append(tuple(str(trial["trial"]) for trial in trials))
            points.update(dict.fromkeys(strata[stratum][-1], without_absent(point)))
        most = max(map(len, strata.values()), default=0)
        if left_out and most <= FINALISTS:
            raise UserError(
                f"{count(left_out, 'setting')} of {left_out + sum(map(len, strata.values())):,} "
                f"{agree(left_out, 'was', 'were')} not trained to the end, and what "
                f"{agree(left_out, 'it', 'they')} would have reached is "
                f"unknown; of the others at most {most} compete with each other, and every rule trains {FINALISTS} to "
                "the end: replay a study that was run with --early-stopping none"
            )
        pool = Pool(
            recipe=Recipe.from_any_version(record.study["recipe"]),  # no field of the Recipe changes a rule
            images=record.study["data"]["validation_images"],
            epochs=record.study["epochs"],
            curves=curves,
            seconds=seconds,
            strata=tuple(map(tuple, strata.values())),
            points=points,
            best=(),
            left_out=left_out,
            further=sum(trial in record.further for trial in record.trials["trial"]),
            equal_within=record.study.get("equal_within", EQUAL_WITHIN),
        )
        best = (
            max((a for a in map(pool.accuracy, settings) if a is not None), default=None)
            for settings in pool.strata
        )
        return replace(pool, best=tuple(best))

    @property
    def settings(self) -> int:
        """The number of settings of a stratum; the smallest one if they differ."""
        return min(map(len, self.strata))

    @property
    def trials(self) -> list[str]:
        """The names of all trials."""
        return [name for settings in self.strata for names in settings for name in names]

    def subset(self, numbers: Sequence[int]) -> Pool:
        """Returns a pool of the settings with these indices in each stratum; :attr:`best` is unchanged."""
        return replace(
            self, strata=tuple(tuple(settings[number] for number in numbers) for settings in self.strata)
        )

    def as_one_stratum(self) -> Pool:
        """Returns a pool in which all settings compete with each other, whatever their conditions."""
        best = max((accuracy for accuracy in self.best if accuracy is not None), default=None)
        return replace(
            self, strata=(tuple(names for settings in self.strata for names in settings),), best=(best,)
        )

    def top1(self, trial: str, epoch: int) -> float | None:
        """Returns the accuracy after an epoch, counted from 1; None if the trial had diverged."""
        curve = self.curves[trial]
        return curve[epoch - 1] if len(curve) >= epoch else None

    def accuracy(self, trials: Sequence[str]) -> float | None:
        """Returns the mean over seeds after the last epoch; None unless every seed was trained to the end."""
        values = [self.top1(name, self.epochs) for name in trials]
        return None if None in values else fmean(cast(list[float], values))

    def everything(self) -> Trained:
        """Returns {trial: its epochs} of the study without early stopping."""
        return {name: len(self.curves[name]) for name in self.trials}

    def halved(self, halving: Halving, chances: Iterable[random.Random]) -> list[Trained]:
        """Simulates early stopping once for each of ``chances``.

        All competing trials run at once and reach rungs in a random order.
        """
        studies = [
            (group, Study("replay", "?", self.recipe, {}, points=group.points, halving=halving))
            for group in self._groups()
        ]
        return [
            _merged(self._halved(group, study, halving, chance) for group, study in studies)
            for chance in chances
        ]

    def best_after(self, epochs: int) -> Trained:
        """Simulates training every trial for some epochs, and the best three of each stratum and seed to the end."""

        def accuracy(name: str) -> float:
            value = self.top1(name, epochs)
            return -math.inf if value is None else value

        trained = {}
        for group in self._groups():
            for place, name in enumerate(sorted(group.trials, key=accuracy, reverse=True)):
                trained[name] = min(len(self.curves[name]), self.epochs if place < FINALISTS else epochs)
        return trained

    def at_random(self, settings: int, draw: np.random.Generator) -> Trained:
        """Simulates training some settings of each stratum, with every seed and to the end."""
        trained = dict.fromkeys(self.trials, 0)
        for rivals in self.strata:
            for chosen in draw.choice(len(rivals), min(settings, len(rivals)), replace=False):
                trained |= {name: len(self.curves[name]) for name in rivals[chosen]}
        return trained

    def cost(self, trained: Trained) -> int:
        """Returns the number of epochs; trials that diverged count up to their divergence."""
        return sum(min(epochs, len(self.curves[name])) for name, epochs in trained.items())

    def train_seconds(self, trained: Trained) -> float:
        """Returns the training seconds by the measured times of the trials."""
        epochs = {name: min(number, len(self.curves[name])) for name, number in trained.items()}
        return math.fsum(self.seconds[name][number - 1] for name, number in epochs.items() if number)

    def regrets(self, trained: Trained) -> list[float]:
        """Returns for each stratum the accuracy of the study's best setting minus that of the chosen one.

        The chosen setting is the best of those whose seeds were all trained to the end or, if there are none, of those
        with the most such seeds. Both accuracies are those with all seeds and epochs. Strata without a setting that
        could be chosen are left out.
        """
        found = []
        for rivals, best in zip(self.strata, self.best, strict=True):
            sound = [names for names in rivals if self.accuracy(names) is not None]
            if sound and best is not None:
                chosen = max(sound, key=lambda names: self._seen(names, trained))
                found.append(best - cast(float, self.accuracy(chosen)))
        return found

    def _seen(self, trials: Sequence[str], trained: Trained) -> tuple[int, float]:
        finals = [self.top1(name, self.epochs) or 0.0 for name in trials if trained[name] >= self.epochs]
        return len(finals), fmean(finals) if finals else -math.inf

    def _groups(self) -> Iterator[_Group]:
        for rivals in self.strata:
            for seed in range(max(map(len, rivals))):
                names = tuple(trials[seed] for trials in rivals if seed < len(trials))
                yield _Group(tuple(self.points[name] for name in names), names)

    def _halved(self, group: _Group, study: Study, halving: Halving, chance: random.Random) -> Trained:
        theirs = dict(zip((trial.name for trial in study.trials()), group.trials, strict=True))
        last, state = ends(study), study.waiting_state()
        recorder = Recorder(cast(Journal, _Unwritten()), state, lambda: None, lambda _said: None)

        def train(leg: Leg) -> TrialOutcome | None:
            """Trains to the end of a leg. Returns how the trial has ended; None if it has not ended."""
            name, before = theirs[leg.trial], state.trials[leg.trial].epoch
            lost = next(
                (epoch for epoch in range(before, leg.until) if self.top1(name, epoch + 1) is None), None
            )
            if lost is None:
                recorder.record_epoch(leg.trial, leg.until, {METRIC: self.top1(name, leg.until)})
                return "finished" if leg.until == last[leg.trial] else None
            if lost > before:
                recorder.record_epoch(leg.trial, lost, {METRIC: self.top1(name, lost)})
            return "diverged"

        if halving.rule in _WHATEVER_THE_ORDER:
            _all_at_once(Decider(study, self.images), recorder, train)
        else:
            _one_by_one(Legs(study, self.images, recorder), train, chance)
        return {theirs[name]: trial.epoch for name, trial in state.trials.items()}


def replay(record: StudyTables, orders: int = ORDERS) -> pd.DataFrame:
    """Returns what early stopping and simple searches would have cost, and what they would have chosen.

    * ``synchronous``, ``asynchronous``, ``hyperband``, ``median``: the rules of
      :class:`~nfnet_ray.study.halving.Halving`.
    * ``best after epoch i``: every trial trains for i epochs, and the best three of each stratum and seed to the end.
    * ``random``: as many random settings as fit into the cost of ``synchronous, eta 3``, trained to the end; and twice
      as many.

    Args:
        orders: the number of random orders that are tried for rules that depend on which trial is first.

    Returns:
        A row for each rule: ``rule``, ``epochs`` that it trains and their ``share`` of the study's, ``train_seconds``
        by the trials' measured times, ``same`` (share of strata, and of orders, in which it chooses the setting that
        the whole study chooses), ``missed`` (the share in which its choice loses more than the study's
        ``--equal-within``), ``regret`` (the difference in accuracy between the two settings, a fraction, the mean over
        strata and orders), ``regret_low`` and ``regret_high``, its central 95% over ``orders``.

    Raises:
        UserError: too few settings were trained to the end, or trials are not comparable epoch by epoch.
    """
    import pandas as pd

    pool = Pool.of(record)

    def halved(halving: Halving, times: int) -> list[Trained]:
        return pool.halved(halving, map(random.Random, range(times)))

    trained = {"everything": [pool.everything()]}
    trained |= {f"synchronous, eta {eta:g}": halved(Halving(eta=eta), 1) for eta in ETAS}
    asynchronous = Halving(rule="asynchronous")
    trained[f"asynchronous, eta {asynchronous.eta:g}"] = halved(asynchronous, orders)
    trained["hyperband"] = halved(Halving(rule="hyperband"), 1)
    trained["median"] = halved(Halving(rule="median"), orders)
    trained |= {f"best after epoch {epoch}": [pool.best_after(epoch)] for epoch in range(1, pool.epochs)}
    share = pool.cost(trained[_DEFAULT][0]) / pool.cost(pool.everything())
    for name, factor in (("random", 1), ("random, twice", 2)):
        draw, number = np.random.default_rng(0), max(1, round(factor * share * pool.settings))
        trained[name] = [pool.at_random(number, draw) for _ in range(DRAWS)]
    return pd.DataFrame([_row(rule, tries, pool) for rule, tries in trained.items()])


def replay_caution(record: StudyTables) -> str:
    """Describes in sentences what was left out; empty if nothing was. Raises UserError as :func:`replay` does."""
    pool = Pool.of(record)
    said = []
    if pool.left_out:
        kept = sum(map(len, pool.strata))
        said.append(
            f"{count(pool.left_out, 'setting')} of {kept + pool.left_out:,} {agree(pool.left_out, 'was', 'were')} not "
            f"trained to the end and {agree(pool.left_out, 'is', 'are')} left out: the numbers are those of a study of "
            f"the other {kept:,} alone. Early stopping chose these, so they are more alike than all settings, and what "
            "rules would save and lose among all of them is unknown."
        )
    if pool.further:
        said.append(
            f"{count(pool.further, 'further trial')} of contenders {agree(pool.further, 'is', 'are')} left out, as "
            "further seeds pass no rung: the numbers are those of the seeds that every setting has."
        )
    return " ".join(said)


def replay_sentence(table: pd.DataFrame, equal_within: float = EQUAL_WITHIN) -> str:
    """Summarises the result of :func:`replay`: the default rule, and the cheapest rule that costs little accuracy.

    ``equal_within``: a regret, as a fraction, that does not matter; a study has its own value (``--equal-within``).
    """
    by_rule = {row["rule"]: row for row in table.to_dict("records")}
    default, points = by_rule[_DEFAULT], as_points(f"{100 * equal_within:g}")
    said = f"Early stopping ({default['rule']}) would have trained {default['share']:.0%} of the epochs and "
    if default["same"] == 1:
        said += "chosen the same setting"
    elif default["missed"] == 0:
        said += f"chosen one that is equal in practice ({in_points(default['regret'])} less)"
    else:
        said += f"lost {in_points(default['regret'])} by its choice"
    good = [row for row in table.to_dict("records")[1:] if row["regret"] <= equal_within + 1e-9]
    cheapest = min(good, key=lambda row: (row["share"], row["rule"] != default["rule"]), default=None)
    if cheapest is None:
        return f"{said}; no rule comes within {points} of the whole study."
    if cheapest["rule"] == default["rule"]:
        return f"{said}; no other rule is cheaper and within {points}."
    return (
        f"{said}; the cheapest rule within {points} is {cheapest['rule']} "
        f"({cheapest['share']:.0%} of the epochs, {in_points(cheapest['regret'])})."
    )


def _check(record: StudyTables) -> None:
    if "schedule.epochs" in record.fields:
        raise UserError(
            "its trials train for different numbers of epochs: nothing can be compared epoch by epoch"
        )
    if record.is_stretched:
        raise UserError(
            "its trials train several schedules (--schedule stretched): its curves have no common epochs"
        )


def _row(rule: str, trained: Sequence[Trained], pool: Pool) -> dict[str, Any]:
    """Returns one row of the table, from the epochs that a rule trains in each order."""
    lost = [pool.regrets(one) for one in trained]
    regrets = [fmean(one) if one else 0.0 for one in lost]
    epochs = fmean(map(pool.cost, trained))
    low, high = np.quantile(regrets, (0.025, 0.975))
    return {
        "rule": rule,
        "epochs": epochs,
        "share": epochs / pool.cost(pool.everything()),
        "train_seconds": fmean(map(pool.train_seconds, trained)),
        "same": fmean(fmean(regret == 0 for regret in one) if one else 1.0 for one in lost),
        "missed": fmean(fmean(r > pool.equal_within + 1e-9 for r in one) if one else 0.0 for one in lost),
        "regret": fmean(regrets),
        "regret_low": float(low),
        "regret_high": float(high),
        "orders": len(trained),
    }


def _all_at_once(decider: Decider, recorder: Recorder, train: Callable[[Leg], TrialOutcome | None]) -> None:
    """Brings all trials to their rungs before deciding, which needs far fewer decisions."""
    trials = recorder.state.trials.values()
    while waiting := [trial for trial in trials if not has_ended(trial, ())]:
        for trial in waiting:
            leg = decider.leg(trial)
            if (outcome := train(leg)) is not None:
                recorder.end_trial(leg.trial, outcome, None)
            else:
                recorder.record(trial_paused(leg.trial, leg.until, leg.until_seconds))
        while decisions := decider.decisions(recorder.state, (), ()):
            for decision in decisions:
                record_decision(recorder, decision, decider.where(decision))


def _one_by_one(legs: Legs, train: Callable[[Leg], TrialOutcome | None], chance: random.Random) -> None:
    """Runs all trials at once and brings them to their rungs in a random order."""
    while True:
        while (leg := legs.next()) is not None:
            legs.start(leg.trial)
        if not legs.running:
            return
        leg = chance.choice(list(legs.running.values()))
        if (outcome := train(leg)) is not None:
            legs.end(leg.trial, outcome, None)
        else:
            legs.pause(leg.trial)


def _merged(parts: Iterable[Trained]) -> Trained:
    return {name: epochs for part in parts for name, epochs in part.items()}


class _Unwritten:
    """A journal that discards its events, because simulated events are not recorded."""

    append: Callable[[Any], None] = staticmethod(lambda _event: None)
