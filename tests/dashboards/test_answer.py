"""The answer to a study's question is correct, and states its uncertainty.

Takes about two seconds, most of it pandas' import.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nfnet_ray.analysis import (
    best_per_stratum,
    best_setting,
    load_study,
    setting_results,
    time_to_accuracy,
    wilson_interval,
)
from nfnet_ray.analysis.answer import contenders
from nfnet_ray.analysis.inference.holdout import held_out
from nfnet_ray.analysis.inference.selection import Noise, kept_of_one_seed
from nfnet_ray.analysis.inference.simulation import shared_variance, simulated_bits, simulated_rung
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.verdict import SEEDS_NOT_MEASURED
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import Event, StudyStarted
from tests.tracking.example_study import CLIP_FACTOR, agc_sweep, study_started, trial_events, write_journal

Outcome = tuple[Sequence[float], str]  # accuracies after each epoch, and how the trial ended


def study(
    directory: Path,
    space: Mapping[str, Sequence[Any]],
    outcomes: Sequence[Outcome],
    seeds: Sequence[int] = (0,),
) -> StudyRecord:
    """A study whose trials, in the order of the grid (seeds innermost), came out as said."""
    started = study_started(space, seeds)
    events: list[Event] = [started]
    for trial, (top1, state) in zip(started["trials"], outcomes, strict=True):
        events += trial_events(trial["name"], 10.0, top1, state)
    write_journal(directory, events)
    return load_study(directory)


def study_with_bits(
    directory: Path,
    accuracies: Sequence[Sequence[float]],
    images: int,
    agreement: float = 0.95,
    **told: Any,
) -> StudyRecord:
    """A study of one field, in which the trials of ``accuracies`` (settings, seeds) were right on simulated images."""
    seeds = len(accuracies[0])
    started = study_started({CLIP_FACTOR: [0.01 * 2**n for n in range(len(accuracies))]}, range(seeds))
    started["study"]["data"]["validation_images"] = images
    started["study"].update(told)  # type: ignore[typeddict-item]
    flat = np.array([[top1 for setting in accuracies for top1 in setting]])
    shared = shared_variance(float(flat.mean()), agreement)
    bits = simulated_bits(np.random.default_rng(0), flat, images, shared)[0]
    events: list[Event] = [started]
    for trial, right in zip(started["trials"], bits, strict=True):
        told_by_trial = trial_events(trial["name"], 10.0, [float(right.mean())])
        for event in told_by_trial:
            if event["event"] == "epoch":
                event["correct_images"] = CorrectImages(right, np.ones(images, bool)).to_text()
        events += told_by_trial
    write_journal(directory, events)
    return load_study(directory)


def test_settings_are_compared_image_by_image_where_the_images_are_known(tmp_path: Path) -> None:
    record = study_with_bits(tmp_path, [[0.8, 0.801, 0.799], [0.815, 0.816, 0.814]], 10_000)
    best = best_setting(record)
    assert best is not None
    [found] = best.contrasts
    assert (best.verdict, found.kind, found.is_paired, found.covers_seeds) == ("better", "better", True, True)
    assert 0 < found.low < 0.015 < found.high
    assert "better than clip_factor 0.01 (" in best.sentence()
    assert "probability of being better" in best.sentence()
    unpaired = best_setting(replace(record, correct_images={}))
    assert unpaired is not None
    assert not unpaired.contrasts[0].is_paired
    assert unpaired.contrasts[0].low < found.low
    assert "somewhat optimistic" in unpaired.caution()


def test_an_answer_is_computed_once_for_each_record(tmp_path: Path) -> None:
    record = study_with_bits(tmp_path, [[0.8], [0.9]], 360)
    best = best_setting(record)
    assert best is not None
    assert best_setting(record) is best
    other = best_setting(replace(record, trials=record.trials.assign(last_top1=[0.9, 0.8])))
    assert other is not None
    assert other.best.point != best.best.point


def test_settings_that_hardly_differ_are_equal_for_practice(tmp_path: Path) -> None:
    record = study_with_bits(tmp_path, [[0.8] * 5, [0.8] * 5], 50_000, equal_within=0.005)
    best = best_setting(record)
    assert best is not None
    assert best.verdict == "equal"
    assert ". It is equal in practice (within 0.5 points) to clip_factor" in best.sentence()


def test_what_cannot_be_told_comes_with_what_it_would_take(tmp_path: Path) -> None:
    best = best_setting(study_with_bits(tmp_path, [[0.8, 0.81], [0.81, 0.812]], 1000))
    assert best is not None
    assert best.verdict == "cannot tell"
    assert "it would take about" in best.sentence()


def test_a_single_seed_each_has_mcnemars_test_and_no_verdict(tmp_path: Path) -> None:
    best = best_setting(study_with_bits(tmp_path, [[0.8], [0.85]], 5000))
    assert best is not None
    assert best.verdict == "cannot tell"
    p_value = best.contrasts[0].p_value
    assert p_value is not None
    assert p_value < 0.001
    assert best.sentence().endswith(SEEDS_NOT_MEASURED)


def test_the_luck_of_the_best_of_many_is_estimated_and_said(tmp_path: Path) -> None:
    best = best_setting(study_with_bits(tmp_path, [[0.8]] * 20, 500, agreement=0.85))
    assert best is not None
    assert best.optimism is not None
    assert best.corrected_top1 == pytest.approx(0.8, abs=0.02)
    assert best.best.top1 - best.corrected_top1 > 0.01
    assert (
        f"of it are the luck of the best of 20, so expect {100 * best.corrected_top1:.1f}%" in best.sentence()
    )
    assert best.best.low < wilson_interval(best.best.top1, 500)[0]


def test_with_a_holdout_the_best_is_chosen_on_one_part_and_quoted_on_the_other(tmp_path: Path) -> None:
    record = study_with_bits(tmp_path, [[0.8]] * 20, 1000, agreement=0.85, holdout=0.5)
    best = best_setting(record)
    assert best is not None
    kept = held_out(1000, 0.5)
    by_trial = [record.correct(trial, 1) for trial in record.trials["trial"]]
    chosen = max(by_trial, key=lambda trial: trial.correct[~kept].mean() if trial else 0.0)
    assert chosen is not None
    assert best.best.top1 == pytest.approx(chosen.correct[kept].mean())
    assert best.is_held_out
    assert best.optimism is None
    assert f"{int(kept.sum())} validation images that it was not chosen on" in best.sentence()


def test_the_held_out_images_are_about_the_share_and_stay_when_there_are_more() -> None:
    few, many = held_out(1000, 0.3), held_out(50_000, 0.3)
    assert (many[:1000] == few).all()
    assert many.mean() == pytest.approx(0.3, abs=0.01)


def test_the_sentence_names_the_setting_the_interval_the_images_and_the_seeds(tmp_path: Path) -> None:
    outcomes = [
        ([348 / 360], "finished"),
        ([0.8], "finished"),
        ([350 / 360], "finished"),
        ([0.7], "finished"),
    ]
    record = study(tmp_path, {CLIP_FACTOR: [0.01, 0.02], "batch_size": [64, 256]}, outcomes)
    best = best_setting(record)
    assert best is not None
    assert best.sentence() == (
        "Best setting: clip_factor 0.02 at batch_size 64: top-1 97.2% (95% interval over images 95.0 to 98.5%; "
        "360 validation images, 1 seed). It cannot be told apart from clip_factor 0.01 (96.7%), with an assumed spread "
        "between seeds of 1.8 points. Run with --seeds 3 to measure it"
    )


def test_a_clear_winner_is_said_to_be_one_where_the_seeds_were_measured(tmp_path: Path) -> None:
    outcomes = [([0.5], "finished"), ([0.52], "finished"), ([0.9], "finished"), ([0.91], "finished")]
    record = study(tmp_path, {CLIP_FACTOR: [0.01, None]}, outcomes, seeds=(0, 1))
    best = best_setting(record)
    assert best is not None
    assert best.best.point == {CLIP_FACTOR: None}
    assert best.within_noise == ()
    assert best.sentence().startswith(
        "Best setting: clip_factor none: top-1 90.5% (95% interval over seeds and"
    )
    assert best.sentence().endswith(
        ". It is better than clip_factor 0.01 (51.0%) (probability of being better: over 99.9%)"
    )


@pytest.mark.parametrize("seeds_of_the_other", [0, 1])
def test_a_single_seed_is_never_ahead(tmp_path: Path, seeds_of_the_other: int) -> None:
    """Neither where no setting has a second one, nor where one of them still lacks it."""
    outcomes = [([0.5], "finished"), ([0.51], "interrupted"), ([0.9], "finished"), ([0.91], "interrupted")]
    if seeds_of_the_other:
        outcomes[3] = ([0.91], "finished")
    record = study(tmp_path, {CLIP_FACTOR: [0.01, None]}, outcomes, seeds=(0, 1))
    best = best_setting(record)
    assert best is not None
    assert best.within_noise == ()
    behind = "behind by more than the images and an assumed spread between seeds of 1.8 points explain"
    assert best.sentence().endswith(f". Next is clip_factor 0.01 (50.0%), {behind}. {SEEDS_NOT_MEASURED}")
    assert "over images, with an assumed spread between seeds of 1.8 points" in best.caution()


@pytest.mark.parametrize(
    ("earlier", "within"), [(None, [0.02, 0.04]), (0.001, [0.02]), (0.02, [0.02, 0.04, 0.08])]
)
def test_single_seeds_are_within_noise_by_the_spread_that_seeds_are_taken_to_have(
    tmp_path: Path, earlier: float | None, within: list[float]
) -> None:
    """With 50,000 training images 0.3 points are assumed; else it is the spread of earlier studies, which was kept."""
    outcomes = [([top1], "finished") for top1 in (0.9, 0.8955, 0.893, 0.87)]
    record = study(tmp_path, {CLIP_FACTOR: [0.01, 0.02, 0.04, 0.08]}, outcomes)
    record.study["data"].update(train_images=50_000, validation_images=50_000)
    if earlier is not None:
        record.study["seed_spread"] = earlier
    best = best_setting(record)
    assert best is not None
    assert [found.low > 0 for found in best.contrasts] == [True] * 3  # by the images alone
    assert [other.point[CLIP_FACTOR] for other in best.within_noise] == within
    which = (
        "an assumed spread between seeds of 0.3" if earlier is None else "the earlier spread between seeds of"
    )
    assert which in best.sentence()
    assert best.verdict == "cannot tell"


def test_seeds_that_differ_more_than_the_settings_are_noise(tmp_path: Path) -> None:
    """Four settings of one distribution, with 50,000 images: the images alone would tell the best from the rest."""
    draws = [(88.0, 78.3, 89.2), (80.1, 85.5, 86.3), (79.9, 84.2, 83.7), (85.8, 81.2, 80.0)]
    space = {CLIP_FACTOR: [0.01, 0.02, 0.04, 0.08]}
    outcomes = [([top1 / 100], "finished") for setting in draws for top1 in setting]
    record = study(tmp_path, space, outcomes, seeds=(0, 1, 2))
    record.study["data"]["validation_images"] = 50_000
    best = best_setting(record)
    assert best is not None
    assert best.best.seed_top1 == pytest.approx((0.88, 0.783, 0.892))
    assert [other.point[CLIP_FACTOR] for other in best.within_noise] == [0.02, 0.04, 0.08]
    assert best.sentence().endswith(
        ". It cannot be told apart from clip_factor 0.02 (84.0%) and 2 more (probability of being better: 58%)"
    )
    assert best.best.high - best.best.low > 0.2


def test_a_setting_with_a_wide_spread_is_within_noise_of_the_best_though_the_runner_up_is_not(
    tmp_path: Path,
) -> None:
    outcomes = [([0.90], "finished"), ([0.9002], "finished")]
    outcomes += [([0.85], "finished"), ([0.8502], "finished"), ([0.75], "finished"), ([0.93], "finished")]
    record = study(tmp_path, {CLIP_FACTOR: [0.01, 0.02, 0.04]}, outcomes, seeds=(0, 1))
    record.study["data"]["validation_images"] = 50_000
    best = best_setting(record)
    assert best is not None
    assert best.sentence().endswith(
        ". It cannot be told apart from clip_factor 0.04 (84.0%) (probability of being better: 54%)"
    )


def test_each_stratum_has_an_answer_of_its_own(tmp_path: Path) -> None:
    outcomes = [([0.90], "finished"), ([0.95], "finished"), ([0.97], "finished"), ([0.80], "finished")]
    record = study(tmp_path, {CLIP_FACTOR: [0.01, 0.02], "batch_size": [64, 256]}, outcomes)
    points = [tuple(answer.best.point.values()) for answer in best_per_stratum(record)]
    assert points == [(0.02, 64), (0.01, 256)]
    assert [answer.candidates for answer in best_per_stratum(record)] == [2, 2]


def test_accuracy_is_that_after_the_last_epoch_not_the_luckiest(tmp_path: Path) -> None:
    outcomes = [([0.5, 0.99, 0.8], "finished"), ([0.5, 0.7, 0.9], "finished")]
    record = study(tmp_path, {CLIP_FACTOR: [0.01, 0.02]}, outcomes)
    best = best_setting(record)
    assert best is not None
    assert best.best.top1 == 0.9
    assert list(record.trials["best_top1"]) == [0.99, 0.9]


def with_rung(directory: Path, seeds: int, given_up: float, lasts: float) -> StudyRecord:
    """Six settings, of which two were promoted from a rung with 70.2 and 70.0%, and the others given up there.

    ``lasts`` is the share of what is a trial's own that it keeps to the end.
    """
    at_rung = np.repeat([0.702, 0.7, *[given_up] * 4], seeds)
    promoted = np.arange(len(at_rung)) < 2 * seeds
    space = {CLIP_FACTOR: [0.01 * 2**n for n in range(6)]}
    return with_rung_of(
        directory, study_started(space, range(seeds)), at_rung, at_rung + 0.1, promoted, lasts
    )


def with_rung_of(
    directory: Path,
    started: StudyStarted,
    at_rung: NDArray[np.float64],
    at_end: NDArray[np.float64],
    promoted: NDArray[np.bool_],
    lasts: float,
) -> StudyRecord:
    """A study whose trials have these accuracies at a rung; those that were promoted have also one at the end."""
    images = 2000
    started["study"]["data"]["validation_images"] = images
    draw = np.random.default_rng(1)
    rung, end = simulated_rung(draw, at_rung, at_end, images, shared_variance(0.7, 0.8), lasts)
    events: list[Event] = [started]
    for number, (trial, is_finished) in enumerate(zip(started["trials"], promoted, strict=True)):
        measured = [rung[number], end[number]] if is_finished else [rung[number]]
        told = trial_events(
            trial["name"],
            10.0,
            [float(right.mean()) for right in measured],
            "finished" if is_finished else "stopped",
        )
        for event, right in zip([one for one in told if one["event"] == "epoch"], measured, strict=True):
            event["correct_images"] = CorrectImages(right, np.ones(images, bool)).to_text()
        events += told
    write_journal(directory, events)
    return load_study(directory)


@pytest.mark.parametrize("seeds", [1, 2])
def test_settings_that_a_rung_gave_up_are_rivals_of_the_best(tmp_path: Path, seeds: int) -> None:
    """Two of six settings finish; the others were just below them at the rung, or far below."""
    near, far = (with_rung(tmp_path / str(top1), seeds, top1, lasts=0.8) for top1 in (0.69, 0.3))
    best, easily_best = best_setting(near), best_setting(far)
    assert best is not None
    assert easily_best is not None
    assert best.optimism is not None
    assert easily_best.optimism is not None
    assert best.candidates == easily_best.candidates == 6
    assert best.best.seed_top1 == easily_best.best.seed_top1
    assert best.optimism.mean > 1.3 * easily_best.optimism.mean
    assert best.best.low < easily_best.best.low
    assert "best of 6 " in best.sentence() + best.caution()
    without = best_setting(replace(far, trials=far.trials[far.trials["state"] == "finished"]))
    assert without is not None
    assert without.optimism is not None
    assert without.candidates == 2
    assert easily_best.optimism.mean == pytest.approx(without.optimism.mean, abs=0.001)


def test_settings_that_were_given_up_learn_what_others_of_their_stratum_do(tmp_path: Path) -> None:
    """At the larger batch everything is learnt late. By that a poor setting of the small one would be the best."""
    started = study_started({CLIP_FACTOR: [0.01, 0.02, 0.04], "batch_size": [64, 256]})
    rung, end = ([0.80, 0.79, 0.60], [0.20, 0.19, 0.10]), ([0.90, 0.89, 0.70], [0.85, 0.84, 0.75])
    at_rung, at_end = (np.array(strata).T.reshape(-1) for strata in (rung, end))
    record = with_rung_of(tmp_path, started, at_rung, at_end, np.arange(6) < 4, lasts=0.8)
    best, of_small = best_setting(record), best_per_stratum(record)[0]
    assert best is not None
    assert best.optimism is not None
    assert of_small.optimism is not None
    assert best.best.point == of_small.best.point
    assert (best.candidates, of_small.candidates) == (6, 3)
    assert best.optimism.mean == pytest.approx(of_small.optimism.mean, abs=0.001)
    assert best.best.low == pytest.approx(of_small.best.low, abs=0.001)


@pytest.mark.parametrize("state", ["diverged", "running", "finished"])
def test_a_setting_that_went_on_from_a_rung_was_not_given_up_there(tmp_path: Path, state: str) -> None:
    """One that finished is a rival by its end."""
    record = with_rung(tmp_path, 1, 0.69, lasts=0.8)
    trials = record.trials.copy()
    trials.loc[trials.index[-1], "state"] = state
    best = best_setting(replace(record, trials=trials))
    assert best is not None
    assert best.candidates == (6 if state == "finished" else 5)


def test_settings_that_a_rung_gave_up_compete_with_the_part_of_their_luck_that_lasts(tmp_path: Path) -> None:
    """Where nothing of it lasts, the best of the two that finished is the best of two and no more."""
    found = {}
    for lasts in (0.0, 0.95):
        record = with_rung(tmp_path / str(lasts), 1, 0.69, lasts)
        best = best_setting(record)
        finished = best_setting(replace(record, trials=record.trials[record.trials["state"] == "finished"]))
        assert best is not None
        assert finished is not None
        assert best.optimism is not None
        assert finished.optimism is not None
        found[lasts] = best.optimism.mean / finished.optimism.mean
    assert found[0.0] == pytest.approx(1, abs=0.15)
    assert found[0.95] > 1.3


def test_settings_that_are_no_contenders_are_rivals_of_the_best(tmp_path: Path) -> None:
    """Equal settings whose seeds spread by three times the assumed 0.3 points, so that the first seeds choose."""
    spread, studies = 0.01, 8
    draw, left, left_alone = np.random.default_rng(3), [], []
    for number in range(studies):
        accuracies = 0.8 + spread * draw.standard_normal((20, 3))
        whole = study_with_bits(tmp_path / str(number), accuracies.tolist(), 3000, agreement=0.9)
        whole.study["data"]["train_images"] = 50_000
        later = frozenset(whole.trials["trial"][whole.trials["seed"] > 0])
        points, dropped = contenders(replace(whole, further=later))
        racing = whole.trials[CLIP_FACTOR].isin([point[CLIP_FACTOR] for point in points])
        trials = whole.trials[racing | ~whole.trials["trial"].isin(later)]
        record = replace(whole, trials=trials, dropped=dropped, further=later & frozenset(trials["trial"]))
        best = best_setting(record)
        alone = best_setting(replace(record, trials=whole.trials[racing], dropped={}))
        assert best is not None
        assert alone is not None
        assert best.candidates == 20
        assert best.quoted.seed_top1 == alone.quoted.seed_top1
        assert len(best.contrasts) == len(points) - 1
        true = whole.trials["last_top1"].mean()  # on these images, which all share
        left.append(best.corrected_top1 - true)
        left_alone.append(alone.corrected_top1 - true)
    assert np.mean(left_alone) > 0.002
    assert abs(np.mean(left)) < 0.003
    assert np.mean(left_alone) - np.mean(left) > 0.003


def test_the_luck_of_one_seed_is_that_of_the_mean_as_far_as_it_is_in_the_images() -> None:
    images, seeds = np.diag([1e-4] * 4), np.full(4, 1e-4)
    assert kept_of_one_seed(Noise(images, np.zeros(4), 1), 3) == 1
    assert kept_of_one_seed(Noise(np.zeros((4, 4)), seeds, 8), 3) == pytest.approx(3**-0.5)
    assert kept_of_one_seed(Noise(images, seeds, 8), 3) == pytest.approx(0.5**0.5)
    # What all settings share of the luck in the images moves no order.
    assert kept_of_one_seed(Noise(images + 1.0, seeds, 8), 3) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("state", ["stopped", "diverged", "failed", "interrupted"])
def test_a_trial_that_did_not_finish_does_not_win(tmp_path: Path, state: str) -> None:
    record = study(tmp_path, {CLIP_FACTOR: [0.01, 0.02]}, [([0.99], state), ([0.9], "finished")])
    best = best_setting(record)
    assert best is not None
    assert (best.best.point[CLIP_FACTOR], best.candidates) == (0.02, 1)
    assert best.runner_up is None


def test_a_setting_that_diverges_for_one_seed_does_not_win_by_its_survivors(tmp_path: Path) -> None:
    outcomes = [([0.99], "finished"), ([0.1], "diverged"), ([0.9], "finished"), ([0.92], "finished")]
    record = study(tmp_path, {CLIP_FACTOR: [0.01, 0.02]}, outcomes, seeds=(0, 1))
    best = best_setting(record)
    assert best is not None
    assert best.best.point == {CLIP_FACTOR: 0.02}
    assert best.best.top1 == pytest.approx(0.91)
    assert best.best.seed_top1 == (0.9, 0.92)
    assert "2 seeds" in best.sentence()


def test_seeds_do_not_narrow_the_interval_of_images_that_they_share(tmp_path: Path) -> None:
    record = study(tmp_path, {CLIP_FACTOR: [0.01]}, [([0.9], "finished")] * 3, seeds=(0, 1, 2))
    [result] = setting_results(record)
    assert (result.low, result.high) == wilson_interval(0.9, 360)


def test_of_equals_the_first_of_the_space_wins_and_the_other_is_within_noise(tmp_path: Path) -> None:
    record = study(tmp_path, {CLIP_FACTOR: [0.04, 0.01]}, [([0.9], "finished"), ([0.9], "finished")])
    best = best_setting(record)
    assert best is not None
    assert best.best.point == {CLIP_FACTOR: 0.04}
    assert [other.point[CLIP_FACTOR] for other in best.within_noise] == [0.01]


def test_where_all_trials_diverge_there_is_no_answer(tmp_path: Path) -> None:
    record = study(tmp_path, {CLIP_FACTOR: [0.04, None]}, [([0.3, math.nan], "diverged"), ([], "diverged")])
    assert best_setting(record) is None
    assert best_per_stratum(record) == []
    assert list(record.trials["last_top1"]) == pytest.approx([0.3, math.nan], nan_ok=True)


def test_a_study_without_a_space_has_a_result(tmp_path: Path) -> None:
    best = best_setting(study(tmp_path, {}, [([0.9], "finished")]))
    assert best is not None
    assert best.sentence().startswith("Result: top-1 90.0% (95% interval")


def test_a_later_attempt_replaces_what_an_earlier_one_measured(tmp_path: Path) -> None:
    started = study_started({CLIP_FACTOR: [0.01, 0.02]})
    first = trial_events("agc_sweep-00", 10.0, [0.1, 0.2], "interrupted")
    again = trial_events("agc_sweep-00", 500.0, [0.3, 0.4, 0.5])
    write_journal(tmp_path, [started, *first])
    assert list(load_study(tmp_path).trials["state"]) == ["interrupted", "not started"]
    write_journal(tmp_path, [{"event": "study_resumed", "time": 400.0}, *again[:1]])
    record = load_study(tmp_path)
    assert (record.state, *record.trials["state"]) == ("unfinished", "unfinished", "not started")
    write_journal(tmp_path, again[1:])
    record = load_study(tmp_path)
    assert list(record.epochs["validation_top1"]) == [0.3, 0.4, 0.5]
    assert record.trials.to_dict("records")[0]["state"] == "finished"


def test_time_to_accuracy_is_the_training_time_of_the_first_epoch_that_reached_it(tmp_path: Path) -> None:
    outcomes = [([0.5, 0.92, 0.89, 0.95], "finished"), ([0.5, 0.6], "stopped")]
    record = study(tmp_path, {CLIP_FACTOR: [0.01, None]}, outcomes)
    table = time_to_accuracy(record, 0.9)
    assert list(table["train_seconds"]) == pytest.approx([80.0, math.nan], nan_ok=True)
    assert list(table["epoch"]) == pytest.approx([2, math.nan], nan_ok=True)
    assert time_to_accuracy(record, 0.999)["train_seconds"].isna().all()


def test_the_tables_have_a_row_for_each_trial_and_epoch(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    record = load_study(tmp_path)
    assert len(record.trials) == 12
    assert len(record.epochs) == 10 * 8 + 2 * 3
    assert record.names == {CLIP_FACTOR: "clip_factor", "batch_size": "batch_size"}
    row = record.trials.to_dict("records")[10]
    assert (row[CLIP_FACTOR], row["batch_size"], row["startup_seconds"]) == (None, 64, 4.2)
    assert row["images_per_second"] == pytest.approx(1440 * 8 / row["train_seconds"])


def test_a_study_is_found_by_its_directory_and_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_journal(tmp_path / "runs" / "agc_sweep", agc_sweep((0.01,), (64,)))
    for study in ("agc_sweep", "runs/agc_sweep", tmp_path / "runs" / "agc_sweep"):
        assert load_study(study).study["name"] == "agc_sweep"
    with pytest.raises(UserError, match=r"did you mean agc_sweep\?"):
        load_study("agc_swep")


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study .*name a folder that holds"):
        load_study(tmp_path)
    write_journal(tmp_path, [{"event": "study_resumed", "time": 1.0}])
    with pytest.raises(UserError, match="study_started, is missing"):
        load_study(tmp_path)
