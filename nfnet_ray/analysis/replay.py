"""What each rule of early stopping would have cost on the curves of a finished study, and what it would have missed.

The decisions are taken by the code that takes them in a study (:mod:`nfnet_ray.study.decisions`), on the accuracies
that the journal has. Every trial has to have been trained to its end: what a trial that was given up would have reached
is unknown.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.decisions import ends
from nfnet_ray.study.halving import FINALISTS, Halving
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import Journal
from nfnet_ray.tracking.labels import ABSENT
from nfnet_ray.wording import agree, count

if TYPE_CHECKING:
    import pandas as pd

ORDERS = 20
"""Random orders in which trials reach a rung, for rules that depend on it."""
DRAWS = 1000
"""Of a random search, which is cheaper to draw."""
ETAS = (2.0, 3.0, 4.0)
LITTLE = 0.005
"""A regret, half a point, that a rule may cost and still be called good."""

_Trained = dict[str, int]
"""{trial: the epochs that a rule would have trained it for}."""


@dataclass(frozen=True)
class _Group:
    """Trials that compete with each other: one seed of the settings of a stratum, as a study of its own."""

    stratum: tuple[Any, ...]
    study: Study
    names: Mapping[str, str]
    """{trial of that study: trial of the journal}."""


@dataclass(frozen=True)
class _Curves:
    """{trial: accuracy after each epoch}, None from where it diverged on; and its training seconds after each epoch."""

    top1: Mapping[str, Sequence[float | None]]
    seconds: Mapping[str, Sequence[float]]
    epochs: int


def replay(record: StudyRecord, orders: int = ORDERS) -> pd.DataFrame:
    """What early stopping and simple searches would have cost, and what they would have chosen.

    * ``synchronous``, ``asynchronous``, ``hyperband``, ``median``: those of :class:`~nfnet_ray.study.halving.Halving`.
    * ``best after epoch i``: every trial trains for i epochs, and the best three of each stratum and seed to the end.
    * ``random``: as many random settings as fit into the cost of ``synchronous, eta 3``, to the end; and twice as many.

    Args:
        orders: how many random orders rules are tried in that depend on which trial is first.

    Returns:
        A row for each rule: ``rule``, ``epochs`` that it trains and their ``share`` of the study's, ``train_seconds``
        by the trials' measured times, ``same`` (share of strata, and of orders, in which it chooses the setting that
        the whole study chooses), ``regret`` (how much more accurate that one is, a fraction, the mean over strata and
        orders), ``regret_low`` and ``regret_high``, its central 95% over ``orders``.

    Raises:
        UserError: not every trial was trained to the end, or trials are not comparable epoch by epoch.
    """
    import pandas as pd

    groups, curves = _groups(record), _curves(record)
    images = record.study["data"]["validation_images"]
    settings = _settings(record)
    rows = [_row("everything", [dict.fromkeys(curves.top1, curves.epochs)], settings, curves)]

    def halved(halving: Halving, times: int) -> list[_Trained]:
        return [
            _merged(_trained(group, halving, curves, images, random.Random(order)) for group in groups)
            for order in range(times)
        ]

    for eta in ETAS:
        rows.append(_row(f"synchronous, eta {eta:g}", halved(Halving(eta=eta), 1), settings, curves))
    default = next(row for row in rows if row["rule"] == f"synchronous, eta {Halving().eta:g}")
    asynchronous = Halving(rule="asynchronous")
    rows.append(
        _row(f"asynchronous, eta {asynchronous.eta:g}", halved(asynchronous, orders), settings, curves)
    )
    rows.append(_row("hyperband", halved(Halving(rule="hyperband"), 1), settings, curves))
    rows.append(_row("median", halved(Halving(rule="median"), orders), settings, curves))
    for epochs in range(1, curves.epochs):
        best = _merged(_best_after(group, epochs, curves) for group in groups)
        rows.append(_row(f"best after epoch {epochs}", [best], settings, curves))
    for factor in (1, 2):
        name = "random" if factor == 1 else "random, twice"
        rows.append(_row(name, _random(settings, factor * default["share"], curves), settings, curves))
    return pd.DataFrame(rows)


def replay_sentence(table: pd.DataFrame) -> str:
    """What :func:`replay` shows, in words: the default rule, and the cheapest that costs little accuracy."""
    by_rule = {row["rule"]: row for row in table.to_dict("records")}
    default = by_rule[f"synchronous, eta {Halving().eta:g}"]
    said = f"Early stopping ({default['rule']}) would have trained {default['share']:.0%} of the epochs and "
    said += (
        "chosen the same setting"
        if default["same"] == 1
        else f"lost {100 * default['regret']:.1f} points by its choice"
    )
    good = [row for row in table.to_dict("records")[1:] if row["regret"] <= LITTLE]
    cheapest = min(good, key=lambda row: row["share"], default=None)
    if cheapest is None:
        return f"{said}; no rule comes within {100 * LITTLE:g} points of the whole study."
    if cheapest["rule"] == default["rule"]:
        return f"{said}; no other rule is cheaper and within {100 * LITTLE:g} points."
    return (
        f"{said}; the cheapest rule within {100 * LITTLE:g} points is {cheapest['rule']} "
        f"({cheapest['share']:.0%} of the epochs, {100 * cheapest['regret']:.1f} points)."
    )


def loses_winner(table: pd.DataFrame) -> float:
    """By how much the default early stopping would have been worse than the whole study, a fraction; 0: not at all."""
    rule = table[table["rule"] == f"synchronous, eta {Halving().eta:g}"]
    return float(rule["regret"].iloc[0])


def _groups(record: StudyRecord) -> list[_Group]:
    """Raises UserError where the curves do not say what another rule would have done."""
    if "schedule.epochs" in record.fields:
        raise UserError(
            "its trials train for different numbers of epochs: nothing can be compared epoch by epoch"
        )
    if record.is_stretched:
        raise UserError(
            "its trials train several schedules (--schedule stretched): its curves have no common epochs"
        )
    cut = record.trials[~record.trials["state"].isin(["finished", "diverged", "failed"])]
    if len(cut):
        raise UserError(
            f"{count(len(cut), 'trial')} of {len(record.trials):,} {agree(len(cut), 'was', 'were')} not trained to the "
            "end, and what they would have reached is unknown: replay a study that was run with --early-stopping none"
        )
    recipe = Recipe.from_values(record.study["recipe"])
    found: dict[tuple[Any, ...], list[Mapping[Hashable, Any]]] = {}
    for trial in record.trials.to_dict("records"):
        found.setdefault((*(trial[field] for field in record.conditions), trial["seed"]), []).append(trial)
    groups = []
    for key, trials in found.items():
        points = tuple(
            {field: trial[field] for field in record.fields if trial[field] is not ABSENT} for trial in trials
        )
        study = Study("replay", record.study["question"], recipe, {}, points=points)
        names = zip(study.trials(), trials, strict=True)
        groups.append(_Group(key[:-1], study, {mine.name: str(theirs["trial"]) for mine, theirs in names}))
    return groups


def _curves(record: StudyRecord) -> _Curves:
    top1: dict[str, list[float | None]] = {name: [] for name in record.trials["trial"]}
    seconds: dict[str, list[float]] = {name: [] for name in top1}
    for row in record.epochs.sort_values("epoch").to_dict("records"):
        accuracy = row[METRIC]
        top1[row["trial"]].append(None if accuracy is None or math.isnan(accuracy) else float(accuracy))
        seconds[row["trial"]].append(float(row.get("train_seconds", math.nan)))
    return _Curves(top1, seconds, record.study["epochs"])


def _trained(
    group: _Group, halving: Halving, curves: _Curves, images: int, chance: random.Random
) -> _Trained:
    """What the rule trains of a group whose trials all run at once and reach their rungs in a random order."""
    study = replace(group.study, halving=halving)
    last, state = ends(study), study.waiting_state()
    recorder = Recorder(cast(Journal, _Unwritten()), state, lambda: None, lambda _said: None)
    legs = Legs(study, images, recorder)
    while True:
        while (leg := legs.next()) is not None:
            legs.start(leg.trial)
        if not legs.running:
            return {group.names[name]: trial.epoch for name, trial in state.trials.items()}
        leg = chance.choice(list(legs.running.values()))
        curve = curves.top1[group.names[leg.trial]]
        lost = next(
            (epoch for epoch in range(leg.until) if epoch >= len(curve) or curve[epoch] is None), None
        )
        if lost is not None:
            if lost > state.trials[leg.trial].epoch:
                recorder.record_epoch(leg.trial, lost, {METRIC: curve[lost - 1]})
            legs.end(leg.trial, "diverged", None)
            continue
        recorder.record_epoch(leg.trial, leg.until, {METRIC: curve[leg.until - 1]})
        if leg.until == last[leg.trial]:
            legs.end(leg.trial, "finished", None)
        else:
            legs.pause(leg.trial)


def _best_after(group: _Group, epochs: int, curves: _Curves) -> _Trained:
    def accuracy(name: str) -> float:
        curve = curves.top1[name]
        value = curve[epochs - 1] if len(curve) >= epochs else None
        return -math.inf if value is None else value

    names = sorted(group.names.values(), key=accuracy, reverse=True)
    return {
        name: min(len(curves.top1[name]), curves.epochs if place < FINALISTS else epochs)
        for place, name in enumerate(names)
    }


_Settings = Mapping[tuple[Any, ...], Mapping[tuple[Any, ...], Sequence[str]]]
"""{stratum: {setting: its trials}}."""


def _settings(record: StudyRecord) -> _Settings:
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], list[str]]] = {}
    for trial in record.trials.to_dict("records"):
        stratum = found.setdefault(tuple(trial[field] for field in record.conditions), {})
        stratum.setdefault(tuple(trial[field] for field in record.fields), []).append(str(trial["trial"]))
    return found


def _random(settings: _Settings, share: float, curves: _Curves) -> list[_Trained]:
    draw = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        trained = dict.fromkeys(curves.top1, 0)
        for rivals in settings.values():
            number = min(len(rivals), max(1, round(share * len(rivals))))
            everyone = list(rivals.values())
            for chosen in draw.choice(len(everyone), number, replace=False):
                trained |= {name: len(curves.top1[name]) for name in everyone[chosen]}
        found.append(trained)
    return found


def _row(rule: str, trained: Sequence[_Trained], settings: _Settings, curves: _Curves) -> dict[str, Any]:
    """One row of the table, from what a rule trains in each order."""
    regrets, same = [], []
    for one in trained:
        lost = [_regret(rivals, one, curves) for rivals in settings.values()]
        known = [value for value in lost if value is not None]
        regrets.append(fmean(known) if known else 0.0)
        same.append(fmean(value == 0 for value in known) if known else 1.0)
    capped = [{name: min(epochs, len(curves.top1[name])) for name, epochs in one.items()} for one in trained]
    epochs = fmean(sum(one.values()) for one in capped)
    whole = sum(map(len, curves.top1.values()))
    low, high = np.quantile(regrets, (0.025, 0.975))
    return {
        "rule": rule,
        "epochs": epochs,
        "share": epochs / whole,
        "train_seconds": fmean(
            math.fsum(curves.seconds[name][epochs - 1] for name, epochs in one.items() if epochs)
            for one in capped
        ),
        "same": fmean(same),
        "regret": fmean(regrets),
        "regret_low": float(low),
        "regret_high": float(high),
        "orders": len(trained),
    }


def _regret(
    rivals: Mapping[tuple[Any, ...], Sequence[str]], trained: _Trained, curves: _Curves
) -> float | None:
    """How much less accurate the chosen setting is than the best one of a stratum, with all seeds and epochs.

    Chosen is the best of those of which every seed was trained to the end; if there are none, of which most were. None
    where no setting finished with every seed.
    """
    accuracy = {
        setting: fmean(value for value in (curves.top1[name][-1] for name in names) if value is not None)
        for setting, names in rivals.items()
        if all(_is_whole(name, curves) for name in names)
    }
    if not accuracy:
        return None

    def seen(setting: tuple[Any, ...]) -> tuple[int, float]:
        complete = [name for name in rivals[setting] if trained[name] >= curves.epochs]
        finals = [curves.top1[name][-1] or 0.0 for name in complete]
        return len(finals), fmean(finals) if finals else -math.inf

    chosen = max(accuracy, key=seen)
    return max(accuracy.values()) - accuracy[chosen]


def _is_whole(name: str, curves: _Curves) -> bool:
    curve = curves.top1[name]
    return len(curve) == curves.epochs and curve[-1] is not None


def _merged(parts: Iterable[_Trained]) -> _Trained:
    return {name: epochs for part in parts for name, epochs in part.items()}


class _Unwritten:
    """In place of a journal: what would have happened is written nowhere."""

    append: Callable[[Any], None] = staticmethod(lambda _event: None)
