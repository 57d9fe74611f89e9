"""What a search proposes is a function of the space, the number and the earlier results. Takes about 20 s.

Most of that is the import of torch for Optuna's Gaussian process.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study import Study
from nfnet_ray.study.search import searcher as searcher_module
from nfnet_ray.study.search.axes import point_key
from nfnet_ray.study.search.first_points import best_points, best_values, first_points, point_within
from nfnet_ray.study.search.model import startup_points, told_study
from nfnet_ray.study.search.result import Result, result_of
from nfnet_ray.study.search.searcher import SEARCHES, Searcher, default_search
from nfnet_ray.study.space import Range, SameAs, Space, When, all_values
from nfnet_ray.tracking.trial_progress import TrialProgress
from tests.tracking.example_study import agc_sweep, state_of

CLIP, BATCH, SHAPE = "optimizer.agc.clip_factor", "batch_size", "schedule.shape"
RHO, SHARE = "optimizer.sam.rho", "optimizer.sam.ascent_share"
RECIPE = Recipe()
NUMBERS: Space = {CLIP: Range(0.002, 0.3, log=True), BATCH: (64, 256, 1024)}
CONDITIONS: Space = {
    CLIP: Range(0.002, 0.3, log=True, or_none=True),
    BATCH: (64, 256),
    SHAPE: ("cosine", "staircase"),
    RHO: (None, 0.05, 0.1),
    SHARE: When(Range(0.1, 1.0), RHO),
    "micro_batches": SameAs(BATCH),
}


def height(point: Mapping[str, Any]) -> float:
    """A top-1 whose best is a clip factor of 0.03 at batch 256; without clipping there is none."""
    distance = abs(math.log10(point[CLIP] or 1e-9) - math.log10(0.03))
    return 0.9 - 0.2 * distance - 0.1 * abs(math.log2(point[BATCH] / 256))


def result_at(point: Mapping[str, Any], search: str) -> Result:
    """With the Gaussian process, which looks at finished settings alone, nothing is given up."""
    if point[CLIP] is None:
        return Result(point, "diverged", {1: 0.1})
    top1 = height(point)
    if top1 < 0.6 and search != "gp":
        return Result(point, "given up", {1: top1 / 2, 3: top1})
    return Result(point, "finished", {1: top1 / 2, 3: top1, 8: top1})


def searched(
    search: str,
    space: Space,
    number: int,
    lag: int = 2,
    told: Callable[[list[Result]], list[Result]] = lambda results: results,
) -> list[Result]:
    """The results of the first ``number`` proposals; ``told`` may change what the searcher is shown."""
    searcher, results = Searcher(search, space, RECIPE), list[Result]()
    while len(results) < number:
        point = searcher.propose(told(results), lag)
        assert point is not None
        results.append(result_at(point, search))
    return results


def points_of(results: Sequence[Result]) -> list[str]:
    return [point_key(result.point) for result in results]


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("space", [NUMBERS, CONDITIONS], ids=["numbers", "conditions"])
def test_a_proposal_waits_for_no_result_after_number_j_minus_q(space: Space, lag: int) -> None:
    draw = random.Random(lag)

    def any_arrival(results: list[Result]) -> list[Result]:
        """Of the last q - 1 settings, some have ended, with whatever values."""
        known = max(0, len(results) - lag + 1)
        late = [
            draw.choice([Result(result.point), result, Result(result.point, "finished", {8: draw.random()})])
            for result in results[known:]
        ]
        return [*results[:known], *late]

    expected = points_of(searched("tpe", space, 16, lag))
    for _ in range(3):
        assert points_of(searched("tpe", space, 16, lag, any_arrival)) == expected


def test_a_proposal_depends_on_the_results_that_it_may_see() -> None:
    results = searched("tpe", NUMBERS, 12)
    searcher = Searcher("tpe", NUMBERS, RECIPE)
    others = [Result(result.point, "finished", {8: 1 - height(result.point)}) for result in results]
    assert searcher.propose(results, 2) != searcher.propose(others, 2)


FAR_AWAY = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from tests.quick import test_search
print(json.dumps(test_search.fingerprint()))
"""


