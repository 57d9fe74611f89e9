"""The suggested clip factor, for planted accuracies and planted ratios of gradients to parameters."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nfnet_ray.analysis import load_study
from nfnet_ray.analysis.clip_factor import (
    ClipFactorSuggestion,
    TriedFactor,
    extend_command,
    suggest_clip_factors,
    suggest_factor,
)
from nfnet_ray.analysis.clipping import (
    clipping_by_layer,
    clipping_by_part,
    differs_from_step,
    shares_that_factors_would_clip,
)
from nfnet_ray.analysis.setting import SettingImages, setting_result
from nfnet_ray.clipping import BINS, EDGES, OCTAVES, Clipping, clipping_from_counts
from nfnet_ray.tracking.events import Event
from tests.tracking.example_study import CLIP_FACTOR, agc_sweep, write_journal

NONE = math.inf
IMAGES = 360


def lognormal(median: float, octaves: float = 1.5) -> dict[float, float]:
    """{factor: share above it} of ratios whose log2 is normal with this standard deviation."""
    return {
        float(edge): 0.5 * math.erfc(math.log2(edge / median) / octaves / math.sqrt(2)) for edge in OCTAVES
    }


def suggested(
    top1: dict[float, float | None], median: float = 0.02, images: int = IMAGES
) -> ClipFactorSuggestion:
    """What is suggested after these accuracies; None: the trial was given up, or diverged."""
    return suggest_factor(
        [
            TriedFactor(factor, () if value is None else (value,), partial(lognormal, median))
            for factor, value in top1.items()
        ],
        images,
    )


def test_neighbours_are_compared_image_by_image_as_in_the_answer() -> None:
    """The factors on both sides err on 30 images more, 1.5% of them, which are told apart on the same images alone."""
    best = np.arange(2000) < 1800
    bits = {0.01: best & (np.arange(2000) >= 30), 0.04: best, 0.16: best & (np.arange(2000) >= 30)}
    measured = np.ones(2000, bool)

    def tried(factor: float, is_known: bool) -> TriedFactor:
        top1 = [float(bits[factor].mean())]
        images = SettingImages(bits[factor][None], measured)
        result = setting_result({CLIP_FACTOR: factor}, top1, 2000, images) if is_known else None
        return TriedFactor(factor, tuple(top1), partial(lognormal, 0.02), result)

    apart, paired = (
        suggest_factor([tried(factor, is_known) for factor in bits], 2000) for is_known in (False, True)
    )
    assert "0.01 and 0.16 on its two sides cannot be told apart from it" in apart.reasoning
    assert paired.factor == 0.08


def test_an_optimum_at_the_largest_factor_is_followed_upwards() -> None:
    found = suggested({0.01: 0.90, 0.02: 0.95, 0.04: 0.98})
    # 25% are clipped at 0.04; half of that, 12.6%, at 0.068, in two digits 0.07.
    assert found.factor == 0.07
    assert found.reasoning == (
        "The best of 0.01, 0.02 and 0.04 is 0.04, which clips 25.2% of the units; no larger factor was tried, and at "
        "0.07 it would be 12.2%, by its own gradients."
    )


def test_of_many_factors_the_first_and_the_last_are_named() -> None:
    tried: dict[float, float | None] = {
        number / 1000: 0.9 - abs(number - 20) / 1000 for number in range(1, 41)
    }
    assert suggested(tried).reasoning.startswith("The best of 40 factors from 0.001 to 0.04 is 0.02")
    with_none = suggested(tried | {NONE: 0.5}).reasoning
    assert with_none.startswith("The best of 40 factors from 0.001 to 0.04 and no clipping is 0.02")


def test_no_clipping_that_diverged_does_not_bound_the_search() -> None:
    found = suggested({0.01: 0.90, 0.02: 0.95, 0.04: 0.98, NONE: None})
    assert found.factor == 0.07
    assert "0.04 and no clipping is 0.04" in found.reasoning


def test_an_optimum_at_the_smallest_factor_is_followed_downwards() -> None:
    found = suggested({0.01: 0.98, 0.02: 0.95, 0.04: None})
    # 75% are clipped at 0.01; half of the others are left at 0.006.
    assert found.factor == 0.006
    assert "the smallest" not in found.reasoning
    assert found.reasoning.endswith(
        "no smaller factor was tried, and at 0.006 it would be 86.6%, by its own gradients."
    )


def test_below_a_factor_that_clips_everything_only_the_learning_rate_changes() -> None:
    found = suggested({0.01: 0.98, 0.02: 0.95}, median=0.5)
    assert found.factor is not None
    assert found.factor < 0.01
    assert "acts as a smaller learning rate" in found.reasoning


def test_a_factor_that_clips_nothing_ends_the_search() -> None:
    found = suggested({0.01: 0.90, 0.02: 0.98, 0.04: 0.98, NONE: 0.98}, median=1e-5)
    assert found.factor is None
    assert (
        "is 0.02, which clips under 0.1% of the units: from 0.02 on factors change hardly anything"
        in found.reasoning
    )
    none_best = suggested({0.01: 0.90, 0.02: 0.97, NONE: 0.98}, median=1e-5)
    assert none_best.factor is None
    assert "nothing lies between the two" in none_best.reasoning


def test_no_clipping_that_is_best_is_approached_from_the_largest_factor() -> None:
    found = suggested({0.01: 0.90, 0.02: 0.95, NONE: 0.98})
    assert found.factor is not None
    assert 0.02 < found.factor <= 0.08
    assert "clips 50.0% of the units" in found.reasoning


def test_neighbours_within_noise_ask_for_seeds_and_not_for_factors() -> None:
    top1: dict[float, float | None] = {0.01: 0.970, 0.02: 0.975, 0.04: 0.972}
    found = suggested(top1)
    assert found.factor is None
    assert "more seeds say more than more factors" in found.reasoning
    # A thousand times as many images tell them apart.
    assert suggested(top1, images=1000 * IMAGES).factor == 0.03


def test_an_optimum_inside_is_refined_towards_its_better_neighbour() -> None:
    assert suggested({0.01: 0.90, 0.02: 0.98, 0.04: 0.70}).factor == 0.015
    assert suggested({0.01: None, 0.02: 0.98, 0.04: 0.90}).factor == 0.03
    assert suggested({0.018: 0.90, 0.02: 0.98, 0.022: None}).factor is None


def test_where_every_trial_was_lost_a_smaller_factor_follows() -> None:
    found = suggested({0.04: None, 0.16: None, NONE: None})
    assert found.factor is not None
    assert found.factor < 0.04
    assert found.reasoning.startswith("No trial finished, down to 0.04")
    # From a run without clipping alone: the factor that would have clipped half of its units.
    assert suggested({NONE: None}, median=0.03).factor == 0.03
    assert suggested({NONE: 0.9}, median=0.03).factor == 0.15


def test_factors_that_were_not_counted_follow_the_grid() -> None:
    found = suggest_factor(
        [TriedFactor(0.01, (0.9,)), TriedFactor(0.02, (0.95,)), TriedFactor(0.04, (0.98,))], 360
    )
    assert found.factor == 0.08


def record_of(median: float, factor: float | None, first_step: int = 1) -> Clipping:
    """10 units of a stem and 90 of a stage, with ratios of this median in both, over 100 steps."""
    counts = np.zeros((2, BINS), np.int64)
    ratios = median * np.exp2(np.linspace(-3, 3, 1001))
    for row, units in enumerate((10, 90)):
        bins = np.searchsorted(EDGES, ratios)
        np.add.at(counts[row], bins, units)
    clipped = np.zeros(2, np.int64)
    if factor is not None:
        clipped = np.array([10, 90]) * int((ratios > factor).sum())
    return clipping_from_counts(
        [("stem.0", "stem", 10), ("blocks.0.conv0", "stage 1", 90)],
        counts,
        clipped,
        1001,
        [first_step] * len(OCTAVES),
    )


def with_clipping(events: list[Event], first_step: int = 1) -> list[Event]:
    """The events with a record at the end of each epoch: the larger batch has twice as large ratios."""
    [started, *_] = events
    assert started["event"] == "study_started"
    points: dict[str, Any] = {plan["name"]: plan["point"] for plan in started["trials"]}
    for event in events:
        if event["event"] == "epoch":
            point = points[event["trial"]]
            median = 0.01 * point["batch_size"] / 64
            event["clipping"] = record_of(median, point[CLIP_FACTOR], first_step).to_text()
    return events


def test_suggestions_of_a_study(tmp_path: Path) -> None:
    write_journal(tmp_path, with_clipping(agc_sweep((0.02, 0.04, 0.08, None))))
    record = load_study(tmp_path)
    found = suggest_clip_factors(record)
    assert [one.stratum for one in found] == [{"batch_size": 64}, {"batch_size": 256}]
    assert all(one.reasoning.endswith(".") for one in found)
    new = {one.factor for one in found if one.factor is not None}
    assert new
    # The old values are listed too, or the extension would leave them out.
    listed = ",".join([*(f"{factor:g}" for factor in sorted(new | {0.02, 0.04, 0.08})), "none"])
    assert extend_command(record, found) == (
        f"python studies/agc_sweep.py --extend agc_sweep --sweep {CLIP_FACTOR}={listed}"
    )
    assert extend_command(record, []) == ""


def test_a_study_without_records_or_without_the_field_has_no_suggestion(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    assert suggest_clip_factors(load_study(tmp_path)) == []


def test_tables_of_what_was_clipped(tmp_path: Path) -> None:
    write_journal(tmp_path, with_clipping(agc_sweep((0.01,), (64,), epochs=3)))
    record = load_study(tmp_path)
    table = clipping_by_layer(record, "agc_sweep-00")
    assert list(table["epoch"]) == [1, 1, 2, 2, 3, 3]
    assert list(table["layer"][:2]) == ["stem.0", "blocks.0.conv0"]
    assert table["clipped"].tolist() == pytest.approx([0.5] * 6, abs=1e-3)
    assert table["q50"].tolist() == pytest.approx([0.01] * 6, rel=0.1)
    assert clipping_by_part(record, "agc_sweep-00") == pytest.approx({"stem": 0.5, "stage 1": 0.5}, abs=1e-3)
    shares = shares_that_factors_would_clip([record_of(0.01, None)])
    assert shares is not None
    assert [shares[float(factor)] for factor in OCTAVES[9:16]] == pytest.approx(
        [1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0], abs=2e-3
    )


@pytest.mark.parametrize("first_step", [1, 300])
def test_the_step_from_which_trials_differ(tmp_path: Path, first_step: int) -> None:
    write_journal(tmp_path, with_clipping(agc_sweep(), first_step))
    assert differs_from_step(load_study(tmp_path)) == first_step
