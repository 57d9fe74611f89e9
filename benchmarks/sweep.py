"""How much compute does a search need to come close to the best? ``python -m benchmarks.sweep STUDY``.

STUDY is a study of many settings in which every trial was trained to its end; its curves are recorded, so any rule can
be replayed on them. For each rule and number of settings, ``--seeds`` random subsets of that many settings are drawn,
and the rule is replayed on each: what it costs, as a share of training every setting to the end, and by how much the
setting that it chooses is less accurate than the best of all. The rules are those of
:mod:`nfnet_ray.analysis.replay`, random search, and Ray's ``AsyncHyperBandScheduler`` as it is, which is asked about
each result as Ray Tune does, in a random order of trials.

Prints for each rule the cheapest number of settings with which it comes, on average, within half a point of the best,
and appends a row for each rule and number to ``results/sweep.csv``. It needs no accelerator and no Ray cluster.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.record import Row, append_rows
from nfnet_ray.analysis.record import load_study
from nfnet_ray.analysis.replay import Pool, Trained
from nfnet_ray.command_line.arguments import above_zero, positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.metric import METRIC
from nfnet_ray.study.halving import FINALISTS, Halving

RESULTS = Path(__file__).with_name("results") / "sweep.csv"
CLOSE = 0.005
# The target: a fifth of the cost of training every setting to the end.
TARGET = 0.2
SHARES_OF_SETTINGS = (1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)

Rule = Callable[[Pool, random.Random], Trained]


@dataclass(frozen=True)
class Measured:
    """What a rule cost and missed with one number of settings: means over draws, the regret with its standard error."""

    rule: str
    settings: int
    share: float
    regret: float
    regret_error: float
    close: float
    """The share of draws in which the chosen setting was within half a point of the best."""


def rules(epochs: int) -> dict[str, Rule]:
    """Each rule by its name: which epochs of which trials it trains."""
    found: dict[str, Rule] = {"random": lambda pool, _chance: pool.everything()}
    for eta in (2.0, 3.0, 4.0):
        found[f"synchronous, eta {eta:g}"] = _halved(Halving(eta=eta))
    found["asynchronous, eta 3"] = _halved(Halving(rule="asynchronous"))
    found["hyperband"] = _halved(Halving(rule="hyperband"))
    found["median"] = _halved(Halving(rule="median"))
    for epoch in range(1, epochs):
        found[f"best {FINALISTS} after epoch {epoch}"] = _best_after(epoch)
    for eta in (3, 4):
        found[f"Ray's ASHA, eta {eta}"] = _ray_asha(eta)
    return found


def _halved(halving: Halving) -> Rule:
    return lambda pool, chance: pool.halved(halving, chance)


def _best_after(epoch: int) -> Rule:
    return lambda pool, _chance: pool.best_after(epoch)


def _ray_asha(eta: int) -> Rule:
    """Ray's scheduler with its defaults but for eta: grace period 1, one bracket."""

    def run(pool: Pool, chance: random.Random) -> Trained:
        from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

        class Stub:
            def __init__(self, name: str) -> None:
                self.trial_id = name

        scheduler = AsyncHyperBandScheduler(
            metric=METRIC, mode="max", max_t=pool.epochs, grace_period=1, reduction_factor=eta
        )
        trained = dict.fromkeys(pool.trials, 0)
        running = {name: Stub(name) for name in pool.trials}
        for trial in running.values():
            scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        while running:
            name = chance.choice(list(running))
            top1 = pool.top1(name, trained[name] + 1)
            if top1 is None:  # it diverged
                scheduler.on_trial_remove(None, running.pop(name))  # type: ignore[arg-type]
                continue
            trained[name] += 1
            result: dict[str, Any] = {"training_iteration": trained[name], METRIC: top1}
            if trained[name] == pool.epochs:
                scheduler.on_trial_complete(None, running.pop(name), result)  # type: ignore[arg-type]
            elif scheduler.on_trial_result(None, running[name], result) == TrialScheduler.STOP:  # type: ignore[arg-type]
                del running[name]
        return trained

    return run


def measure(pool: Pool, name: str, rule: Rule, settings: int, seeds: int) -> Measured:
    """One rule with one number of settings."""
    shares, regrets = [], []
    for seed in range(seeds):
        chance = random.Random(seed)
        part = pool.subset(sorted(chance.sample(range(pool.settings), settings)))
        trained = rule(part, chance)
        shares.append(pool.cost(trained) / pool.cost(pool.everything()))
        regrets.append(fmean(part.regrets(trained)))
    error = float(np.std(regrets, ddof=1) / math.sqrt(seeds)) if seeds > 1 else math.nan
    return Measured(name, settings, fmean(shares), fmean(regrets), error, fmean(r <= CLOSE for r in regrets))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("study", metavar="STUDY", help="a study's folder, or its name under ./runs")
    parser.add_argument(
        "--seeds", type=positive, default=50, metavar="N", help="draws (default: %(default)s)"
    )
    parser.add_argument(
        "--close", type=above_zero, default=100 * CLOSE, metavar="POINTS", help="default: %(default)s"
    )
    asked = parser.parse_args(arguments)
    record = load_study(asked.study)
    pool = Pool.of(record)
    numbers = sorted({max(1, round(share * pool.settings)) for share in SHARES_OF_SETTINGS})
    rows: list[Row] = []
    cheapest: dict[str, Measured | None] = {}
    for name, rule in rules(pool.epochs).items():
        measured = [measure(pool, name, rule, number, asked.seeds) for number in numbers]
        rows += [
            {
                "study": record.study["name"],
                "pool": pool.settings,
                "epochs": pool.epochs,
                "rule": one.rule,
                "settings": one.settings,
                "share_of_cost": round(one.share, 4),
                "regret_points": round(100 * one.regret, 3),
                "regret_error_points": round(100 * one.regret_error, 3),
                "within_half_a_point": round(one.close, 3),
                "n": asked.seeds,
            }
            for one in measured
        ]
        close = [one for one in measured if 100 * one.regret <= asked.close]
        cheapest[name] = min(close, key=lambda one: one.share, default=None)
    append_rows(RESULTS, rows)
    print(
        f"\n{pool.settings} settings × {pool.epochs} epochs. The cheapest way to a regret of {asked.close:g} points:"
    )
    for name, one in sorted(cheapest.items(), key=lambda item: item[1].share if item[1] else math.inf):
        print(f"  {name:24} " + (_words(one) if one else "never"))


def _words(one: Measured) -> str:
    reached = " (the target, a fifth, is reached)" if one.share <= TARGET else ""
    return f"{one.settings:3} settings, {one.share:.0%} of the cost, regret {100 * one.regret:.2f} points{reached}"


if __name__ == "__main__":
    main()
