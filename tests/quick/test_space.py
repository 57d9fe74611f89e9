"""The spaces of studies: which points they have, which of them are refused, and what a journal keeps of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.space import (
    Range,
    SameAs,
    Space,
    When,
    all_values,
    build_point,
    domain_from_json,
    domain_text,
    domain_to_json,
    grid,
)
from nfnet_ray.study.space.conditions import unswept_sentences
from nfnet_ray.study.study import Study

CLIP, RHO, SHARE = "optimizer.agc.clip_factor", "optimizer.sam.rho", "optimizer.sam.ascent_share"
METHOD, INTERVAL = "optimizer.sam.method", "optimizer.sam.looksam_interval"
RATE = "schedule.base_learning_rate"


def study(space: Space, **more: Any) -> Study:
    return Study("s", "?", Recipe().with_values({"data.image_size": 64}), space, **more)


def names(space: Space, **more: Any) -> list[str]:
    return [trial.name for trial in study(space, **more).trials()]


def test_lists_are_a_grid_with_the_first_field_innermost() -> None:
    trials = study({CLIP: (0.01, None), "batch_size": (64, 256)}, seeds=(0, 1)).trials()
    assert [trial.name for trial in trials[:4]] == [
        "clip_factor=0.01,batch_size=64,seed=0",
        "clip_factor=none,batch_size=64,seed=0",
        "clip_factor=0.01,batch_size=256,seed=0",
        "clip_factor=none,batch_size=256,seed=0",
    ]
    assert len(trials) == 8
    assert trials[2].stratum == "batch_size=256,seed=0"


def test_a_conditional_field_is_swept_only_where_its_condition_holds() -> None:
    assert names({RHO: (None, 0.05), SHARE: When((1.0, 0.2), RHO)}) == [
        "rho=none",
        "rho=0.05,ascent_share=1",
        "rho=0.05,ascent_share=0.2",
    ]
    trials = study({METHOD: ("sam", "looksam"), INTERVAL: When((5, 10), METHOD, ("looksam",))}).trials()
    assert [trial.name for trial in trials] == [
        "method=sam",
        "method=looksam,looksam_interval=5",
        "method=looksam,looksam_interval=10",
    ]
    assert [trial.stratum for trial in trials] == ["", "looksam_interval=5", "looksam_interval=10"]


def test_a_condition_may_be_on_a_field_that_is_not_swept() -> None:
    assert names({CLIP: (0.01, 0.02), SHARE: When((1.0, 0.2), RHO)}) == [
        "clip_factor=0.01",
        "clip_factor=0.02",
    ]
    assert names({SHARE: When((1.0, 0.2), RHO)}) == ["recipe"]


SIZE, EVAL_SIZE = "data.image_size", "data.eval_size"

NEVER_SWEPT: list[tuple[Space, str]] = [
    ({SHARE: When((1.0, 0.2), RHO)}, f"{SHARE} is 1 in every trial: its condition never holds, since {RHO} is none; "
     f"set or sweep {RHO} accordingly."),
    ({CLIP: (0.1,), EVAL_SIZE: When(SameAs(CLIP), RHO)}, f"since {RHO} is none"),
    ({METHOD: ("sam", "asam"), INTERVAL: When((5, 9), METHOD, ("looksam",))}, f"since {METHOD} is swept over sam,asam"),
    ({RHO: (0.1,), SHARE: When(When((1, 0.2), METHOD, ("looksam",)), RHO)}, f"since {METHOD} is sam; set or sweep"),
    ({RHO: Range(0.1, 0.3), SHARE: When((1, 0.2), RHO, (0.2,))}, f"since {RHO} is swept over 0.1..0.3"),
    ({SIZE: Range(32, 96, integer=True), SHARE: When((1, 0.2), SIZE, (128,))}, f"{SIZE} is swept over int:32..96"),
    ({RHO: When((0.1,), CLIP, (0.5,)), SHARE: When((1, 0.2), RHO), CLIP: (0.1,)}, f"is swept over 0.1 if {CLIP}=0.5"),
    ({RHO: (None, 0.1), SHARE: When(When((1, 0.2), RHO, (None,)), RHO)}, f"since {RHO} is swept over none,0.1"),
]  # fmt: skip


@pytest.mark.parametrize(("space", "message"), NEVER_SWEPT)
def test_a_field_whose_condition_never_holds_is_named(space: Space, message: str) -> None:
    assert message in unswept_sentences(space, Recipe())[-1]


SWEPT_SOMEWHERE: list[Space] = [
    {SHARE: When((1.0, 0.2), RHO), RHO: (None, 0.1)},
    {RHO: Range(0.1, 0.3, or_none=True), SHARE: When((1, 0.2), RHO, (None,))},
    {SIZE: Range(32, 96, integer=True), SHARE: When((1, 0.2), SIZE, (64,))},
    {SIZE: Range(32, 96, integer=True), EVAL_SIZE: SameAs(SIZE), SHARE: When((1, 0.2), EVAL_SIZE, (64,))},
    # Fields that do not decide may have any number of values.
    {RATE: tuple(range(1, 100)), "batch_size": tuple(range(1, 100)), RHO: (None, 0.1), SHARE: When((1, 0.2), RHO)},
    {SHARE: When((Recipe().optimizer.sam.ascent_share,), RHO)},  # --set: it has its value everywhere
]  # fmt: skip


@pytest.mark.parametrize("space", SWEPT_SOMEWHERE)
def test_a_condition_that_holds_somewhere_is_not_mentioned(space: Space) -> None:
    assert unswept_sentences(space, Recipe()) == []


def test_a_tied_field_has_the_value_of_the_other_and_is_not_in_the_point() -> None:
    trials = study({"data.image_size": (64, 96), "data.eval_size": SameAs("data.image_size")}).trials()
    assert [trial.name for trial in trials] == ["image_size=64", "image_size=96"]
    assert [trial.recipe.data.eval_size for trial in trials] == [64, 96]
    assert all("data.eval_size" not in trial.point for trial in trials)


def test_a_plain_list_of_points_is_tried_as_it_is() -> None:
    trials = study({}, points=({CLIP: 0.01, "batch_size": 64}, {"batch_size": 256}, {})).trials()
    assert [trial.name for trial in trials] == ["clip_factor=0.01,batch_size=64", "batch_size=256", "recipe"]
    assert {trial.stratum for trial in trials} == {""}
    assert trials[1].recipe.optimizer.agc.clip_factor == Recipe().optimizer.agc.clip_factor


def test_a_search_is_asked_for_the_values_that_are_swept_at_its_point() -> None:
    space: Space = {
        SHARE: When(Range(0.1, 1), RHO),
        RHO: Range(0.01, 0.2, log=True, or_none=True),
        INTERVAL: When(When((5, 10), METHOD, ("looksam",)), RHO),
    }

    def asked(rho: float | None, recipe: Recipe) -> Mapping[str, Any]:
        return build_point(space, recipe, lambda name, _: rho if name == RHO else 5)

    assert asked(None, Recipe()) == {RHO: None}
    assert asked(0.1, Recipe()) == {SHARE: 5, RHO: 0.1}
    assert list(asked(0.1, Recipe().with_values({METHOD: "looksam"}))) == [SHARE, RHO, INTERVAL]


@pytest.mark.parametrize(
    ("range_", "number", "value"),
    [
        (Range(0.002, 0.3, log=True), 0.0123456, 0.01235),
        (Range(0.1, 0.123456), 0.123455, 0.123456),
        (Range(1, 5, integer=True), 3.4999, 3),
        (Range(1, 5, integer=True), 5.4, 5),
        (Range(0, 1), 0.99999, 1.0),
    ],
)
def test_a_drawn_value_is_as_short_as_its_name(range_: Range, number: float, value: float) -> None:
    assert range_.rounded(number) == value
    assert type(range_.rounded(number)) is type(value)


DOMAINS = [
    (((0.01, None), [0.01, None]), "0.01,none"),
    (((("a",), ("a", "b")), [["a"], ["a", "b"]]), "['a'],['a', 'b']"),
    ((Range(0.002, 0.3, log=True), {"low": 0.002, "high": 0.3, "log": True}), "log:0.002..0.3"),
    ((Range(1, 5, integer=True), {"low": 1, "high": 5, "integer": True}), "int:1..5"),
    ((Range(1, 2.5, or_none=True), {"low": 1, "high": 2.5, "or_none": True}), "none,1..2.5"),
    ((SameAs("a.b"), {"same_as": "a.b"}), "same:a.b"),
    ((When((1, 2), "a.b"), {"domain": [1, 2], "when": "a.b"}), "1,2 if a.b"),
    (
        (
            When(Range(0.1, 1), "a.b", ("x", None)),
            {"domain": {"low": 0.1, "high": 1}, "when": "a.b", "among": ["x", None]},
        ),
        "0.1..1 if a.b=x,none",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("pair", "text"), DOMAINS)
def test_a_journal_gives_the_domain_back(pair: tuple[Any, Any], text: str) -> None:
    domain, described = pair
    assert json.loads(json.dumps(domain_to_json(domain))) == described
    assert domain_from_json(json.loads(json.dumps(described))) == domain
    assert domain_text(domain) == text


BAD_SPACES: list[tuple[Space, str]] = [
    ({"optimizer.agc.clipfactor": (1,)}, f"clipfactor is not a field of the Recipe: did you mean {CLIP}"),
    ({CLIP: (0.01, -1)}, f"{CLIP} = -1 is not allowed: it takes a number above 0, or none"),
    ({CLIP: ()}, f"{CLIP} has no value to sweep: list at least one, or leave the field out"),
    ({CLIP: (0.01, 0.02, 0.01)}, f"{CLIP} has 0.01 twice in its list: list each value once"),
    ({"batch_size": (64, None)}, "batch_size = None is not allowed: it takes a whole number of at least 1"),
    ({CLIP: Range(0.3, 0.002)}, f"{CLIP} = 0.3..0.002: the low end must be less than the high end"),
    ({CLIP: Range(float("nan"), 1)}, f"{CLIP} = nan..1: the low end must be less than the high end"),
    ({CLIP: Range(0, 1, log=True)}, f"{CLIP} = log:0..1: a logarithmic range must begin above 0"),
    ({CLIP: Range(0, 1)}, f"{CLIP} = 0.0 is not allowed: it takes a number above 0, or none"),
    ({CLIP: Range(1, 10**400)}, f"{CLIP} = 100"),
    ({CLIP: Range(1, float("inf"))}, f"{CLIP} = inf is not allowed"),
    ({"batch_size": Range(1.5, 3, integer=True)}, "batch_size = int:1.5..3: the ends of an integer range"),
    ({"batch_size": Range(16, 64)}, "batch_size = 16..64: the field takes whole numbers; write int:"),
    ({"batch_size": Range(16, 64, integer=True, or_none=True)}, "batch_size = None is not allowed"),
    ({METHOD: Range(1, 2)}, f"{METHOD} = 1..2: the field does not take numbers, so it has no range; list its values"),
    ({"data.flip": Range(0, 1)}, "data.flip = 0..1: the field does not take numbers"),
    ({CLIP: Range("a", 1)}, f"{CLIP}: the end 'a' of a range is not a number"),  # type: ignore[arg-type]
    ({CLIP: 0.01}, f"{CLIP} is swept over 0.01, which is not a domain: use a list of values, Range, When or SameAs"),  # type: ignore[dict-item]
    ({SHARE: When((1.0,), SHARE)}, f"{SHARE} cannot depend on itself"),
    ({SHARE: When((1.0,), "optimizer.sam.rhoo")}, "optimizer.sam.rhoo is not a field of the Recipe: did you mean"),
    ({SHARE: When((1.0,), METHOD, ("lookSAM",))}, f"{METHOD} = 'lookSAM' is not allowed: it takes one of sam"),
    ({SHARE: When((1.0,), METHOD, "looksam")}, f"{SHARE}: the values of {METHOD} in its condition must be a list"),  # type: ignore[arg-type]
    ({SHARE: When((1.0,), METHOD, ())}, f"{SHARE}: the condition on {METHOD} has no value"),
    ({SHARE: When((1.0,), RHO), RHO: When((0.1,), SHARE)}, f"circular: {SHARE} depends on {RHO} depends on {SHARE}"),
    ({RATE: SameAs(RATE)}, f"{RATE} cannot be tied to itself"),
    ({RATE: SameAs(CLIP)}, f"{RATE} is tied to {CLIP}, which is not swept: sweep it"),
    ({RATE: SameAs(CLIP), CLIP: SameAs(RATE)}, f"{RATE} is tied to {CLIP}, which is tied itself: tie it to"),
    ({RATE: SameAs(CLIP), CLIP: (0.1, None)}, f"{RATE} = None is not allowed"),
    ({"batch_size": SameAs(CLIP), CLIP: Range(1, 2)}, "batch_size = 1..2: the field takes whole numbers"),
    ({"seed": (0, 1)}, "seed cannot be swept: give --seeds N"),
]  # fmt: skip


@pytest.mark.parametrize(("space", "message"), BAD_SPACES)
def test_a_bad_space_is_one_line(space: Space, message: str) -> None:
    with pytest.raises(UserError) as error:
        study(space)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_points_are_one_line() -> None:
    for points, message in [
        ((), "the study has no point to sweep"),
        (({CLIP: -1},), f"{CLIP} = -1 is not allowed"),
        (({"clip": 1},), "clip is not a field of the Recipe"),
        (({CLIP: 1}, {CLIP: 1}), "twice in its list"),
    ]:
        with pytest.raises(UserError, match=message):
            study({}, points=points)
    with pytest.raises(UserError, match="a space or a list of points, not both"):
        study({CLIP: (0.1,)}, points=({CLIP: 0.1},))


def test_what_a_search_may_propose_later_is_checked_before_anything_starts() -> None:
    searched: Space = {CLIP: Range(0.01, 0.1), METHOD: ("sam", "esam"), SHARE: Range(0.2, 1)}
    with pytest.raises(UserError, match=r"ascent_share = 0.2 is not allowed with esam"):
        study(searched, search="tpe").outermost_trials()
    fitting = {**searched, SHARE: When(Range(0.2, 1), METHOD, ("sam",))}
    assert len(study(fitting, search="tpe").outermost_trials()) == 6
    assert study({CLIP: (0.01, 0.1)}).outermost_trials() == []


def test_the_grid_of_a_range_is_its_ends() -> None:
    points = list(grid({CLIP: Range(0.01, 0.1, or_none=True)}, Recipe()))
    assert points == [{CLIP: 0.01}, {CLIP: 0.1}, {CLIP: None}]


def test_tied_values_are_part_of_the_recipe_only_where_their_condition_holds() -> None:
    space: Space = {CLIP: (0.1,), RATE: When(SameAs(CLIP), RHO)}
    assert all_values(space, Recipe(), {CLIP: 0.1}) == {CLIP: 0.1}
    assert all_values(space, Recipe().with_values({RHO: 0.05}), {CLIP: 0.1}) == {CLIP: 0.1, RATE: 0.1}
