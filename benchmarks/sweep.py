"""How much compute does a search need to come close to the best? ``python -m benchmarks.sweep STUDY …``.

Each STUDY is a study of many settings in which every trial was trained to its end, or a folder that ``python -m studies
export`` wrote. Its curves are recorded, so any search can be replayed on them, as if all settings competed with each
other. For each search and number of settings, ``--seeds`` runs that differ in their random numbers say what it costs,
as a share of training every setting to the end, and by how much the setting that it chooses is less accurate than the
best of all. The searches are

* ``random``: random settings, trained to the end; ``random, twice`` has two of them for the cost of one;
* ``tpe`` and ``gp``: the project's, of which each proposal is moved to the nearest setting that was not tried yet, and
  TPE in groups of eight that are stopped early by synchronous halving;
* random settings with each rule of :mod:`nfnet_ray.analysis.replay`, and with Ray's ``AsyncHyperBandScheduler`` as it
  is, which is asked about each result as Ray Tune does, in a random order of trials.

Prints for each search the cheapest number of settings with which it comes, on average, within half a point of the best,
with a 95% interval of its cost from a bootstrap over seeds. Appends a row for each search and number of settings to
``results/sweep.csv``, and one for each search to ``results/sweep_close.csv``. It needs no accelerator and no Ray
cluster.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Row, append_rows
from nfnet_ray.analysis.record import StudyRecord, load_study
from nfnet_ray.analysis.replay import Pool, Trained
from nfnet_ray.command_line.arguments import above_zero, positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.study.halving import FINALISTS, Halving
from nfnet_ray.study.search.result import Result
from nfnet_ray.study.search.searcher import Searcher
from nfnet_ray.study.space import Range, Space, domain_from_json, unconditional

RESULTS = Path(__file__).with_name("results") / "sweep.csv"
CLOSE_RESULTS = RESULTS.with_name("sweep_close.csv")
CLOSE = 0.005
# The target: a fifth of the cost of training every setting to the end.
TARGET = 0.2
SHARES_OF_SETTINGS = (1 / 12, 1 / 8, 1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0)
# As joint_sweep has.
GROUP = 8
BOOTSTRAPS = 2000
# An accuracy whose noise is nothing.
NO_NOISE_IMAGES = 10**9

Floats = NDArray[np.float64]
Rule = Callable[[Pool, random.Random], Trained]
Search = Callable[[int, int], tuple[Pool, Trained]]
"""``search(settings, seed)`` returns the settings that it tried and the epochs of each trial."""


@dataclass(frozen=True)
class Measured:
    """What a search cost and missed: arrays of shape (numbers of settings, seeds).

    Attributes:
        numbers: of settings.
        shares: of the cost of training every setting to the end.
        regrets: by how much the chosen setting is less accurate than the best of all, fractions.
    """

    name: str
    numbers: tuple[int, ...]
    shares: Floats
    regrets: Floats

    def cheapest(self, close: float, seeds: NDArray[np.intp] | None = None) -> tuple[float, int]:
        """(mean share, place in ``numbers``) of the cheapest mean regret up to ``close``; infinite without any."""
        chosen = slice(None) if seeds is None else seeds
        shares, regrets = self.shares[:, chosen].mean(axis=1), self.regrets[:, chosen].mean(axis=1)
        cost = np.where(regrets <= close + 1e-9, shares, math.inf)
        return float(cost.min()), int(cost.argmin())

    def interval(self, close: float) -> tuple[float, float]:
        """95% of the share of :meth:`cheapest`, from a bootstrap over seeds."""
        draw, n = np.random.default_rng(0), self.shares.shape[1]
        found = [self.cheapest(close, draw.integers(n, size=(n,)))[0] for _ in range(BOOTSTRAPS)]
        # Without interpolation: between a number and infinity there is none.
        low, high = np.quantile(found, (0.025, 0.975), method="nearest")
        return float(low), float(high)


def searches(record: StudyRecord, pool: Pool) -> dict[str, Search]:
    """Each search by its name."""
    found = {"random": _random(pool, lambda part, _chance: part.everything())}
    found["random, twice"] = found["random"]
    for name in ("tpe", "gp"):
        try:
            found[name] = _Model(record, pool, name).run
        except UserError:  # a Gaussian process takes only numbers
            continue
    found[f"tpe, synchronous in groups of {GROUP}"] = _Model(record, pool, "tpe", Halving()).run
    for eta in (2.0, 3.0, 4.0):
        found[f"synchronous, eta {eta:g}"] = _random(pool, _halved(Halving(eta=eta)))
    found["synchronous, eta 3, first rung 1"] = _random(pool, _halved(Halving(first_rung=1)))
    found["synchronous, eta 3, noise ignored"] = _random(
        replace(pool, images=NO_NOISE_IMAGES), _halved(Halving())
    )
    found["asynchronous, eta 3"] = _random(pool, _halved(Halving(rule="asynchronous")))
    found["hyperband"] = _random(pool, _halved(Halving(rule="hyperband")))
    found["median"] = _random(pool, _halved(Halving(rule="median")))
    for epoch in range(1, pool.epochs):
        found[f"best {FINALISTS} after epoch {epoch}"] = _random(pool, _best_after(epoch))
    for eta in (3, 4):
        found[f"Ray's ASHA, eta {eta}"] = _random(pool, _ray_asha(eta))
    return found


def _random(pool: Pool, rule: Rule) -> Search:
    """Random settings, trained as the rule says."""

    def run(settings: int, seed: int) -> tuple[Pool, Trained]:
        chance = random.Random(seed)
        part = pool.subset(sorted(chance.sample(range(pool.settings), settings)))
        return part, rule(part, chance)

    return run


def _halved(halving: Halving) -> Rule:
    return lambda pool, chance: pool.halved(halving, [chance])[0]


def _best_after(epoch: int) -> Rule:
    return lambda pool, _chance: pool.best_after(epoch)


class _Model:
    """A search that learns from results, on the settings of a pool.

    Args:
        halving: early stopping of groups of settings, of which each is proposed from the results of those before; None
            trains each setting to the end before the next one is proposed.
    """

    def __init__(self, record: StudyRecord, pool: Pool, name: str, halving: Halving | None = None) -> None:
        self._space: Space = {
            field: domain_from_json(described) for field, described in record.study["space"].items()
        }
        self._pool, self._name, self._halving = pool, name, halving
        self._points = [pool.points[trials[0]] for trials in pool.strata[0]]
        self._searcher(0)
        self._orders: dict[int, list[int]] = {}
        self._trained: dict[int, Trained] = {}

    def run(self, settings: int, seed: int) -> tuple[Pool, Trained]:
        """The first settings of the search with this seed."""
        if seed not in self._orders:
            self._orders[seed], self._trained[seed] = self._all(seed)
        part = self._pool.subset(self._orders[seed][:settings])
        return part, {name: self._trained[seed][name] for name in part.trials}

    def _searcher(self, seed: int) -> Searcher:
        return Searcher(self._name, self._space, self._pool.recipe.with_values({"seed": seed}))

    def _all(self, seed: int) -> tuple[list[int], Trained]:
        """Every setting in the order in which it would be tried, and the epochs of each trial."""
        searcher, chance = self._searcher(seed), random.Random(seed)
        order: list[int] = []
        results: list[Result] = []
        trained: Trained = {}
        at_once = 1 if self._halving is None else GROUP
        left = set(range(len(self._points)))
        while left:
            group: list[int] = []
            while left and len(group) < at_once:
                # The lag: what the group's other settings reach is not known yet.
                proposed = searcher.propose(
                    [*results, *(Result(self._points[n]) for n in group)], len(group) + 1
                )
                if proposed is None:
                    nearest = chance.choice(sorted(left))
                else:
                    nearest = min(sorted(left), key=lambda n: self._distance(proposed, self._points[n]))
                left.remove(nearest)
                group.append(nearest)
            part = self._pool.subset(group)
            epochs = part.everything() if self._halving is None else part.halved(self._halving, [chance])[0]
            trained |= epochs
            order += group
            results += [self._result(n, epochs) for n in group]
        return order, trained

    def _result(self, number: int, trained: Trained) -> Result:
        trials = self._pool.strata[0][number]
        epochs = min(trained[name] for name in trials)
        values = {
            epoch: fmean(self._pool.top1(name, epoch) or 0.0 for name in trials)
            for epoch in range(1, epochs + 1)
        }
        if any(self._pool.top1(name, min(trained[name] + 1, self._pool.epochs)) is None for name in trials):
            return Result(self._points[number], "diverged", values)
        return Result(self._points[number], "finished" if epochs == self._pool.epochs else "given up", values)

    def _distance(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
        return math.fsum(self._apart(field, a.get(field), b.get(field)) ** 2 for field in self._space)

    def _apart(self, field: str, a: Any, b: Any) -> float:
        """How far two values of a field are apart, from 0 to 1."""
        if a == b:
            return 0.0
        domain = unconditional(self._space[field])
        if any(value is None or isinstance(value, str | bool) for value in (a, b)):
            return 1.0
        if isinstance(domain, Range):
            scale: Callable[[float], float] = math.log if domain.log else float
            return abs(scale(a) - scale(b)) / (scale(domain.high) - scale(domain.low))
        if isinstance(domain, tuple):
            numbers = sorted(value for value in domain if value is not None)
            return abs(numbers.index(a) - numbers.index(b)) / max(len(numbers) - 1, 1)
        return 1.0


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
            scheduler.on_trial_add(None, trial)  # pyrefly: ignore[bad-argument-type]
        while running:
            name = chance.choice(list(running))
            top1 = pool.top1(name, trained[name] + 1)
            if top1 is None:  # it diverged
                scheduler.on_trial_remove(None, running.pop(name))  # pyrefly: ignore[bad-argument-type]
                continue
            trained[name] += 1
            result: dict[str, Any] = {"training_iteration": trained[name], METRIC: top1}
            if trained[name] == pool.epochs:
                scheduler.on_trial_complete(None, running.pop(name), result)  # pyrefly: ignore[bad-argument-type]
            elif scheduler.on_trial_result(None, running[name], result) == TrialScheduler.STOP:  # pyrefly: ignore[bad-argument-type]
                del running[name]
        return trained

    return run


def measure(pool: Pool, name: str, search: Search, numbers: Sequence[int], seeds: int) -> Measured:
    """One search with each number of settings."""
    whole = pool.cost(pool.everything())
    counted = 0.5 if name == "random, twice" else 1.0
    shares, regrets = np.zeros((2, len(numbers), seeds))
    for row, number in enumerate(numbers):
        for seed in range(seeds):
            part, trained = search(number, seed)
            shares[row, seed] = counted * pool.cost(trained) / whole
            regrets[row, seed] = fmean(part.regrets(trained) or [pool.best[0] or math.nan])
    return Measured(name, tuple(numbers), shares, regrets)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument(
        "studies", metavar="STUDY", nargs="+", help="a study's folder, or its name under ./runs"
    )
    parser.add_argument(
        "--seeds", type=positive, default=50, metavar="N", help="runs of each search (default: %(default)s)"
    )
    parser.add_argument(
        "--close",
        type=above_zero,
        default=100 * CLOSE,
        metavar="POINTS",
        help="percentage points from the best that count as close to it (default: %(default)s)",
    )
    asked = parser.parse_args(arguments)
    for name in asked.studies:
        _one_study(load_study(name), asked.seeds, asked.close)


def _one_study(record: StudyRecord, seeds: int, close: float) -> None:
    pool = Pool.of(record).as_one_stratum()
    numbers = sorted({max(1, round(share * pool.settings)) for share in SHARES_OF_SETTINGS})
    circumstances: Row = {
        "study": record.study["name"],
        "pool": pool.settings,
        "epochs": pool.epochs,
        "n": seeds,
    }
    found = [measure(pool, name, search, numbers, seeds) for name, search in searches(record, pool).items()]
    append_rows(RESULTS, [row | circumstances for one in found for row in _rows(one)])
    print(
        f"\n{record.study['name']}: {pool.settings} settings × {pool.epochs} epochs, {seeds} seeds of each search."
    )
    print(
        f"The cheapest way to a regret of {close:g} points, as a share of training every setting to the end:"
    )
    rows: list[Row] = []
    for one in sorted(found, key=lambda one: one.cheapest(close / 100)[0]):
        share, place = one.cheapest(close / 100)
        low, high = one.interval(close / 100)
        is_reached = math.isfinite(share)
        row: Row = {
            "search": one.name,
            "close_points": close,
            "settings": one.numbers[place] if is_reached else "",
            "share_of_cost": round(share, 4) if is_reached else "never",
            "share_low": round(low, 4) if math.isfinite(low) else "never",
            "share_high": round(high, 4) if math.isfinite(high) else "never",
            "reaches_a_fifth": "yes" if share <= TARGET else "no",
        }
        rows.append(row | circumstances)
        print(f"  {one.name:36} {_words(share, low, high)}")
    append_rows(CLOSE_RESULTS, rows)


def _rows(measured: Measured) -> list[Row]:
    """A row for each number of settings; the interval of the mean regret is Student's over seeds."""
    from scipy.stats import t

    rows: list[Row] = []
    for number, shares, regrets in zip(measured.numbers, measured.shares, measured.regrets, strict=True):
        n = len(regrets)
        half = float(t.ppf(0.975, n - 1) * regrets.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        rows.append(
            {
                "search": measured.name,
                "settings": number,
                "share_of_cost": round(float(shares.mean()), 4),
                "regret_points": round(100 * float(regrets.mean()), 3),
                "regret_low": round(100 * (float(regrets.mean()) - half), 3),
                "regret_high": round(100 * (float(regrets.mean()) + half), 3),
                "within_half_a_point": round(float((regrets <= CLOSE + 1e-9).mean()), 3),
            }
        )
    return rows


def _words(share: float, low: float, high: float) -> str:
    if not math.isfinite(share):
        return "never" + (f" (95% of bootstraps: from {low:.0%})" if math.isfinite(low) else "")
    reached = "; the target, a fifth, is reached" if share <= TARGET else ""
    return f"{share:.0%} (95% interval {low:.0%} to {f'{high:.0%}' if math.isfinite(high) else 'never'}{reached})"


if __name__ == "__main__":
    main()
