"""Whatever follows ``--set`` or ``--sweep``, the study can be planned, or one line says what is wrong.

The inputs are made up, the same ones every time. Takes about ten seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import with_published_values
from nfnet_ray.printable import printable
from nfnet_ray.recipe import Recipe, parse_setting
from nfnet_ray.study.cost.plan import check_trials, estimate_cost
from nfnet_ray.study.space.asked import asked_space
from nfnet_ray.study.space.sweep_text import parse_sweep
from nfnet_ray.study.study import Halving, Study

DATA = DatasetSummary(Path("digits"), 1437, 360, tuple("0123456789"), "f", (32, 32))
BASE = Recipe().with_values({"model.name": "nfnet_pico", "batch_size": 64, "data.image_size": 32})

numbers = st.one_of(
    st.integers(),
    st.integers(min_value=10**9, max_value=10**40),
    st.floats(),
    st.sampled_from([0, 1, -1, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 1e-320, 1e6, 1e300, float("inf")]),
)
leaves = st.one_of(numbers, st.booleans(), st.none(), st.text(), st.binary(), st.complex_numbers())
literals = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
)
texts = st.one_of(
    leaves.map(str),
    literals.map(repr),
    st.text(),
    st.sampled_from(
        ["{{}}", "{[]:1}", "{1, []}", "(" * 500, "[" * 150 + "]" * 150, "-" * 5000 + "1", "9" * 5000, "1e400", "1_0",
         "\x1b[2J", "a\nb", "f'{1}'", "b'x'", "...", "__import__('os')", "[" + "1," * 5000 + "]", "None", "0x10"]
    ),
)  # fmt: skip
names = st.one_of(st.sampled_from(list(Recipe().to_values())), st.text(), st.just("optimizer.agc"))


def plan(texts: list[str]) -> None:
    """All that ``--plan`` does with settings before it measures this machine's speed."""
    recipe = BASE.with_values(dict(map(parse_setting, texts)))
    space: dict[str, Any] = {"optimizer.agc.clip_factor": (0.01, 0.02), "batch_size": (64, 256)}
    study = Study("s", "?", recipe, space, halving=Halving(2, 3.0))
    check_trials(study.trials(), DATA, workers=1)
    estimate_cost(study, study.trials(), DATA)
    with_published_values(recipe).fingerprint()


def refusal_of(texts: list[str]) -> str | None:
    """The line that is printed; None where the study can be planned."""
    try:
        plan(texts)
    except UserError as error:
        return str(error)
    return None


@settings(derandomize=True, deadline=None, max_examples=400, database=None)
@given(names, texts)
@example("model.name", "{{}}")
@example("batch_size", "{[]:1}")
@example("seed", str(2**64))
@example("schedule.epochs", str(10**17))
@example("data.image_size", "100000")
@example("data.crop_padding", str(10**9))
@example("data.randaugment.magnitude", "1e300")
@example("model.overrides.depth", "[1, 1, 1, 1000000000]")
def test_a_setting_is_planned_or_refused_in_one_line(name: str, text: str) -> None:
    refusal = refusal_of([f"{name}={text}"])
    assert refusal != ""
    assert refusal is None or printable(refusal) == refusal


sweeps = st.one_of(
    texts,
    st.lists(
        st.one_of(numbers.map(str), st.sampled_from(["none", "log:1..2", "", "[1]", "auto"])), max_size=4
    ).map(",".join),
    st.tuples(
        st.sampled_from(["", "log:", "int:", "none,", "none,int:log:", "lin:"]),
        numbers,
        numbers,
        st.sampled_from(["", " if ", " if seed=1"]),
    ).map(lambda parts: f"{parts[0]}{parts[1]}..{parts[2]}{parts[3]}"),
    names.map(lambda name: f"same:{name}"),
    st.tuples(numbers.map(str), names, texts).map(lambda parts: f"{parts[0]} if {parts[1]}={parts[2]}"),
)


def refusal_of_sweep(text: str) -> str | None:
    """The line that is printed; None where the first trials can be planned."""
    try:
        field, domain = parse_sweep(text)
        space = asked_space({"optimizer.agc.clip_factor": (0.01, 0.02)}, BASE, {}, {field: domain})
        check_trials(Study("s", "?", BASE, space, trial_limit=3).trials(), DATA, workers=1)
    except UserError as error:
        return str(error)
    return None


@settings(derandomize=True, deadline=None, max_examples=400, database=None)
@given(names, sweeps)
@example("batch_size", "0x" + "f" * 5000)
@example("batch_size", f"1..0x{'f' * 5000}")
@example("optimizer.agc.clip_factor", "log:1e-320..1e-319")
def test_a_sweep_is_planned_or_refused_in_one_line(name: str, text: str) -> None:
    refusal = refusal_of_sweep(f"{name}={text}")
    assert refusal != ""
    assert refusal is None or printable(refusal) == refusal


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(
    st.lists(st.tuples(st.sampled_from(list(Recipe().to_values())), numbers.map(str)), min_size=2, max_size=6)
)
def test_settings_that_depend_on_each_other_are_planned_or_refused(pairs: list[tuple[str, str]]) -> None:
    refusal = refusal_of([f"{name}={text}" for name, text in pairs])
    assert refusal is None or printable(refusal) == refusal


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=18446744073709551616", "from 0 to 2,147,483,647"),
        ("schedule.epochs=100000000000000000", "from 1 to 100,000"),
        ("data.randaugment.magnitude=1e300", "from 0 to 100"),
        ("optimizer.agc.clip_factor=1e300", "at most 1,000,000"),
        ("data.image_size=100000", "from 8 to 2,048"),
        ("model.name={{}}", "unknown model"),
        ("batch_size={[]:1}", "a whole number"),
    ],
)
def test_what_a_field_takes_is_said(setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan([setting])


def test_a_shift_out_of_sight_is_refused() -> None:
    shifted = {"data.crop": "padded", "data.image_size": 32}
    assert BASE.with_values(shifted | {"data.crop_padding": 31}).data.crop_padding == 31
    with pytest.raises(UserError, match="out of sight"):
        BASE.with_values(shifted | {"data.crop_padding": 32})