def fingerprint() -> dict[str, list[str]]:
    """Points of every searcher, with the fields of the space in an order that depends on the hash of strings."""
    numbers = {name: NUMBERS[name] for name in set(NUMBERS)}
    conditions = {name: CONDITIONS[name] for name in set(CONDITIONS)}
    return {
        "sobol": points_of(searched("sobol", conditions, 8)),
        "random": points_of(searched("random", conditions, 8)),
        "tpe": points_of(searched("tpe", conditions, 16)),
        "gp": points_of(searched("gp", numbers, 7)),
    }


def test_the_same_points_in_another_process_and_with_another_order_of_fields() -> None:
    outputs = []
    for hash_seed in "12":
        ran = subprocess.run(
            [sys.executable, "-c", FAR_AWAY, json.dumps([os.getcwd()])],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append(json.loads(ran.stdout))
    assert outputs[0] == outputs[1] == fingerprint()


def test_no_global_random_state_is_read_or_changed() -> None:
    import numpy as np

    np.random.seed(1)
    random.seed(1)
    first = points_of(searched("tpe", CONDITIONS, 14))
    drawn = np.random.random(), random.random()
    np.random.seed(1)
    random.seed(1)
    assert (np.random.random(), random.random()) == drawn
    assert points_of(searched("tpe", CONDITIONS, 14)) == first


def test_points_differ_with_the_seed_of_the_recipe_and_not_with_its_other_fields() -> None:
    points = Searcher("sobol", NUMBERS, RECIPE).planned(4)
    assert Searcher("sobol", NUMBERS, RECIPE.with_values({"seed": 1})).planned(4) != points
    assert Searcher("sobol", NUMBERS, RECIPE.with_values({"data.path": "elsewhere"})).planned(4) == points


@pytest.mark.parametrize("search", ["sobol", "random"])
def test_the_first_points_of_more_are_those_of_fewer(search: str) -> None:
    searcher = Searcher(search, CONDITIONS, RECIPE)
    assert searcher.planned(32)[:10] == searcher.planned(10)
    assert searcher.propose([Result(point) for point in searcher.planned(10)], 1) == searcher.planned(11)[10]


def test_what_optuna_is_told() -> None:
    from optuna.trial import TrialState

    points = [{CLIP: factor, BATCH: 64} for factor in (0.01, 0.02, 0.03, 0.04, 0.05)]
    results = [
        Result(points[0], "finished", {1: 0.2, 8: 0.9}),
        Result(points[1], "given up", {1: 0.1, 3: 0.5}),
        Result(points[2], "diverged", {1: 0.1}),
        Result(points[3], "failed"),
        Result(points[4]),
    ]
    complete, pruned, fail, running = (
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.RUNNING,
    )
    told = told_study(NUMBERS, RECIPE, "tpe", 0, results).trials
    assert [(trial.state, trial.params[CLIP]) for trial in told] == [
        (complete, 0.01),
        (pruned, 0.02),
        (fail, 0.03),
        (running, 0.03),  # Optuna does not look at FAIL; the liar keeps away from what is running
        (fail, 0.04),
        (running, 0.04),
        (running, 0.05),
    ]
    assert told[0].value == 0.9
    assert told[1].intermediate_values == {1: 0.1, 3: 0.5}
    assert told[1].value is None or told[1].state == pruned
    told = told_study(NUMBERS, RECIPE, "gp", 0, results).trials
    assert [trial.state for trial in told] == [
        complete,
        pruned,
        running,
        fail,
        running,
        fail,
        running,
        running,
    ]


def test_a_number_is_the_same_value_with_and_without_a_point() -> None:
    """A table of trials has 0.0 where the space has 0."""
    space: Space = {"model.dropout": (0, 0.25, 1), "optimizer.nesterov": (True, False)}
    [told] = told_study(
        space, RECIPE, "tpe", 0, [Result({"model.dropout": 1.0, "optimizer.nesterov": True}, "failed")]
    ).trials[:1]
    assert told.params == {"model.dropout": 2, "optimizer.nesterov": 0}
    assert point_key({"model.dropout": 0.0}) == point_key({"model.dropout": 0})
    assert point_key({"model.dropout": True}) != point_key({"model.dropout": 1})


@pytest.mark.parametrize(("search", "number"), [("tpe", 24), ("gp", 15)])
def test_a_model_beats_random_points(search: str, number: int) -> None:
    def near_the_best(name: str) -> int:
        """The best of so few random points may be good by luck, but not several of them."""
        return sum(height(result.point) > 0.85 for result in searched(name, NUMBERS, number))

    assert near_the_best(search) >= near_the_best("random") + 3
    best = max(searched(search, NUMBERS, number), key=lambda result: height(result.point)).point
    assert best[BATCH] == 256
    assert 0.02 < best[CLIP] < 0.045


@pytest.mark.parametrize("search", ["sobol", "random", "tpe"])
def test_conditions_and_ties_hold_at_every_point(search: str) -> None:
    points = [result.point for result in searched(search, CONDITIONS, 24)]
    for point in points:
        assert (SHARE in point) == (point[RHO] is not None)
        assert list(point) == [name for name in CONDITIONS if name in point]
        assert all_values(CONDITIONS, RECIPE, point)["micro_batches"] == point[BATCH]
        recipe = RECIPE.with_values(all_values(CONDITIONS, RECIPE, point))
        assert point_within(CONDITIONS, RECIPE, recipe.to_values()) == point
    assert {point[CLIP] is None for point in points} == {True, False}
    assert {point[SHAPE] for point in points} == {"cosine", "staircase"}
    assert len(set(map(point_key, points))) == len(points)


def test_values_from_a_range_have_four_digits_and_stay_within() -> None:
    narrow = {CLIP: Range(0.0123456, 0.0123999), "optimizer.momentum": Range(0.5, 0.95)}
    for point in Searcher("sobol", narrow, RECIPE).planned(16):
        assert 0.0123456 <= point[CLIP] <= 0.0123999
        assert point["optimizer.momentum"] == float(f"{point['optimizer.momentum']:.4g}")


@pytest.mark.parametrize("search", ["sobol", "random", "tpe", "gp"])
def test_a_space_of_few_points_ends_the_study(search: str) -> None:
    few = Searcher(search, {"micro_batches": Range(1, 5, integer=True)}, RECIPE)
    planned = few.planned(16)
    assert sorted(point["micro_batches"] for point in planned) == [1, 2, 3, 4, 5]
    results = [Result(point, "finished", {8: 0.5}) for point in planned]
    assert few.propose(results, 1) is None
    if not few.is_adaptive:
        return
    # A model that wants what is there already gets the one point that is not.
    assert few.propose(results[:4], 1) == planned[4]


def test_sobol_points_are_more_even_than_random_ones() -> None:
    def counts(search: str) -> list[int]:
        points = Searcher(search, {"optimizer.momentum": Range(0.0, 0.8)}, RECIPE).planned(16)
        values = [point["optimizer.momentum"] for point in points]
        return [sum(0.1 * k <= value < 0.1 * (k + 1) for value in values) for k in range(8)]

    assert counts("sobol") == [2] * 8
    assert counts("random") != [2] * 8


def test_the_default_is_a_grid_of_lists_and_sobol_for_a_range() -> None:
    assert default_search({BATCH: (64, 256)}) == "grid"
    assert default_search(NUMBERS) == "sobol"
    assert default_search({SHARE: When(Range(0.1, 1.0), RHO)}) == "sobol"


def test_a_study_begins_with_the_recipe_if_it_lies_in_the_space() -> None:
    assert first_points({CLIP: NUMBERS[CLIP]}, RECIPE) == ({CLIP: 0.01},)
    assert first_points(NUMBERS, RECIPE) == ()  # its batch has 4096 images
    recipe = RECIPE.with_values({BATCH: 64, "micro_batches": 64})
    assert first_points(CONDITIONS, recipe) == ({CLIP: 0.01, BATCH: 64, SHAPE: "cosine", RHO: None},)
    untied = RECIPE.with_values({BATCH: 64})
    assert first_points(CONDITIONS, untied) == ()
    dropout = {"model.dropout": Range(0.0, 0.5)}
    assert first_points(dropout, Recipe()) == ({"model.dropout": 0.2},), "F0's published value"


def test_the_best_points_of_an_earlier_study_come_next_as_points() -> None:
    state = state_of(agc_sweep())
    best = best_values(state)
    assert (best[0][CLIP], best[0][BATCH]) == (0.02, 64)
    assert all(values[CLIP] is not None or values[BATCH] == 64 for values in best)  # the others diverged
    space: Space = {CLIP: Range(0.002, 0.3, log=True)}
    recipe = RECIPE.with_values({BATCH: 64})
    points = first_points(space, recipe, best_points(space, recipe, 16, state))
    assert points[0] == {CLIP: 0.01}
    assert points[1] == {CLIP: 0.02}
    assert len(points) == len(set(map(point_key, points))) <= 5
    searcher = Searcher("tpe", space, recipe, points)
    assert searcher.planned(8)[: len(points)] == list(points)
    assert [searcher.propose([Result(p) for p in points[:n]], 1) for n in range(len(points))] == list(points)


@pytest.mark.parametrize(
    "point",
    [{CLIP: 0.5, BATCH: 64}, {CLIP: 0.01}, {CLIP: 0.01, BATCH: 64, RHO: 0.05}, {CLIP: "x", BATCH: 64}],
)
def test_a_first_point_that_is_not_in_the_space_is_refused_in_one_line(point: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"^first_points: clip_factor .* does not lie in the space; "
    ) as raised:
        Study("s", "?", RECIPE, NUMBERS, first_points=(point,))
    assert "\n" not in str(raised.value)
    assert Study("s", "?", RECIPE, NUMBERS, first_points=({CLIP: 0.02, BATCH: 64},)).trials()[0].point == {
        CLIP: 0.02,
        BATCH: 64,
    }


def test_a_setting_with_several_seeds_has_the_mean_of_those_that_ended() -> None:
    def trial(state: str | None, *top1: float) -> TrialProgress:
        epochs = {epoch: {METRIC: value} for epoch, value in enumerate(top1, start=1)}
        return TrialProgress("t", state=state, epochs=epochs)

    point = {CLIP: 0.01}
    both = result_of(point, [trial("finished", 0.5, 0.7), trial("finished", 0.6, 0.8)])
    assert (both.state, both.values) == ("finished", {1: 0.55, 2: 0.75})
    given_up = result_of(point, [trial("finished", 0.5, 0.7), trial("stopped", 0.1)])
    assert (given_up.state, given_up.values) == ("given up", {1: 0.3})
    assert result_of(point, [trial("diverged", math.nan), trial("finished", 0.5)]).state == "diverged"
    for waiting in ("running", "paused", "interrupted", None):
        assert result_of(point, [trial("finished", 0.5), trial(waiting, 0.5)]) == Result(point)


@pytest.mark.parametrize(
    ("search", "space", "words"),
    [
        ("genetic", NUMBERS, "--search genetic is not known: use one of grid, sobol, random, tpe, gp"),
        ("grid", NUMBERS, f"--search grid tries every value, and {CLIP} has a range"),
        ("gp", {SHAPE: ("cosine", "staircase")}, f"{SHAPE} is not a number everywhere: use --search tpe"),
        ("gp", {CLIP: (0.01, None)}, f"{CLIP} is not a number everywhere"),
        ("gp", {CLIP: Range(0.01, 0.1, or_none=True)}, f"{CLIP} is not a number everywhere"),
        ("gp", {SHARE: When(Range(0.1, 1.0), RHO)}, f"{SHARE} is not a number everywhere"),
    ],
)
def test_what_a_search_cannot_do_is_said_in_one_line(search: str, space: Space, words: str) -> None:
    with pytest.raises(UserError) as raised:
        Searcher(search, space, RECIPE)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lists", [("SEARCHES",), ("SEARCHES", "ADAPTIVE")])
def test_a_search_that_is_only_named_does_not_pass_for_another(
    lists: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to be able to draw points, or to ask a sampler."""
    for name in lists:
        known = getattr(searcher_module, name)
        monkeypatch.setattr(searcher_module, name, (*known, "cmaes"))
    results = searched("sobol", NUMBERS, 8)
    searcher = Searcher("cmaes", NUMBERS, RECIPE)
    with pytest.raises((KeyError, ValueError), match="cmaes"):
        searcher.propose(results, lag=1)


def test_a_model_waits_for_twice_as_many_results_as_it_needs() -> None:
    assert startup_points({CLIP: NUMBERS[CLIP]}) == 4
    assert startup_points(NUMBERS) == 6
    assert startup_points(CONDITIONS) == 10
    assert set(SEARCHES) == {"grid", "sobol", "random", "tpe", "gp"}
