"""Whatever a notebook gives to the public names: a UserError of one line names the argument and says what it takes.

Takes about three seconds, most of it imports.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nfnet_ray
from nfnet_ray import Halving, Range, Recipe, SameAs, Study, UserError, When
from nfnet_ray.study.space import domain_text
from studies.agc_sweep import agc_sweep
from studies.running.flags import main

RATE, BATCH = "schedule.base_learning_rate", "batch_size"
RECIPE = Recipe().with_values({"model.name": "nfnet_pico", "batch_size": 48})

NOTHING_SENSIBLE = [
    b"x", 1 + 2j, object(), lambda: 1, {1: 2}, {1, 2}, "", " ", float("nan"), -float("inf"), np.array([[1, 2], [3, 4]]),
    np.bool_(True), -10**30,
]  # fmt: skip


class BeganError(Exception):
    """A study that passed every check."""


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def execute(*_: Any) -> int:
        raise BeganError

    monkeypatch.setattr("studies.running.run.execute", execute)
    monkeypatch.chdir(tmp_path)
    for name in ("NFNET_RAY_HOME", "RAY_JOB_CONFIG_JSON_ENV_VAR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def study(**fields: Any) -> Study:
    return Study(
        **{"name": "lr", "question": "Which?", "recipe": RECIPE, "space": {RATE: (0.1, 0.4)}} | fields
    )


def refused(error: UserError, name: str) -> None:
    said = str(error)
    assert name in said
    assert "\n" not in said
    assert len(said) < 300


def arguments_of_run() -> list[str]:
    return [name for name in inspect.signature(nfnet_ray.run).parameters if name != "own"]


@pytest.mark.parametrize("name", arguments_of_run())
def test_run_refuses_what_no_argument_takes(name: str, few_digits: Path, somewhere: Path) -> None:
    """And leaves nothing behind: not even the digits, which an empty ``data`` would mean."""
    for value in [*NOTHING_SENSIBLE, True if name not in ("may_continue", "plan") else 1]:
        given = {"study": agc_sweep, "data": few_digits} if name not in ("resume", "extend") else {}
        with pytest.raises(UserError) as refusal:
            nfnet_ray.run(**{**given, name: value})
        if not callable(value):
            refused(refusal.value, name)
    assert list(somewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"trials": 10_001}, "a whole number from 1 to 10,000"),
        ({"seeds": 1001}, "a whole number from 1 to 1,000"),
        ({"seeds": "many"}, "a whole number from 1 to 1,000, or a text such as '3,all'"),
        ({"confirm": 1001}, "a whole number from 1 to 1,000"),
        ({"equal_within": float("inf")}, "a number above 0"),
        ({"price_per_hour": float("inf")}, "a number above 0"),
        ({"max_hours": 0}, "a number above 0, or infinity for no cap"),
        ({"early_stopping": 3}, "a Halving, or a text such as 'synchronous:eta=4' or 'none'"),
    ],
)
def test_run_has_the_limits_of_the_flags(arguments: dict[str, Any], allowed: str, few_digits: Path) -> None:
    with pytest.raises(UserError, match=allowed):
        nfnet_ray.run(agc_sweep, data=few_digits, **arguments)


def test_numbers_of_numpy_are_numbers(few_digits: Path) -> None:
    whole: dict[str, Any] = dict.fromkeys(("epochs", "trials", "seeds", "confirm"), np.int64(2))
    parts: dict[str, Any] = {
        "holdout": np.float32(0.5),
        "equal_within": np.float64(0.5),
        "max_hours": np.int32(1),
    }
    with pytest.raises(BeganError):
        nfnet_ray.run(agc_sweep, data=few_digits, **whole, **parts)
    recipe = RECIPE.with_values(
        {BATCH: np.int64(32), RATE: np.float64(0.5), "data.train_share": np.float32(0.5)}
    )
    assert [type(recipe.to_values()[name]) for name in (BATCH, RATE, "data.train_share")] == [
        int,
        float,
        float,
    ]
    swept = study(space={RATE: list(np.logspace(-2, -1, 3)), BATCH: When(list(np.arange(32, 34)), RATE)})
    assert repr(swept.space) == repr({RATE: (0.01, 10**-1.5, 0.1), BATCH: When((32, 33), RATE)})
    ranged = study(space={RATE: Range(np.float64(0.1), np.int64(1))})
    assert repr(ranged.space[RATE]) == repr(Range(0.1, 1))
    assert repr(study(seeds=np.arange(2).tolist(), halving=Halving(eta=np.int64(2))).halving) == repr(
        Halving(eta=2)
    )
    assert repr(study(space={}, points=[{BATCH: np.int64(32)}]).points) == "({'batch_size': 32},)"


def test_a_list_means_what_a_tuple_means() -> None:
    """A list was no list of values to what divides trials into strata, so that batch sizes competed with each other."""
    in_tuples = {RATE: (0.1, 0.4), BATCH: (32, 64), "optimizer.momentum": When((0.8, 0.9), BATCH, (32,))}
    in_lists = {RATE: [0.1, 0.4], BATCH: [32, 64], "optimizer.momentum": When([0.8, 0.9], BATCH, [32])}  # type: ignore[arg-type]
    one, other = study(space=in_tuples, seeds=(0, 1)), study(space=in_lists, seeds=[0, 1])
    assert one == other
    assert [trial.stratum for trial in other.trials()] == [trial.stratum for trial in one.trials()]
    assert other.conditions == (BATCH, "optimizer.momentum")
    assert [domain_text(domain) for domain in other.space.values()] == [
        "0.1,0.4",
        "32,64",
        "0.8,0.9 if batch_size=32",
    ]


def test_a_grid_has_a_limit_too(few_digits: Path) -> None:
    """A space of 10,001 took minutes before the first word, and one of 10^8 all memory."""
    wide = {
        RATE: [0.1 + 1e-4 * step for step in range(200)],
        "optimizer.momentum": [1e-3 * step for step in range(900)],
    }
    with pytest.raises(UserError, match="the space has more than 10,000 settings: list fewer values"):
        nfnet_ray.run(study(space=wide), data=few_digits)
    assert len(study(space=wide, trial_limit=3).trials()) == 3


def test_points_need_no_space() -> None:
    points = ({BATCH: 64}, {BATCH: 256, "optimizer.momentum": 0.95})
    assert len(Study("a", "Which?", RECIPE, points=points).trials()) == 2


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"name": None}, "name = None is not allowed"),
        ({"question": 5}, "question = 5 is not allowed"),
        ({"recipe": {"batch_size": 64}}, "it takes a Recipe"),
        ({"space": [(RATE, (0.1,))]}, "it takes a dict"),
        ({"space": {5: (0.1,)}}, "it takes a dict"),
        ({"space": {RATE: np.array([0.1, 0.2])}}, "use a list of values, Range, When or SameAs"),
        ({"space": {RATE: Range(0.1, 1, log="yes")}}, "log of its range = 'yes' is not allowed"),  # type: ignore[arg-type]
        ({"space": {RATE: SameAs([])}}, "is tied to [], which is no field"),  # type: ignore[arg-type]
        ({"space": {RATE: When((0.1,), 5)}}, "5 is not the name of a field"),  # type: ignore[arg-type]
        ({"seeds": 3}, "seeds = 3 is not allowed; it takes a list of different whole numbers"),
        ({"seeds": ()}, "seeds = () is not allowed"),
        ({"seeds": (1, 1)}, "seeds = (1, 1) is not allowed"),
        ({"seeds": (0.5,)}, "a seed of seeds = 0.5 is not allowed"),
        ({"more_seeds": "12"}, "more_seeds = '12' is not allowed"),
        ({"halving": "synchronous"}, "it takes a Halving, such as Halving(rule='synchronous'), or None"),
        ({"search": []}, "search = [] is not allowed; it takes one of grid, sobol"),
        ({"trial_limit": 0}, "trial_limit = 0 is not allowed"),
        ({"trial_limit": 10**30}, "a whole number from 1 to 2,147,483,647"),
        ({"confirm": 1.5}, "confirm = 1.5 is not allowed"),
        ({"equal_within": -1}, "equal_within = -1 is not allowed"),
        ({"equal_within": 50}, "it takes a fraction above 0 and below 1: 0.005 is half a point"),
        ({"holdout": 1}, "holdout = 1 is not allowed"),
        ({"space": {}, "points": [{BATCH: 32}], "asked": BATCH}, "it takes a list of dotted names of fields"),
        ({"space": {}, "points": 5}, "points = 5 is not allowed"),
        ({"space": {}, "points": ["batch_size"]}, "one of points = 'batch_size' is not allowed"),
        ({"first_points": None}, "first_points = None is not allowed"),
    ],
)  # fmt: skip
def test_a_study_says_which_of_its_fields_is_wrong(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as refusal:
        study(**fields)
    refused(refusal.value, complaint)


@pytest.mark.parametrize("value", [*NOTHING_SENSIBLE, True])
def test_all_other_public_names_do_so_too(value: Any) -> None:
    for option in ("first_rung", "eta", "rule", "finalists", "group", "unit", "schedule"):
        with pytest.raises(UserError, match=f"early stopping: {option}="):
            Halving(**{option: value})
    for call in (
        nfnet_ray.create_model,
        nfnet_ray.published_recipe,
        nfnet_ray.load_study,
        RECIPE.with_values,
    ):
        with pytest.raises(UserError):
            call(value)
    for field in (BATCH, RATE, "optimizer.name"):
        with pytest.raises(UserError) as refusal:
            study(space={field: (value,)})
        refused(refusal.value, field)


def test_a_function_that_builds_no_study_is_told_so(
    few_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_nothing() -> None: ...

    def without_return(data: Any, epochs: int | None = None) -> None: ...

    for build, complaint in (
        (of_nothing, "write it as def of_nothing(data, epochs=None)"),
        (without_return, "without_return returned None, which is not a Study: end it with return Study"),
    ):
        with pytest.raises(UserError) as refusal:
            nfnet_ray.run(build, data=few_digits)  # type: ignore[arg-type]
        refused(refusal.value, complaint)
        assert main(build, Path("mine.py"), ["--data", str(few_digits), "--plan"]) == 2  # type: ignore[arg-type]
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert complaint in said.err
