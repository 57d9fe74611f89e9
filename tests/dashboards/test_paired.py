"""Intervals that know which image each trial had right cover what they say, in simulated studies of known truth.

Takes about 20 seconds. ``python -m benchmarks.coverage`` tries more cases, with more studies.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nfnet_ray.analysis import wilson_interval
from nfnet_ray.analysis.inference.assumed_noise import ASSUMED_SPREAD
from nfnet_ray.analysis.inference.paired import (
    Bits,
    Moments,
    bonett_price,
    difference_parts,
    mcnemar,
    paired_accuracy_interval,
    paired_difference,
    setting_interval,
    setting_parts,
)
from nfnet_ray.analysis.inference.selection import moderated_variances, noise_of, optimism
from nfnet_ray.analysis.inference.simulation import (
    shared_variance,
    simulated_bits,
    simulated_moments,
    trial_accuracies,
)

STUDIES = 2000
# Of 2,000 studies the share that is covered has a standard error of 0.5%: true shares of 95 to 97% lie within these.
LOW, HIGH = 0.935, 0.985
LARGEST_FALSE = 1 - LOW
CASES = [(360, 0.9, 0.92), (360, 0.5, 0.5), (10_000, 0.8, 0.8), (50_000, 0.9, 0.95)]
SPREADS = [0.0, 0.002, 0.01]


@pytest.mark.parametrize(("images", "accuracy", "agreement"), CASES)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_over_seeds_and_images_cover(
    seeds: int, spread: float, images: int, accuracy: float, agreement: float
) -> None:
    draw = np.random.default_rng([seeds, round(1000 * spread), images])
    truth = np.array([accuracy, accuracy])
    moments = simulated_moments(
        draw, trial_accuracies(draw, STUDIES, truth, seeds, spread), images, agreement
    )
    difference = difference_parts(moments, seeds)
    covered = np.abs(difference.value) <= difference.half_width()
    # The better one is called better where 0 is not covered.
    assert LOW <= covered.mean() <= HIGH
    low, high = setting_interval(moments.only(range(seeds)))
    covered = (low <= accuracy) & (accuracy <= high)
    assert (0.925 if seeds == 2 else LOW) <= covered.mean() <= (0.98 if seeds == 2 else HIGH)


@pytest.mark.parametrize("difference", [0.0, 0.005, 0.02])
@pytest.mark.parametrize("disagreement", [0.05, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("images", [360, 2000])
def test_the_interval_of_one_seed_each_covers(images: int, disagreement: float, difference: float) -> None:
    """Added up over all outcomes: how many images are judged differently, and how many of them the first has right."""
    differ = np.arange(images + 1)
    likely = differ[stats.binom.pmf(differ, images, disagreement) > 1e-7]
    share = (disagreement + difference) / (2 * disagreement)
    covered = false = 0.0
    for number in likely.tolist():
        only_a = np.arange(number + 1)
        parts = bonett_price(only_a, number - only_a, images)
        chance = stats.binom.pmf(number, images, disagreement) * stats.binom.pmf(only_a, number, share)
        covered += float(chance[np.abs(parts.value - difference) <= parts.half_width()].sum())
        false += float(chance[np.abs(parts.value) > parts.half_width()].sum())
    assert 0.94 <= covered <= 0.97
    if difference == 0:
        assert false <= 0.0505


def test_mcnemars_test_is_the_binomial_one() -> None:
    # Agresti 2002, Categorical Data Analysis, table 10.1: 150 and 86 of 1600 changed their minds.
    assert mcnemar(86, 150) == pytest.approx(stats.binomtest(86, 236).pvalue)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)


@pytest.mark.parametrize(("seeds", "images", "agreement"), [(1, 50_000, 0.92), (2, 360, 0.8)])
@pytest.mark.parametrize("settings", [6, 50])
def test_the_best_of_equal_settings_is_seldom_better_and_its_optimism_is_found(
    settings: int, seeds: int, images: int, agreement: float
) -> None:
    studies = 400 if settings == 6 else 100
    draw = np.random.default_rng([settings, seeds, images])
    truth = trial_accuracies(draw, studies, np.full(settings, 0.8), seeds, 0.005 if seeds > 1 else 0.0)
    moments = simulated_moments(draw, truth, images, agreement)
    better = covered = 0
    naive, corrected = [], []
    for study in range(studies):
        one = Moments(moments.mean[study], moments.covariance[study], images)
        means = one.mean.reshape(settings, seeds).mean(axis=1)
        second, best = np.argsort(means)[-2:].tolist()
        low, high = (
            float(bound) for bound in setting_interval(one.only(range(best * seeds, (best + 1) * seeds)))
        )
        found = optimism(means, noise_of(one, [seeds] * settings), low, seeds, draws=500)
        assert best == found.best or means[best] == means[found.best]
        of_best = range(found.best * seeds, (found.best + 1) * seeds)
        if best == found.best:
            pair = one.only([*of_best, *range(second * seeds, (second + 1) * seeds)])
            parts = difference_parts(pair, seeds)
            better += bool(parts.value - parts.half_width() > 0)
        covered += found.low <= 0.8 <= high
        naive.append(means[found.best] - 0.8)
        corrected.append(means[found.best] - found.mean - 0.8)
    assert better / studies <= LARGEST_FALSE
    assert 0.92 <= covered / studies <= 0.98
    assert abs(np.mean(corrected)) <= 0.2 * np.mean(naive)


def test_the_best_of_many_high_accuracies_is_covered_and_its_interval_no_wider_than_that() -> None:
    """The luckiest of twenty has few images wrong, so its bits show less noise than its true accuracy has."""
    settings, images, studies = 20, 200, 1000
    draw = np.random.default_rng(1)
    truth = trial_accuracies(draw, studies, np.full(settings, 0.95), 1, 0.0)
    moments = simulated_moments(draw, truth, images, 0.95)
    covered = 0
    for study in range(studies):
        one = Moments(moments.mean[study], moments.covariance[study], images)
        best = int(one.mean.argmax())
        low, high = (float(bound) for bound in setting_interval(one.only([best])))
        covered += optimism(one.mean, noise_of(one, [1] * settings), low, 1, draws=500).low <= 0.95 <= high
    # With the noise that was seen it is 0.972, and with a symmetric interval, too, 0.998.
    assert 0.93 <= covered / studies <= 0.97


def test_the_best_of_six_is_covered_though_one_of_them_is_at_the_edge_of_divergence() -> None:
    """It is the best one more often than the others, and their spread says little about its own."""
    settings, seeds, images, studies = 6, 2, 10_000, 400
    draw = np.random.default_rng(7)
    spreads = np.array([0.01, 0.002, 0.002, 0.002, 0.002, 0.002])
    truth = trial_accuracies(draw, studies, np.full(settings, 0.8), seeds, spreads)
    moments = simulated_moments(draw, truth, images, 0.85)
    covered, wild = 0, 0
    for study in range(studies):
        one = Moments(moments.mean[study], moments.covariance[study], images)
        means = one.mean.reshape(settings, seeds).mean(axis=1)
        best = int(means.argmax())
        low, high = (float(bound) for bound in setting_interval(one.only([2 * best, 2 * best + 1])))
        found = optimism(means, noise_of(one, [seeds] * settings), low, seeds, draws=500)
        covered += found.low <= 0.8 <= high
        wild += best == 0
    assert wild > 1.5 * studies / settings
    assert covered / studies >= 0.92


@pytest.mark.parametrize(("images", "agreement", "spread"), [(360, 0.8, 0.01), (10_000, 0.8, 0.003)])
def test_the_winner_in_its_reruns_is_not_lucky(images: int, agreement: float, spread: float) -> None:
    """The best of six equal settings, of one seed each, and three reruns of it on the same images."""
    settings, reruns = 6, 3
    draw = np.random.default_rng(images)
    truth = trial_accuracies(draw, STUDIES, np.full(settings + reruns, 0.8), 1, spread)
    moments = simulated_moments(draw, truth, images, agreement)
    swept = moments.mean[:, :settings].max(axis=1)
    found = setting_parts(moments.only(range(settings, settings + reruns)))
    covered = (np.abs(found.value - 0.8) <= found.half_width()).mean()
    assert LOW <= covered <= HIGH
    assert abs(np.mean(found.value - 0.8)) < 0.2 * np.mean(swept - 0.8)


@pytest.mark.parametrize("several_first", [True, False])
@pytest.mark.parametrize("seeds", [2, 3])
def test_a_single_seed_is_covered_where_it_spreads_as_the_seeds_of_the_other(
    seeds: int, several_first: bool
) -> None:
    for images, agreement, spread in [(360, 0.8, 0.01), (10_000, 0.8, 0.003), (50_000, 0.9, 0.01)]:
        draw = np.random.default_rng([seeds, images])
        truth = trial_accuracies(draw, STUDIES, np.full(seeds + 1, 0.8), 1, spread)
        moments = simulated_moments(draw, truth, images, agreement)
        parts = difference_parts(moments, seeds if several_first else 1, one_spread=True)
        covered = np.abs(parts.value) <= parts.half_width()
        assert LOW <= covered.mean() <= HIGH, images


@pytest.mark.parametrize(
    ("settings", "seeds", "most"), [(2, 1, LARGEST_FALSE), (2, 3, LARGEST_FALSE), (6, 1, 0.02)]
)
def test_the_winner_in_its_reruns_is_seldom_better_than_an_equal_one(
    settings: int, seeds: int, most: float
) -> None:
    """The best of some equal settings has three reruns, and is compared with the next one in the sweep."""
    reruns = 3
    draw = np.random.default_rng([settings, seeds])
    truth = trial_accuracies(draw, STUDIES, np.full(settings * seeds + reruns, 0.8), 1, 0.005)
    moments = simulated_moments(draw, truth, 10_000, 0.8)
    means = moments.mean[:, : settings * seeds].reshape(STUDIES, settings, seeds).mean(axis=2)
    second = np.argsort(-means, axis=1)[:, 1]
    trials = np.concatenate(
        [
            np.tile(settings * seeds + np.arange(reruns), (STUDIES, 1)),
            second[:, None] * seeds + np.arange(seeds),
        ],
        axis=1,
    )
    study = np.arange(STUDIES)[:, None]
    chosen = Moments(
        moments.mean[study, trials],
        moments.covariance[study[:, :, None], trials[:, :, None], trials[:, None, :]],
        moments.images,
    )
    parts = difference_parts(chosen, reruns, one_spread=True)
    assert (parts.value > parts.half_width()).mean() <= most


@pytest.mark.parametrize("settings", [6, 50])
@pytest.mark.parametrize(
    ("images", "agreement", "spread"),
    [(360, 0.8, 0.01), (10_000, 0.8, 0.003), (50_000, 0.9, 0.0), (50_000, 0.9, 0.003), (50_000, 0.9, 0.01)],
)
def test_contenders_of_equal_settings_are_seldom_better(
    settings: int, images: int, agreement: float, spread: float
) -> None:
    """The contenders by their first seeds get two more, and the best of them is compared with the next one."""
    studies, seeds = 400 if settings == 6 else 100, 3
    draw = np.random.default_rng([settings, images, round(1000 * spread)])
    truth = trial_accuracies(draw, studies, np.full(settings, 0.8), seeds, spread)
    moments = simulated_moments(draw, truth, images, agreement)
    better, pairs, covered = 0, 0, 0
    for study in range(studies):
        one = Moments(moments.mean[study], moments.covariance[study], images)
        racing = contenders_by_first_seed(one, settings, seeds)
        means = one.mean.reshape(settings, seeds).mean(axis=1)
        best, second = sorted(racing, key=lambda setting: -means[setting])[:2]
        parts = difference_parts(one.only([*trials_of(best, seeds), *trials_of(second, seeds)]), seeds)
        better += bool(parts.value > parts.half_width())
        a, b = draw.permutation(racing)[:2].tolist()
        parts = difference_parts(one.only([*trials_of(a, seeds), *trials_of(b, seeds)]), seeds)
        covered += bool(np.abs(parts.value) <= parts.half_width())
        pairs += 1
    assert better / studies <= LARGEST_FALSE
    assert covered / pairs >= (LOW - 0.02 if settings == 6 else LOW - 0.04)


def test_a_better_setting_stays_a_contender() -> None:
    """One of six is better by half a point: it is dropped in one study of a hundred, where seeds spread as assumed."""
    settings, images, studies = 6, 10_000, 1000
    draw = np.random.default_rng(0)
    truth = trial_accuracies(draw, studies, np.array([0.805] + [0.8] * 5), 1, ASSUMED_SPREAD)
    moments = simulated_moments(draw, truth, images, 0.9)
    kept = sum(
        0 in contenders_by_first_seed(Moments(mean, covariance, images), settings, 1)
        for mean, covariance in zip(moments.mean, moments.covariance, strict=True)
    )
    assert kept / studies >= 0.98


def trials_of(setting: int, seeds: int) -> range:
    return range(setting * seeds, (setting + 1) * seeds)


def contenders_by_first_seed(one: Moments, settings: int, seeds: int) -> list[int]:
    """As :func:`nfnet_ray.analysis.answer.contenders` finds them."""
    first = [setting * seeds for setting in range(settings)]
    order = sorted(range(settings), key=lambda setting: -one.mean[first[setting]])
    best, found = order[0], order[:2]
    for other in order[2:]:
        a, b = first[best], first[other]
        value = one.mean[a] - one.mean[b]
        variance = one.covariance[a, a] + one.covariance[b, b] - 2 * one.covariance[a, b]
        either = (variance * (one.images - 1) / one.images + value**2) * one.images
        only = (either + value * one.images) / 2, (either - value * one.images) / 2
        parts = bonett_price(np.asarray(only[0]), np.asarray(only[1]), one.images)
        half = np.hypot(float(parts.half_width()), 1.96 * np.sqrt(2) * ASSUMED_SPREAD)
        if float(parts.value) - half <= 0:
            found.append(other)
    return found


@pytest.mark.parametrize("halving", [False, True])
def test_the_better_of_two_finalists_is_seldom_better(halving: bool) -> None:
    """Of six equal settings the two that were ahead at a rung are trained to the end, on the same images and seeds."""
    seeds, images, settings = 2, 2000, 6
    draw = np.random.default_rng(int(halving))
    at_end = trial_accuracies(draw, STUDIES, np.full(settings, 0.8), seeds, 0.005)
    moments = simulated_moments(draw, np.concatenate([at_end - 0.1, at_end], axis=1), images, 0.85)
    rung = moments.mean[:, : settings * seeds].reshape(STUDIES, settings, seeds).mean(axis=2)
    chosen = np.argsort(rung, axis=1)[:, -2:] if halving else np.tile([0, 1], (STUDIES, 1))
    trials = (settings * seeds + chosen[:, :, None] * seeds + np.arange(seeds)).reshape(STUDIES, -1)
    rows = np.arange(STUDIES)[:, None]
    pair = Moments(
        moments.mean[rows, trials],
        moments.covariance[rows[:, :, None], trials[:, :, None], trials[:, None, :]],
        images,
    )
    parts = difference_parts(pair, seeds)
    covered = (np.abs(parts.value) <= parts.half_width()).mean()
    assert LOW <= covered <= HIGH


def bits(draw: np.random.Generator, accuracies: list[float], images: int = 2000) -> Bits:
    shared = shared_variance(float(np.mean(accuracies)), 0.9)
    return simulated_bits(draw, np.array([accuracies]), images, shared)[0]


def test_pairing_tells_smaller_differences_apart() -> None:
    """At 80% top-1 and 10% of the images judged differently it is as good as three times the images."""
    trials = bits(np.random.default_rng(0), [0.8, 0.8], 50_000)
    found = paired_difference(trials[:1], trials[1:])
    unpaired = np.sqrt(2 * 0.8 * 0.2 / 50_000) * 1.96
    assert (found.high - found.low) / 2 == pytest.approx(unpaired * np.sqrt(0.1 / 0.32), rel=0.03)
    assert found.disagreement == pytest.approx(0.1, abs=0.005)
    assert found.covers == "images"


def test_the_interval_and_the_probability_agree() -> None:
    trials = bits(np.random.default_rng(1), [0.82, 0.825, 0.815, 0.8, 0.805, 0.795])
    found = paired_difference(trials[:3], trials[3:])
    assert found.covers == "seeds and images"
    assert found.p_value is None
    assert (found.low > 0) == (found.probability > 0.975)
    turned = paired_difference(trials[3:], trials[:3])
    assert turned.probability == pytest.approx(1 - found.probability)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_trials_that_are_the_same_do_not_differ() -> None:
    trials = bits(np.random.default_rng(2), [0.8])
    found = paired_difference(trials, trials)
    assert (found.value, found.p_value, found.probability) == (0.0, 1.0, 0.5)
    assert found.low < 0 < found.high


def test_an_accuracy_of_one_seed_has_wilsons_interval() -> None:
    trial = np.zeros((1, 360), bool)
    trial[0, :350] = True
    assert paired_accuracy_interval(trial) == wilson_interval(350 / 360, 360)
    low, high = paired_accuracy_interval(np.ones((2, 360), bool))
    assert 0.98 < low < high == 1.0


def test_a_setting_at_the_edge_of_divergence_does_not_make_the_others_look_lucky() -> None:
    trials = bits(np.random.default_rng(3), [0.9, 0.91, 0.905, 0.902, 0.895, 0.91, 0.3, 0.6, 0.9])
    noise = noise_of(Moments.of(trials), [3, 3, 3])
    assert noise.seeds[2] > 0.05**2
    assert max(noise.seeds[0], noise.seeds[1]) < noise.seeds[2] / 10


def test_spreads_that_differ_no_more_than_chance_are_pooled() -> None:
    draw = np.random.default_rng(4)
    same, freedom = moderated_variances(draw.chisquare(2, 200) / 2, np.full(200, 2.0))
    assert freedom > 40
    assert same == pytest.approx(1.0, abs=0.3)
    own, freedom = moderated_variances(np.array([1.0, 1e-4, 1.0, 1e-4, 1e2]), np.full(5, 2.0))
    assert freedom < 4
    assert own[4] > 30 * own[0] > 300 * own[1]
