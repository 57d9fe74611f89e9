"""What the studies' docstrings and studies/results/README.md quote is what the analysis says of the results today.

Takes about 20 seconds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

import nfnet_ray
from nfnet_ray.analysis.frontier import time_sentences
from nfnet_ray.analysis.inference.paired import paired_difference
from nfnet_ray.analysis.setting import SettingResult, setting_results
from nfnet_ray.wording import decimal

STUDIES = Path(__file__).resolve().parents[2] / "studies"
RESULTS = STUDIES / "results"


@cache
def record(name: str) -> nfnet_ray.StudyResults:
    return nfnet_ray.load_study(RESULTS / name)


@cache
def text_of(file: str) -> str:
    """A docstring, or a page, in one line."""
    text = (STUDIES / file).read_text()
    if file.endswith(".py"):
        text = ast.get_docstring(ast.parse(text)) or ""
    return " ".join(text.split())


def top1(result: SettingResult) -> str:
    return f"{100 * result.top1:.1f}"


def interval(result: SettingResult) -> str:
    return f"{100 * result.low:.1f} to {100 * result.high:.1f}"


def best(name: str) -> list[SettingResult]:
    """Of each stratum, as the answer has it."""
    return [answer.best for answer in nfnet_ray.best_per_stratum(record(name))]


def luck(name: str) -> str:
    [answer] = nfnet_ray.best_per_stratum(record(name))
    assert answer.optimism is not None
    return f"{100 * answer.optimism.mean:.1f}"


def chances(name: str) -> list[str]:
    """Of being better than the next one, for each stratum that has one."""
    found = [answer.contrasts for answer in nfnet_ray.best_per_stratum(record(name))]
    return [f"{100 * contrasts[0].probability:.3g}" for contrasts in found if contrasts]


def value(result: SettingResult, digits: int, field: str = "clip_factor") -> str:
    [found] = [one for name, one in result.point.items() if name.endswith(field)]
    return f"{found:.{digits}g}"


def agc_sweep() -> Iterable[str]:
    small, large = best("agc_sweep_cifar10")
    probability = round(float(chances("agc_sweep_cifar10")[1]))
    return [
        f"Batch 64: {value(small, 2)} ({interval(small)}%, 3 seeds) cannot be told apart from",
        f"Batch 256: {value(large, 2)} ({interval(large)}%) is better than 0.04 with a probability of {probability}%",
        *(f" {top1(one)}" for one in (small, large)),
    ]


def dropout_sweep() -> Iterable[str]:
    answers = nfnet_ray.best_per_stratum(record("dropout_cifar10"))
    ended = {tuple(one.point.values()): one for one in setting_results(record("dropout_cifar10"))}
    for depth in (0, 0.1, 0.25):
        row = [ended.get((dropout, depth)) for dropout in (0, 0.1, 0.2, 0.3, 0.4, 0.5)]
        yield " ".join((f"stochastic depth {depth}", *(top1(one) if one else ".." for one in row)))
    found = max((one.best for one in answers), key=lambda one: one.top1)
    yield f"The 95% interval of {top1(found)} is {interval(found)} over images"
    middle, large = (
        next(one for one in answer.contrasts if one.other.point["model.dropout"] == 0.5)
        for answer in answers[1:]
    )
    said = [
        tuple(decimal(100 * part) for part in (one.difference, one.low, one.high)) for one in (middle, large)
    ]
    yield (
        f"worse by {said[0][0]} points (95% interval {said[0][1]} to {said[0][2]}) and {said[1][0]} points "
        f"({said[1][1]} to {said[1][2]})"
    )


def budgets(name: str) -> Iterable[str]:
    said = [one for one in time_sentences(record(name)) if one.startswith("At equal accuracy")]
    return [one.replace(", 3 seeds)", ")") for one in said]


def joint_sweep() -> Iterable[str]:
    return [f"{top1(one)} {interval(one)}" for one in best("joint_sweep")]


def joint_cifar10() -> Iterable[str]:
    plain, fifth, whole = best("joint_cifar10")
    recipe = next(one for one in setting_results(record("joint_cifar10")) if value(one, 4) == "0.01")
    gain = next(
        one
        for one in nfnet_ray.best_per_stratum(record("joint_cifar10"))[0].contrasts
        if one.other.point == recipe.point
    )
    gained, low, high = (decimal(100 * part) for part in (gain.difference, gain.low, gain.high))
    return [
        f"{value(plain, 2)} 0.075 0.100 none {top1(plain)} {interval(plain)}",
        *(f"{top1(one)} {interval(one)}" for one in (fifth, whole, recipe)),
        f"gains {gained} points (95% interval over the same images {low} to {high}) on the Recipe's",
    ]


def sam() -> Iterable[str]:
    without, whole, fifth = map(interval, best("sam_cifar10"))
    return [
        f"are {without} without SAM, {whole} and {fifth} with 0.01",
        *(f" {top1(one)} " for one in best("sam_cifar10")),
    ]


def sam_plain() -> Iterable[str]:
    [found] = best("sam_plain_cifar10")
    return [f"{top1(found)}% ({interval(found)}; 3 seeds"]


def each_setting(name: str) -> Iterable[str]:
    """The accuracies of all settings that finished with all seeds."""
    return [
        " ".join(f"{100 * seed:.1f}" for seed in result.seed_top1) for result in setting_results(record(name))
    ]


def batch_norm_cifar10() -> Iterable[str]:
    """Batch, both accuracies, and the paired difference with its interval."""
    found = {tuple(one.point.values()): one for one in setting_results(record("batch_norm_cifar10"))}
    for batch in sorted({batch for _, batch in found}):
        without, normalised = found[False, batch], found[True, batch]
        assert without.images is not None
        assert normalised.images is not None
        apart = paired_difference(without.images.correct, normalised.images.correct)
        value, low, high = (decimal(100 * part) for part in (apart.value, apart.low, apart.high))
        yield f"{batch} {top1(without)} {top1(normalised)} {value} ({low} to {high})"


def curves() -> Iterable[str]:
    [found], [answer] = best("curves"), nfnet_ray.best_per_stratum(record("curves"))
    [response] = record("curves").response()
    [shift] = response.shifts
    low, high = shift.optima
    return [
        f"clip factor {value(found, 2)}, dropout {value(found, 1, 'dropout')}, rho {value(found, 2, 'rho')}, learning "
        f"rate {value(found, 3, 'learning_rate')} with {top1(found)}% (95% over images {interval(found)}%; 1,000 "
        f"images), of which some {luck('curves')} points",
        f"With {answer.assumed_spread} {len(answer.within_noise)} others cannot be told apart from it",
        f"it is {low:.2g} at {shift.values[0]:.2g}, {response.optimum:.2g} at {shift.middle:.2g} and {high:.2g} at "
        f"{shift.values[1]:.2g}",
    ]


def skip_gain() -> Iterable[str]:
    [found] = best("skip_gain_cifar10")
    low, high = min(found.seed_top1), max(found.seed_top1)
    return [
        f"{top1(found)}% ({100 * low:.1f} to {100 * high:.1f}; 95% interval over seeds and images {interval(found)}) "
        f"without; better with a probability of {chances('skip_gain_cifar10')[0]}%"
    ]


PAGE = "results/README.md"
QUOTED: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "ablation_cifar10": ("ablation.py", lambda: each_setting("ablation_cifar10")),
    "agc_sweep_cifar10": ("agc_sweep.py", agc_sweep),
    "batch_norm": ("batch_norm.py", lambda: each_setting("batch_norm")),
    "batch_norm_cifar10": ("batch_norm.py", batch_norm_cifar10),
    "curves": (PAGE, curves),
    "dropout_cifar10": ("dropout_sweep.py", dropout_sweep),
    "efficientnet_baselines": ("efficientnet_baselines.py", lambda: budgets("efficientnet_baselines")),
    "efficientnet_cifar10": ("efficientnet_baselines.py", lambda: budgets("efficientnet_cifar10")),
    "joint_cifar10": ("joint_sweep.py", joint_cifar10),
    "joint_sweep": ("joint_sweep.py", joint_sweep),
    "sam_cifar10": ("sam_sweep.py", sam),
    "sam_plain_cifar10": ("sam_sweep.py", sam_plain),
    "skip_gain_cifar10": (PAGE, skip_gain),
}


@pytest.mark.parametrize("name", list(QUOTED))
def test_a_quoted_answer_is_that_of_the_results(name: str) -> None:
    file, quoted = QUOTED[name]
    expected = list(quoted())
    assert expected
    missing = [said for said in expected if said not in text_of(file)]
    assert not missing, f"studies/{file} does not say: {missing}"


def test_every_docstring_that_names_its_results_is_compared() -> None:
    named = {
        name
        for file in STUDIES.glob("*.py")
        for name in re.findall(r"studies/results/(\w+)", file.read_text())
    }
    assert named - {"README"} <= set(QUOTED)
