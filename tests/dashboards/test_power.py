"""What a design is said to tell, it tells in simulated studies; a plan says it by earlier studies, or by assumptions.

Takes about ten seconds.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from nfnet_ray.analysis.earlier_noise import EarlierNoise, earlier_noise
from nfnet_ray.analysis.inference.assumed_noise import assumed_spread
from nfnet_ray.analysis.inference.paired import difference_parts
from nfnet_ray.analysis.inference.power import (
    Design,
    PairNoise,
    images_to_tell,
    power,
    seeds_to_tell,
    smallest_difference,
)
from nfnet_ray.analysis.inference.simulation import simulated_moments, trial_accuracies
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study
from studies.managing.export_command import export
from studies.running.planning.power_text import power_sentences
from tests.dashboards.test_answer import study_with_bits
from tests.tracking.example_study import CLIP_FACTOR

NOISE = PairNoise.assumed(disagreement=0.1, seed_spread=0.003)


@pytest.mark.parametrize(("seeds", "images"), [(1, 10_000), (2, 10_000), (3, 2000), (3, 50_000), (5, 10_000)])
def test_the_smallest_difference_is_told_in_80_percent_of_studies(seeds: int, images: int) -> None:
    difference = smallest_difference(NOISE, Design(seeds, images))
    draw = np.random.default_rng([seeds, images])
    truth = np.array([0.8 + difference / 2, 0.8 - difference / 2])
    spread = 0.003 if seeds > 1 else 0.0
    moments = simulated_moments(draw, trial_accuracies(draw, 2000, truth, seeds, spread), images, 0.9)
    parts = difference_parts(moments, seeds)
    assert float((parts.value > parts.half_width()).mean()) == pytest.approx(0.8, abs=0.035)


@pytest.mark.parametrize(("spread", "freedom"), [(0.01, 3), (0.006, 3), (0.01, 8)])
def test_the_power_holds_if_the_spread_was_estimated_from_few_seeds(spread: float, freedom: int) -> None:
    """On average over what earlier studies may show; taken for the truth, the estimates would give 66 to 74%."""
    seeds, images, agreement = 3, 10_000, 0.8
    luck = (1 - agreement) / 2 / images
    shown = (spread**2 + luck) * stats.chi2.ppf((np.arange(15) + 0.5) / 15, freedom) / freedom
    draw = np.random.default_rng(freedom)
    told = []
    for variance in shown.tolist():
        earlier = EarlierNoise(1 - agreement, variance, freedom, luck, 2 * freedom, ("before",))
        difference = smallest_difference(earlier.pair_noise(5000), Design(seeds, images))
        truth = np.array([0.6 + difference / 2, 0.6 - difference / 2])
        moments = simulated_moments(
            draw, trial_accuracies(draw, 300, truth, seeds, spread), images, agreement
        )
        parts = difference_parts(moments, seeds)
        told.append(float((parts.value > parts.half_width()).mean()))
    assert float(np.mean(told)) == pytest.approx(0.8, abs=0.035)


def test_the_power_of_two_seeds_is_that_of_the_noncentral_t_distribution() -> None:
    """Without a difference between images; with two seeds each the spreads are always pooled."""
    for difference in (1.0, 3.0, 5.0, 8.0):  # in points of which the spread between seeds is one
        found = power(PairNoise(0.0, 0.0, 1.0), Design(2, 1000), difference)
        assert found == pytest.approx(stats.nct.sf(stats.t.ppf(0.975, 2), 2, difference), abs=0.005)


def test_more_seeds_and_more_images_tell_smaller_differences() -> None:
    assert images_to_tell(PairNoise.assumed(0.1, 0.0), 0.005, 1) == 32_000  # 0.1 (1.96 + 0.84)^2 / 0.005^2
    seeds = seeds_to_tell(NOISE, 0.005, 10_000)
    assert seeds is not None
    assert (
        smallest_difference(NOISE, Design(seeds, 10_000))
        <= 0.005
        < smallest_difference(NOISE, Design(seeds - 1, 10_000))
    )
    assert seeds_to_tell(NOISE, 0.0001, 360) is None
    assert images_to_tell(NOISE, 0.0001, 2) is None


def study(seeds: int, train_images: int = 50_000, **recipe: Any) -> tuple[Study, DatasetSummary]:
    data = DatasetSummary(
        path=Path("data/imagenet_samples.beton"),
        fingerprint="9f86d081884c",
        class_names=tuple("abcdefghij"),
        train_images=train_images,
        validation_images=360,
        uniform_size=(32, 32),
    )
    like_the_example = Recipe().with_values({"schedule.epochs": 8, **recipe})
    return Study("s", "?", like_the_example, {CLIP_FACTOR: (0.01, 0.02)}, seeds=tuple(range(seeds))), data


def noise_before(folder: Path, **recipe: Any) -> EarlierNoise:
    """What the studies in a folder show of trials with such a Recipe."""
    asked, data = study(1, **recipe)
    return earlier_noise(folder, data, [asked.recipe])


def test_a_plan_says_what_it_assumes(tmp_path: Path) -> None:
    first, second = power_sentences(*study(3), tmp_path, 0.5, "worker")
    assert first.startswith("Power: with 3 seeds and 360 validation images it can tell two settings apart")
    assert "assumed for 50,000 training images: two trials judge 10% of the images differently" in first
    assert first.endswith("and seeds spread by 0.3 points).")
    assert second.startswith("To tell a difference of 0.5 points, it would take")
    assert "worker-hours" in second
    [first, _] = power_sentences(*study(1), tmp_path, None, "worker")
    assert "Whether other seeds would reverse their order it cannot tell: by their seeds alone" in first
    assert "equal settings differ by up to 0.83 points" in first  # 1.96 sqrt(2) 0.3


def test_few_training_images_are_assumed_to_give_a_larger_spread(tmp_path: Path) -> None:
    [few, _] = power_sentences(*study(3, 5000), tmp_path, None, "worker")
    assert "two trials judge 20% of the images differently and seeds spread by 0.95 points" in few
    [part, _] = power_sentences(*study(3, **{"data.train_share": 0.1}), tmp_path, None, "worker")
    assert part == few
    assert assumed_spread(1_281_167) == 0.003
    assert smallest_difference(PairNoise.assumed(0.2, assumed_spread(5000)), Design(3, 360)) > 0.05


def test_with_a_holdout_the_power_is_that_of_the_images_that_are_held_out(tmp_path: Path) -> None:
    asked, data = study(9)
    data = replace(data, validation_images=10_000)
    whole, _ = power_sentences(asked, replace(data, validation_images=4_884), tmp_path, None, "worker")
    half, price = power_sentences(replace(asked, holdout=0.5), data, tmp_path, None, "worker")
    assert "and 4,884 held-out validation images it can tell" in half
    assert half.split("differ by")[1] == whole.split("differ by")[1]
    [of_half, of_all] = (
        int(said.split("9 seeds with ")[1].split()[0].replace(",", ""))
        for said in (power_sentences(asked, data, tmp_path, None, "worker")[1], price)
    )
    assert of_all == 2 * of_half


SPREAD_OUT = [[0.8, 0.82], [0.81, 0.79], [0.8, 0.805]]
"""Accuracies of two seeds of three settings; the better two of them are pooled."""


def test_a_plan_goes_by_earlier_studies_like_it(tmp_path: Path) -> None:
    study_with_bits(tmp_path / "before", SPREAD_OUT, 2000, agreement=0.8)
    found = noise_before(tmp_path)
    assert (found.freedom, found.trials, found.studies) == (2, 4, ("agc_sweep",))
    assert found.disagreement == pytest.approx(0.2, abs=0.03)
    assert found.seed_spread == pytest.approx(0.014, abs=0.01)
    [first, _] = power_sentences(*study(2), tmp_path, None, "worker")
    assert "measured in 4 trials of agc_sweep: two trials judge" in first
    assert "(2 degrees of freedom)" in first
    assert "assumed" not in first
    asked, data = study(1)
    assert earlier_noise(tmp_path, replace(data, fingerprint="another"), [asked.recipe]).studies == ()
    unwritten = replace(data, path=Path("imagenet_samples"), fingerprint="", validation_images=2000)
    assert earlier_noise(tmp_path, replace(unwritten, train_images=1440), [asked.recipe]) == found
    assert earlier_noise(tmp_path, unwritten, [asked.recipe]).studies == ()


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [
        ({"schedule.epochs": 16}, True),
        ({"schedule.epochs": 6}, True),
        ({"schedule.epochs": 17}, False),
        ({"data.train_share": 0.5}, False),
        ({"model.name": "nfnet_f1"}, False),
    ],
)
def test_trials_of_another_kind_say_nothing(tmp_path: Path, recipe: dict[str, Any], counts: bool) -> None:
    study_with_bits(tmp_path / "before", SPREAD_OUT, 2000)
    assert bool(noise_before(tmp_path, **recipe).studies) == counts


def test_seeds_that_ran_twice_count_once_and_an_exported_study_counts_too(tmp_path: Path) -> None:
    study_with_bits(tmp_path / "before", SPREAD_OUT, 2000, agreement=0.8)
    found = noise_before(tmp_path)
    shutil.copytree(tmp_path / "before", tmp_path / "again")
    assert noise_before(tmp_path).freedom == found.freedom
    export(tmp_path / "before", tmp_path / "elsewhere" / "exported", Console(quiet=True))
    exported = noise_before(tmp_path / "elsewhere")
    assert exported == found


def test_settings_that_learnt_little_do_not_count(tmp_path: Path) -> None:
    """At the edge of divergence seeds spread by tens of points, which says nothing of settings that learn."""
    study_with_bits(tmp_path / "before", [[0.8, 0.8], [0.8, 0.8], [0.1, 0.6], [0.1, 0.1]], 2000)
    found = noise_before(tmp_path)
    assert found.seed_spread is not None
    assert found.seed_spread < 0.02
    study_with_bits(tmp_path / "cliff" / "before", [[0.8, 0.8], [0.1, 0.6], [0.1, 0.1]], 2000)
    assert noise_before(tmp_path / "cliff").freedom == 1


def test_one_degree_of_freedom_is_too_few(tmp_path: Path) -> None:
    study_with_bits(tmp_path / "before", [[0.8, 0.8]], 2000)
    assert noise_before(tmp_path).seed_spread is None
    [first, _] = power_sentences(*study(2), tmp_path, None, "worker")
    assert "seeds spread by 0.3 points" in first


def test_contenders_are_dropped_by_a_measured_spread_that_is_larger_or_well_known() -> None:
    few, many = (EarlierNoise(0.2, 0.005**2, freedom, 0.0, 9, ("before",)) for freedom in (4, 12))
    assert few.spread_to_journal(50_000) == pytest.approx(0.005)  # 0.3 points are assumed
    assert few.spread_to_journal(5000) is None  # 0.95 points
    assert many.spread_to_journal(5000) == pytest.approx(0.005)
    assert EarlierNoise().spread_to_journal(5000) is None
