"""Training times at equal accuracy: by hand, and their intervals in simulated studies of known truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from nfnet_ray.analysis.frontier import (
    BUDGET,
    NETWORK,
    Budget,
    Curve,
    curves,
    equal_accuracy,
    frontier,
    time_sentences,
    time_to_target,
)
from nfnet_ray.analysis.inference.paired import Bits
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.setting import SettingImages
from nfnet_ray.tracking.labels import ABSENT

EPOCHS = (3, 6, 12)


def curve(label: str, seconds: list[list[float]], top1: list[list[float]]) -> Curve:
    budgets = zip(EPOCHS[: len(seconds)], seconds, top1, strict=True)
    return Curve(
        {NETWORK: label}, label, tuple(Budget(epochs, tuple(s), tuple(t)) for epochs, s, t in budgets)
    )


def record_of(found: list[Curve]) -> StudyRecord:
    rows = [
        {
            "trial": f"{one.label}-{budget.epochs}-{seed}",
            NETWORK: one.label,
            BUDGET: budget.epochs,
            "seed": seed,
            "state": "finished",
            "epochs": budget.epochs,
        }
        | {"train_seconds": budget.train_seconds[seed], "last_top1": budget.top1[seed]}
        for one in found
        for budget in one.budgets
        for seed in range(len(budget.top1))
    ]
    table = pd.DataFrame(rows)
    return StudyRecord(
        study={},  # type: ignore[typeddict-item]
        started=0.0,
        state="finished",
        reason="",
        accelerator_hours=0.0,
        price_per_hour=None,
        last_event=0.0,
        wall_seconds=None,
        fields=(NETWORK, BUDGET),
        names={},
        epochs=table.iloc[:0],
        trials=table,
    )


FREE = curve("nfnet_pico", [[10.0], [20.0], [40.0]], [[0.80], [0.90], [0.95]])
OTHER = curve("test_resnet", [[30.0], [60.0], [120.0]], [[0.70], [0.90], [0.94]])


def test_between_two_budgets_the_logarithm_of_the_time_is_linear_in_the_accuracy() -> None:
    times = time_to_target(record_of([FREE, OTHER]), 0.85).set_index(NETWORK)["train_seconds"]
    assert times["nfnet_pico"] == pytest.approx(10 * 2**0.5)
    assert times["test_resnet"] == pytest.approx(30 * 2**0.75)


def test_nothing_is_said_beyond_the_shortest_and_the_longest_budget() -> None:
    record = record_of([FREE, OTHER])
    assert time_to_target(record, 0.945)["train_seconds"].tolist()[1] == math.inf
    assert math.isnan(time_to_target(record, 0.75)["train_seconds"][0])
    assert equal_accuracy(FREE, OTHER, [FREE, OTHER], target=0.99) is None
    assert equal_accuracy(FREE, OTHER, [FREE, OTHER], target=0.75) is None


def test_a_budget_that_diverged_with_a_seed_is_not_what_its_survivors_reached() -> None:
    """As in an answer. The diverged trial ended in epoch 2 of 6."""
    found = [
        curve(
            "nfnet_pico", [[10.0, 10.0], [20.0, 20.0], [40.0, 40.0]], [[0.8, 0.8], [0.9, 0.9], [0.95, 0.95]]
        )
    ]
    record = record_of(found)
    lost = (record.trials[BUDGET] == 6) & (record.trials["seed"] == 1)
    assert [budget.epochs for budget in curves(record)[0].budgets] == [3, 6, 12]
    for state in ("diverged", "failed", "stopped", "interrupted"):
        trials = record.trials.copy()
        trials.loc[lost, ["state", "epochs", "last_top1"]] = state, 2, 0.1
        seeds = {
            budget.epochs: len(budget.top1) for budget in curves(replace(record, trials=trials))[0].budgets
        }
        # A trial that will be resumed is only missing.
        assert seeds == ({3: 2, 6: 1, 12: 2} if state == "interrupted" else {3: 2, 12: 2})


def test_settings_with_the_same_values_of_two_fields_have_their_own_names() -> None:
    fields = ("model.width", "model.depth", NETWORK, BUDGET)
    points = [(2, 3, "a", 3), (3, 2, "a", 3), (2, ABSENT, "a", 3), (ABSENT, 2, "a", 3)]
    trials = pd.DataFrame(
        [
            dict(zip(fields, point, strict=True))
            | {"trial": "one", "state": "finished", "epochs": 3, "train_seconds": 1.0, "last_top1": 0.5}
            for point in points
        ]
    )
    names = {"model.width": "width", "model.depth": "depth", NETWORK: "model", BUDGET: "epochs"}
    record = replace(record_of([FREE]), trials=trials, fields=fields, names=names)
    assert [one.label for one in curves(record)] == [
        "a, width 2, depth 3",
        "a, width 3, depth 2",
        "a, width 2",
        "a, depth 2",
    ]


def test_a_longer_budget_that_is_worse_changes_no_time() -> None:
    worse = curve("nfnet_pico", [[10.0], [20.0], [40.0]], [[0.80], [0.90], [0.85]])
    assert time_to_target(record_of([worse]), 0.88)["train_seconds"][0] == pytest.approx(10 * 2**0.8)


def test_the_sentence_is_at_the_highest_accuracy_that_both_reach() -> None:
    (said,) = time_sentences(record_of([FREE, OTHER]))
    ratio = 20 * 2**0.8 / 120
    assert said == (
        f"At equal accuracy (94.0%) nfnet_pico takes {ratio:.2f} of test_resnet's training time (1 seed: what another "
        "seed would give was not measured)"
    )


def test_networks_without_an_accuracy_in_common() -> None:
    poor = curve("test_resnet", [[30.0], [60.0], [120.0]], [[0.10], [0.20], [0.30]])
    assert time_sentences(record_of([FREE, poor])) == [
        "nfnet_pico and test_resnet reach no accuracy in common with these budgets: nfnet_pico 80.0% to 95.0% and "
        "test_resnet 10.0% to 30.0%"
    ]


def test_networks_whose_accuracies_overlap_by_less_than_the_noise() -> None:
    noisy = curve(
        "nfnet_pico", [[10.0, 10.0], [20.0, 20.0], [40.0, 40.0]], [[0.86, 0.94], [0.97, 0.98], [0.99, 0.98]]
    )
    other = curve(
        "test_resnet", [[3.0, 3.1], [7.0, 7.1], [15.0, 15.1]], [[0.975, 0.98], [0.98, 0.985], [0.985, 0.99]]
    )
    (said,) = time_sentences(record_of([noisy, other]))
    assert said.startswith(
        "nfnet_pico and test_resnet cannot be compared: there is no accuracy that both surely reach"
    )
    assert said.endswith("a shorter budget or more seeds would tell")


def test_a_setting_of_single_seeds_has_no_interval_whatever_the_others_have() -> None:
    seeded = curve("test_resnet", [[30.0, 33.0], [60.0, 64.0]], [[0.70, 0.72], [0.90, 0.91]])
    free = curve("nfnet_pico", [[10.0], [20.0, 21.0]], [[0.80], [0.90, 0.91]])
    times = time_to_target(record_of([free, seeded]), 0.85).set_index(NETWORK)
    assert times.loc["nfnet_pico"].notna().tolist() == [True, False, False]
    assert times.loc["test_resnet", "low"] < times.loc["test_resnet", "high"]


def test_only_finished_trials_count() -> None:
    record = record_of([FREE])
    record.trials.loc[2, "state"] = "diverged"
    assert [budget.epochs for budget in curves(record)[0].budgets] == [3, 6]


def test_the_frontier_has_what_nothing_faster_beats() -> None:
    table = frontier(record_of([FREE, OTHER]))
    on_it = table[table["is_on_frontier"]]
    assert list(zip(on_it[NETWORK], on_it[BUDGET], strict=True)) == [
        ("nfnet_pico", epochs) for epochs in EPOCHS
    ]
    assert table["train_seconds"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("seeds", "top1_spread", "time_spread"),
    [(2, 0.003, 0.02), (3, 0.01, 0.02), (3, 0.005, 0.15), (5, 0.005, 0.15)],
)
def test_the_interval_of_a_ratio_covers(seeds: int, top1_spread: float, time_spread: float) -> None:
    draw = np.random.default_rng([seeds, round(1000 * top1_spread)])
    log_seconds = np.log([[10, 20, 40], [25, 50, 100]])
    accuracy = np.array([[0.80, 0.88, 0.93], [0.82, 0.89, 0.92]])
    target = 0.90
    truth = math.log(20 * 2 ** (0.02 / 0.05)) - math.log(50 * 2 ** (0.01 / 0.03))
    covered = []
    for _ in range(300):
        found = [
            curve(
                name,
                np.exp(log_seconds[row][:, None] + time_spread * draw.standard_normal((3, seeds))).tolist(),
                (accuracy[row][:, None] + top1_spread * draw.standard_normal((3, seeds))).tolist(),
            )
            for row, name in enumerate(("nfnet_pico", "test_resnet"))
        ]
        compared = equal_accuracy(found[0], found[1], found, target)
        if compared is None:  # the mean of a longest budget is below the target
            continue
        assert compared.low is not None
        assert compared.high is not None
        covered.append(compared.low <= math.exp(truth) <= compared.high)
    assert len(covered) > 260
    assert 0.925 <= np.mean(covered) <= 0.985


def test_the_interval_covers_another_draw_of_the_images() -> None:
    """Some images are easy for one network and not for the other, with any seed: they move the two curves apart.

    On the CIFAR-10 of studies/results/efficientnet_cifar10 this part has a standard error of 0.4 to 0.6 points, and
    seeds have 0.4 to 0.5.
    """
    images, seeds, studies, target = 1000, 5, 150, 0.90
    draw = np.random.default_rng(1)
    log_seconds = np.log([[10, 20, 40], [25, 50, 100]])
    truth = 20 * 2 ** (0.02 / 0.05) / (50 * 2 ** (0.01 / 0.03))
    accuracies = np.array([[0.80, 0.88, 0.93], [0.82, 0.89, 0.92]])
    # Of the hardness of an image: a part for all, one for each network, and one for each trial.
    parts = np.sqrt([0.4, 0.25, 0.35])
    covered = {"seeds and images": 0, "seeds": 0}
    compared = 0
    for _ in range(studies):
        top1 = accuracies[:, :, None] + 0.002 * draw.standard_normal((2, 3, seeds))
        hard = parts[0] * draw.standard_normal(images) + parts[1] * draw.standard_normal((2, 1, 1, images))
        bits = hard + parts[2] * draw.standard_normal((2, 3, seeds, images)) < ndtri(top1)[..., None]
        seconds = np.exp(log_seconds[:, :, None] + 0.02 * draw.standard_normal((2, 3, seeds)))
        found = [
            curve(name, seconds[row].tolist(), bits[row].mean(axis=-1).tolist())
            for row, name in enumerate(("nfnet_pico", "test_resnet"))
        ]
        known = [
            replace(one, budgets=tuple(map(with_images, one.budgets, own)))
            for one, own in zip(found, bits, strict=True)
        ]
        for covers, two in (("seeds", found), ("seeds and images", known)):
            ratio = equal_accuracy(two[0], two[1], two, target)
            if ratio is None:  # the mean of a longest budget is below the target
                continue
            assert ratio.low is not None
            assert ratio.high is not None
            assert f"95% interval over {covers} " in ratio.sentence()
            covered[covers] += ratio.low <= truth <= ratio.high
            compared += covers == "seeds"
    assert compared > 130
    assert 0.925 <= covered["seeds and images"] / compared <= 0.985
    assert covered["seeds"] / compared < 0.88


def with_images(budget: Budget, bits: Bits) -> Budget:
    return replace(budget, images=SettingImages(bits, np.ones(bits.shape[-1], bool)))
