"""Which trials continue is decided by accuracies alone: not by who is first, on how many places, or after a kill."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.optim.schedule import learning_rate_at
from nfnet_ray.recipe import Recipe
from nfnet_ray.study import Halving, Study
from nfnet_ray.study.confirmation import FindWinners
from nfnet_ray.study.contenders import FindContenders
from nfnet_ray.study.decisions import Decider, Leg, ends, groups, most_epochs, noise
from nfnet_ray.study.halving import parse_halving, with_schedule_of
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.journal import Journal, read_events
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import TrialProgress

IMAGES = 50_000
EPOCHS = 27
RECIPE = Recipe().with_values({"schedule.epochs": EPOCHS, "schedule.warmup_epochs": 0.0})
Curves = Mapping[str, list[float | None]]
"""{trial: its accuracy after each epoch}; None: it diverges in that epoch."""


def study_of(trials: int, halving: Halving | None, seeds: int = 1) -> Study:
    factors = tuple((number + 1) / 1000 for number in range(trials))
    return Study("s", "?", RECIPE, {"optimizer.agc.clip_factor": factors}, tuple(range(seeds)), halving)


class InMemory(Journal):
    """A journal that keeps its events in a list."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, event: Event) -> None:
        self.events.append(event)


class Killed(Exception):
    """The driver was killed."""


def nothing(*_: Any) -> None:
    """Does nothing."""


class Simulation:
    """A study whose trials have made-up curves, trained on some places at speeds that chance decides.

    Args:
        epoch_seconds: {trial: seconds of training that the journal has for each of its epochs}.
        find_contenders, find_winners: find the settings to give more seeds, and to confirm.
    """

    def __init__(
        self,
        study: Study,
        curves: Curves,
        images: int = IMAGES,
        epoch_seconds: Mapping[str, list[float]] | None = None,
        find_contenders: FindContenders | None = None,
        find_winners: FindWinners | None = None,
    ) -> None:
        self.finders = find_contenders, find_winners
        self.study, self.curves, self.images = study, curves, images
        self.epoch_seconds = epoch_seconds
        self.ends = defaultdict(lambda: most_epochs(study), ends(study))
        self.state = study.waiting_state()
        self.journal = InMemory()

    def run(self, places: int, chance: random.Random, kill_after: int | None = None) -> StudyState:
        """Runs to the end, or is killed when the journal has ``kill_after`` events."""

        def die_perhaps() -> None:
            if kill_after is not None and len(self.journal.events) >= kill_after:
                raise Killed

        recorder = Recorder(self.journal, self.state, die_perhaps, nothing)
        legs = Legs(self.study, self.images, recorder, *self.finders)
        while True:
            while len(legs.running) < places and (leg := legs.next()) is not None:
                legs.start(leg.trial)
            if not legs.running:
                return self.state
            leg = chance.choice(list(legs.running.values()))
            if not self._is_over(leg):
                epoch = self.state.trials[leg.trial].epoch
                assert leg.epochs_before <= epoch
                top1 = self.curves[leg.trial][epoch]
                if top1 is None:
                    legs.end(leg.trial, "diverged", None)
                    continue
                recorder.record_epoch(leg.trial, epoch + 1, self._metrics(leg.trial, epoch + 1, top1))
            if not self._is_over(leg):
                continue
            # As a worker reports it: it knows its own schedule alone.
            last = (
                self.study.epochs
                if leg.trial in self.state.reruns.keys() | self.state.further.keys()
                else self.ends.get(leg.trial, self.study.epochs)
            )
            if leg.schedule_epochs or self.state.trials[leg.trial].epoch == last:
                legs.end(leg.trial, "finished", None)
            else:
                legs.pause(leg.trial)

    def _metrics(self, name: str, epoch: int, top1: float) -> dict[str, float | None]:
        seconds = math.fsum(self.epoch_seconds[name][:epoch]) if self.epoch_seconds else float(epoch)
        return {METRIC: top1, "epoch": epoch, "train_seconds": seconds}

    def _is_over(self, leg: Leg) -> bool:
        trial = self.state.trials[leg.trial]
        if leg.until_seconds is not None and (trial.last("train_seconds") or 0.0) >= leg.until_seconds:
            return True
        return trial.epoch >= leg.until

    def resumed(self) -> Simulation:
        """The same study as whoever resumes it sees it: from its journal."""
        after = Simulation(self.study, self.curves, self.images, self.epoch_seconds)
        after.journal.events = list(self.journal.events)
        for event in self.journal.events:
            after.state.apply(event)
        return after


def outcome(state: StudyState) -> dict[str, tuple[Any, int, list[float]]]:
    """{trial: how it ended, after how many epochs, and at which rungs it was promoted}."""
    return {name: (trial.state, trial.epoch, sorted(trial.promoted)) for name, trial in state.trials.items()}


def random_curves(study: Study, chance: random.Random, diverge: float = 0.1, grain: int = 1000) -> Curves:
    """Accuracies in steps of 1 / ``grain``, so that a coarse one makes ties."""

    def curve() -> list[float | None]:
        epochs = most_epochs(study)
        values: list[float | None] = [chance.randrange(grain + 1) / grain for _ in range(epochs)]
        if chance.random() < diverge:
            values[chance.randrange(epochs)] = None
        return values

    return {trial.name: curve() for trial in study.trials()}


@settings(max_examples=60, deadline=None)
@given(
    trials=st.integers(1, 14),
    rule=st.sampled_from(["synchronous", "hyperband"]),
    eta=st.sampled_from([2.0, 3.0, 4.0]),
    finalists=st.integers(1, 4),
    group=st.sampled_from([None, 5]),
    grain=st.sampled_from([4, 1000]),
    images=st.sampled_from([60, 50_000]),
    schedule=st.sampled_from(["truncated", "stretched"]),
    seed=st.integers(0, 10**6),
)
def test_decisions_are_the_same_on_any_number_of_places_and_in_any_order(
    trials: int,
    rule: Any,
    eta: float,
    finalists: int,
    group: int | None,
    grain: int,
    images: int,
    schedule: Any,
    seed: int,
) -> None:
    chance = random.Random(seed)
    study = study_of(trials, Halving(1, eta, rule, finalists, group, schedule=schedule), seeds=2)
    curves = random_curves(study, chance, grain=grain)
    outcomes = [
        outcome(Simulation(study, curves, images).run(places, random.Random(order)))
        for places, order in ((1, 0), (2, 1), (3, 2), (8, 3), (8, 4))
    ]
    assert all(other == outcomes[0] for other in outcomes)
    assert {state for state, _, _ in outcomes[0].values()} <= {"finished", "stopped", "diverged"}
    for group in groups(study):
        complete = sum(outcomes[0][name][0] == "finished" for name in group.trials)
        diverged = sum(outcomes[0][name][0] == "diverged" for name in group.trials)
        assert complete + diverged >= min(finalists, len(group.trials))


def random_seconds(study: Study, chance: random.Random) -> dict[str, list[float]]:
    """Training seconds of each epoch; some trials are several times as slow as others, and no two epochs are equal."""
    return {
        trial.name: [pace * chance.uniform(0.8, 1.2) for _ in range(study.epochs)]
        for trial in study.trials()
        for pace in [chance.choice([1.0, 2.0, 7.0])]
    }


@settings(max_examples=60, deadline=None)
@given(
    trials=st.integers(1, 14),
    eta=st.sampled_from([2.0, 3.0]),
    finalists=st.integers(1, 4),
    first_rung=st.sampled_from([0.5, 3.0, 20.0]),
    money=st.booleans(),
    places=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_rungs_in_seconds_decide_by_the_seconds_in_the_journal_alone(
    trials: int, eta: float, finalists: int, first_rung: float, money: bool, places: int, seed: int
) -> None:
    """On any number of places, in any order, and whoever is killed. A long epoch may reach several rungs at once."""
    chance = random.Random(seed)
    halving = Halving(first_rung, eta, finalists=finalists, unit="seconds")
    if money:  # 1,800 per hour and two accelerators: an hour costs 3,600, so one buys a second
        halving = replace(halving, unit="money").priced(1800.0, 2.0)
    study = study_of(trials, halving)
    curves, seconds = random_curves(study, chance), random_seconds(study, chance)
    outcomes = [
        outcome(Simulation(study, curves, IMAGES, seconds).run(many, random.Random(order)))
        for many, order in ((1, 0), (2, 1), (3, 2), (8, 3))
    ]
    simulation = Simulation(study, curves, IMAGES, seconds)
    while True:
        killed_at = len(simulation.journal.events) + chance.randrange(1, 40)
        try:
            outcomes.append(outcome(simulation.run(places, chance, kill_after=killed_at)))
            break
        except Killed:
            simulation = simulation.resumed()
    assert all(other == outcomes[0] for other in outcomes)
    assert {state for state, _, _ in outcomes[0].values()} <= {"finished", "stopped", "diverged"}
    ladder = groups(study)[0].ladder
    for name, (state, epochs, promoted) in outcomes[0].items():
        assert promoted == [rung for rung, _ in ladder][: len(promoted)]
        if state == "stopped":  # after the first epoch at whose end it had trained for the time of its rung
            rung = ladder[len(promoted)][0]
            assert math.fsum(seconds[name][:epochs]) >= rung
            assert epochs == 1 or math.fsum(seconds[name][: epochs - 1]) < rung


def test_a_trial_that_ends_before_a_rung_in_seconds_is_compared_by_its_end() -> None:
    """It takes one of the places, and a slow trial has to be better than it."""
    study = study_of(3, Halving(30.0, 3.0, finalists=1, unit="seconds"))
    fast, slow, worse = (trial.name for trial in study.trials())
    seconds = {fast: [1.0] * EPOCHS, slow: [10.0] * EPOCHS, worse: [10.0] * EPOCHS}
    curves = {fast: [0.8] * EPOCHS, slow: [0.9] * EPOCHS, worse: [0.7] * EPOCHS}
    end = Simulation(study, curves, IMAGES, seconds).run(1, random.Random(0))
    assert [(trial.state, trial.epoch) for trial in end.trials.values()] == [
        ("finished", EPOCHS),
        ("finished", EPOCHS),
        ("stopped", 3),
    ]
    assert end.trials[worse].reason == (
        "given up after 30 s of training, at epoch 3: 70.0%, 3rd of 3; the 1st had 90.0%"
    )
    assert (end.trials[slow].promoted, end.trials[slow].paused) == ({30.0: "90.0%, 1st of 3"}, {30.0: 3})


def test_a_stretched_schedule_starts_again_after_each_rung() -> None:
    study = study_of(9, Halving(3, 3.0, finalists=1, schedule="stretched"))
    end = Simulation(study, curves_by(study, lambda number: 0.3 + number / 50)).run(2, random.Random(0))
    # Schedules of 3, 9 and 27 epochs, one after the other.
    assert [trial.epoch for trial in end.trials.values()] == [3] * 6 + [12] * 2 + [39]
    best, second = (end.trials[study.trials()[number].name] for number in (8, 7))
    assert best.reason is None
    assert list(best.promoted) == [3, 12]
    assert second.reason == "given up after a schedule of 9 epochs: 44.0%, 2nd of 3; the 1st had 46.0%"
    legs = [
        groups(study)[0].leg(TrialProgress(best.name, promoted=dict.fromkeys(past, "")))
        for past in ([], [3.0])
    ]
    assert [(leg.epochs_before, leg.schedule_epochs, leg.until) for leg in legs] == [(0, 3, 3), (3, 9, 12)]


def test_a_stretched_schedule_keeps_its_shape_and_its_peak() -> None:
    long = Recipe().with_values({"schedule.epochs": 40, "schedule.warmup_epochs": 4.0, "batch_size": 256})
    short = with_schedule_of(long, 10)
    assert with_schedule_of(long, 40) is long

    def curve(recipe: Recipe, steps: int) -> list[float]:
        peak = recipe.peak_learning_rate
        return [
            learning_rate_at(step, recipe.schedule, peak=peak, steps_per_epoch=10)
            for step in range(0, steps, steps // 10)
        ]

    for shape in ("cosine", "staircase"):
        shaped = long.with_values({"schedule.shape": shape, "schedule.decay_epochs": 2.0})
        assert curve(with_schedule_of(shaped, 10), 100) == pytest.approx(curve(shaped, 400))
    growing = long.with_values({"data.progressive.start_size": 16, "data.progressive.end_epoch": 36})
    assert with_schedule_of(growing, 10).data.progressive.end_epoch == 9
    with pytest.raises(UserError, match="images that grow"):
        with_schedule_of(growing, 1)
    assert short.peak_learning_rate == long.peak_learning_rate


@pytest.mark.parametrize(
    ("eta", "rungs", "price"), [(2, 1, 4 / 3), (2, 2, 3 / 2), (3, 2, 9 / 7), (3, 3, 4 / 3), (4, 3, 16 / 13)]
)
def test_stretched_schedules_cost_23_to_50_percent_more(eta: int, rungs: int, price: float) -> None:
    """The numbers of docs/early_stopping.md: the first schedule has one epoch, and one trial of eta^k is left."""
    trials = last = eta**rungs
    recipe = RECIPE.with_values({"schedule.epochs": last})

    def epochs(schedule: Any) -> int:
        halving = Halving(1, eta, finalists=1, schedule=schedule)
        study = replace(study_of(trials, halving), recipe=recipe)
        simulation = Simulation(study, curves_by(study, lambda number: 0.3 + number / 100))
        return sum(trial.epoch for trial in simulation.run(2, random.Random(0)).trials.values())

    assert epochs("stretched") / epochs("truncated") == pytest.approx(price)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(["synchronous", "hyperband", "asynchronous", "median"]),
    schedule=st.sampled_from(["truncated", "stretched"]),
    places=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_a_driver_that_is_killed_at_any_event_decides_the_same_when_it_is_resumed(
    rule: Any, schedule: Any, places: int, seed: int
) -> None:
    """Exactly the same where decisions do not depend on the order; elsewhere nothing that was decided changes."""
    chance = random.Random(seed)
    study = study_of(9, Halving(1, 3.0, rule, schedule="truncated" if rule == "median" else schedule))
    curves = random_curves(study, chance)
    whole = Simulation(study, curves).run(places, random.Random(seed))
    simulation = Simulation(study, curves)
    while True:
        killed_at = len(simulation.journal.events) + chance.randrange(1, 40)
        try:
            end = simulation.run(places, chance, kill_after=killed_at)
            break
        except Killed:
            decided = outcome(simulation.state)
            simulation = simulation.resumed()
            assert outcome(simulation.state) == decided
    if rule in ("synchronous", "hyperband"):
        assert outcome(end) == outcome(whole)
    assert {trial.state for trial in end.trials.values()} <= {"finished", "stopped", "diverged"}
    decisions = [
        (event["trial"], event["epoch"])
        for event in simulation.journal.events
        if event["event"] == "trial_promoted"
    ]
    assert len(decisions) == len(set(decisions))


def curves_by(study: Study, accuracy: Callable[[int], float]) -> Curves:
    """Flat curves: the accuracy of each trial, by its number."""
    return {
        trial.name: [accuracy(number)] * most_epochs(study) for number, trial in enumerate(study.trials())
    }


def test_the_best_third_of_each_rung_continues() -> None:
    study = study_of(27, Halving(1, 3.0, finalists=1))
    end = Simulation(study, curves_by(study, lambda number: 0.3 + number / 50)).run(2, random.Random(0))
    reached = [trial.epoch for trial in end.trials.values()]
    assert reached == [1] * 18 + [3] * 6 + [9] * 2 + [27]


def test_a_trial_continues_and_ends_as_soon_as_that_is_certain() -> None:
    """With two of four behind it at most, whatever they reach, the second of four does not wait."""
    study = study_of(4, Halving(1, 2.0, finalists=1))
    names = [trial.name for trial in study.trials()]
    simulation = Simulation(study, curves_by(study, lambda number: [0.9, 0.8, 0.1, 0.5][number]))
    recorder = Recorder(simulation.journal, simulation.state, nothing, nothing)
    legs = Legs(study, IMAGES, recorder)

    def reach_rung() -> None:
        leg = legs.next()
        assert leg is not None
        legs.start(leg.trial)
        recorder.record_epoch(leg.trial, leg.until, {METRIC: simulation.curves[leg.trial][0], "epoch": 1})
        legs.pause(leg.trial)

    reach_rung()
    reach_rung()
    assert not any(trial.promoted for trial in simulation.state.trials.values())
    reach_rung()
    first, second, third, _ = (simulation.state.trials[name] for name in names)
    assert first.reason == "promoted at epoch 1: 90.0%, 2nd or higher of 4"
    assert not second.promoted  # the fourth may be better than it
    assert (third.state, third.reason) == (
        "stopped",
        "given up at epoch 1: 10.0%, 3rd or lower of 4; the 2nd has at least 80.0%",
    )
    leg = legs.next()
    assert leg is not None
    assert (leg.trial, leg.until) == (names[0], 2)  # the one that is furthest comes before a new one


def test_the_reason_says_the_place_and_the_threshold() -> None:
    study = study_of(6, Halving(4, 2.0))
    end = Simulation(study, curves_by(study, lambda number: 0.95 - number / 50)).run(8, random.Random(0))
    last = end.trials[study.trials()[-1].name]
    assert last.state == "stopped"
    assert last.reason is not None
    assert last.reason.startswith("given up at epoch 4: 85.0%, ")
    assert "the 3rd ha" in last.reason


def test_trials_that_are_equal_within_noise_both_continue() -> None:
    assert noise(0.5, 100) == pytest.approx(0.05)
    study = study_of(4, Halving(1, 4.0, finalists=1))

    def finished(gap: float) -> int:
        values = [0.5, 0.5 - gap, 0.2, 0.1]
        end = Simulation(study, curves_by(study, lambda number: values[number]), images=100).run(
            2, random.Random(0)
        )
        return sum(trial.state == "finished" for trial in end.trials.values())

    assert finished(gap=0.04) == 2
    assert finished(gap=0.06) == 1


def test_trials_compete_under_their_own_conditions_and_seed_only() -> None:
    space = {"optimizer.agc.clip_factor": (0.01, 0.02), "batch_size": (64, 256)}
    study = Study("s", "?", RECIPE, space, seeds=(0, 1), halving=Halving(1, 2.0, finalists=1))
    curves = curves_by(study, lambda number: 0.9 if number < 2 else 0.1 + number / 100)
    end = Simulation(study, curves).run(2, random.Random(0))
    for group in groups(study):
        assert len(group.trials) == 2
        assert sorted(str(end.trials[name].state) for name in group.trials)[0] == "finished"
    assert len({trial.stratum for trial in study.trials()}) == len(groups(study)) == 4


def test_asynchronous_promotion_never_waits_while_there_is_a_new_trial() -> None:
    study = study_of(9, Halving(1, 3.0, "asynchronous"))
    curves = curves_by(study, lambda number: 0.1 + number / 20)
    simulation = Simulation(study, curves)
    end = simulation.run(1, random.Random(0))
    promoted = [event["trial"] for event in simulation.journal.events if event["event"] == "trial_promoted"]
    started = [event["trial"] for event in simulation.journal.events if event["event"] == "trial_started"]
    names = [trial.name for trial in study.trials()]
    assert promoted[0] == names[2]  # the best of the first three, before the fourth has begun
    assert started.index(names[3]) > started.index(names[2])
    assert sum(trial.state == "finished" for trial in end.trials.values()) >= 3


def test_the_median_rule_compares_with_those_that_were_there_before() -> None:
    study = study_of(5, Halving(9, rule="median", finalists=3))
    values = [0.5, 0.6, 0.7, 0.55, 0.65]
    end = Simulation(study, curves_by(study, lambda number: values[number])).run(1, random.Random(0))
    states = [trial.state for trial in end.trials.values()]
    assert states == ["finished", "finished", "finished", "stopped", "finished"]
    assert list(end.trials.values())[3].reason == (
        "given up at epoch 9: 55.0%; the median of the 3 before it is 60.0%"
    )


@pytest.mark.parametrize(
    ("epochs", "warmup", "rungs"),
    [
        (8, 1.0, [2, 6]),
        (90, 5.0, [10, 30]),
        (360, 5.0, [14, 42, 126]),
        (27, 0.0, [1, 3, 9]),
        (1, 0.0, []),
        (4, 2.0, []),
    ],
)
def test_the_first_rung_is_after_twice_the_warm_up(epochs: int, warmup: float, rungs: list[int]) -> None:
    schedule = RECIPE.with_values({"schedule.epochs": epochs, "schedule.warmup_epochs": warmup}).schedule
    assert Halving().rungs(schedule) == rungs


def test_rungs_at_which_all_would_continue_are_left_out() -> None:
    schedule = RECIPE.schedule
    assert Halving(1).ladder(6, schedule) == [(1, 3)]
    assert Halving(1).ladder(30, schedule) == [(1, 10), (3, 4), (9, 3)]
    assert Halving(1).ladder(3, schedule) == []


def test_hyperband_deals_most_trials_to_the_bracket_that_starts_first() -> None:
    sizes = [len(group.trials) for group in groups(study_of(22, Halving(1, 3.0, "hyperband", finalists=1)))]
    assert len(sizes) == 4
    assert sum(sizes) == 22
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"eta": 1.0},
        {"eta": math.inf},
        {"first_rung": math.inf},
        {"first_rung": 0},
        {"first_rung": 2.5},
        {"first_rung": 0.0, "unit": "seconds"},
        {"finalists": 0},
        {"group": 1},
        {"rule": "best"},
    ],
)
def test_a_wrong_rule_is_refused_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"early stopping: {next(iter(wrong))}="):
        Halving(**wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("synchronus", "'synchronus' is not a rule; did you mean synchronous"),
        ("synchronous:etta=3", "'etta' is not an option; did you mean eta"),
        ("synchronous:eta=x", "'eta=x' is not allowed; eta takes a number"),
        ("synchronous:eta=2,finalists=1,eta=3", "eta is given twice; leave one out"),
        ("synchronous:eta=1", "eta=1.0 is not allowed"),
        ("none:eta=3", "none stops no trial, so it has no options; leave out 'eta=3'"),
        (
            "synchronous:unit=second,first_rung=3",
            "unit='second' is not allowed; use one of epochs, seconds, money",
        ),
        (
            "synchronous:unit=seconds",
            "unit=seconds without first_rung is not allowed; use first_rung=NUMBER, in s",
        ),
        ("median:unit=seconds,first_rung=3", "unit=seconds with median is not allowed; use synchronous or"),
    ],
)
def test_a_wrong_rule_on_the_command_line_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_halving(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_journals_of_earlier_versions_continue_as_asynchronous_halving() -> None:
    before = Halving.from_description({"grace_epochs": 4, "reduction_factor": 2.0})
    assert before == Halving(4, 2.0, "asynchronous", finalists=1)
    study = study_of(4, before)
    a, b, *_ = (trial.name for trial in study.trials())
    simulation = Simulation(study, curves_by(study, lambda number: 0.9 - number / 10))
    # a came first and was let through epoch 4, which the journal does not say; now b is better, and is promoted.
    for name, epochs, top1 in ((a, 6, 0.3), (b, 4, 0.5)):
        simulation.state.trials[name].epochs = {epoch: {METRIC: top1} for epoch in range(1, epochs + 1)}
        simulation.state.trials[name].state = "interrupted"
    legs = Legs(study, IMAGES, Recorder(simulation.journal, simulation.state, nothing, nothing))
    leg = legs.next()
    assert leg is not None
    assert (leg.trial, leg.until) == (a, 8)
    assert list(simulation.state.trials[b].promoted) == [4]


def test_a_pause_that_a_killed_driver_did_not_record_is_recorded_by_the_next_one() -> None:
    """Else the trial would be shown as running, and paid for, while it waits for the others."""
    study = study_of(4, Halving(1, 2.0, finalists=1))
    simulation = Simulation(study, curves_by(study, lambda number: 0.9 - number / 10))
    name = study.trials()[0].name
    legs = Legs(study, IMAGES, Recorder(simulation.journal, simulation.state, nothing, nothing))
    legs.next()
    legs.start(name)
    Recorder(simulation.journal, simulation.state, nothing, nothing).record_epoch(name, 1, {METRIC: 0.9})
    resumed = simulation.resumed()
    legs = Legs(study, IMAGES, Recorder(resumed.journal, resumed.state, nothing, nothing))
    assert resumed.state.trials[name].state == "paused"
    assert resumed.journal.events[-1]["event"] == "trial_paused"
    assert legs.next() != legs.next()  # of two other trials
    assert name not in legs.running


def test_a_trial_that_diverged_counts_among_those_that_it_lost_against() -> None:
    study = study_of(4, Halving(1, 2.0, finalists=1))
    names = [trial.name for trial in study.trials()]
    curves = {**curves_by(study, lambda number: 0.9 - number / 10), names[0]: [None] * EPOCHS}
    end = Simulation(study, curves).run(1, random.Random(0))
    assert [trial.state for trial in end.trials.values()] == ["diverged", "finished", "stopped", "stopped"]
    assert end.trials[names[3]].reason == "given up at epoch 1: 60.0%, 3rd of 4; the 2nd had 70.0%"


def test_decisions_are_read_back_from_a_journal(tmp_path: Path) -> None:
    study = study_of(6, Halving(1, 3.0))
    simulation = Simulation(study, random_curves(study, random.Random(3)))
    end = simulation.run(2, random.Random(0))
    with Journal(tmp_path / "journal.jsonl") as journal:
        for event in simulation.journal.events:
            journal.append(event)
    state = study.waiting_state()
    for event, _ in read_events(tmp_path / "journal.jsonl"):
        state.apply(event)
    assert outcome(state) == outcome(end)
    assert [trial.reason for trial in state.trials.values()] == [
        trial.reason for trial in end.trials.values()
    ]


def test_a_trial_that_failed_is_run_again_on_resume() -> None:
    study = study_of(4, Halving(1, 2.0, finalists=1))
    simulation = Simulation(study, curves_by(study, lambda number: 0.9 - number / 10))
    names = [trial.name for trial in study.trials()]
    recorder = Recorder(simulation.journal, simulation.state, nothing, nothing)
    legs = Legs(study, IMAGES, recorder)
    legs.next()
    legs.start(names[0])
    legs.end(names[0], "failed", "no memory")
    started = {leg.trial for leg in iter(legs.next, None)}
    assert started == set(names[1:])
    again = Legs(study, IMAGES, Recorder(simulation.journal, simulation.state, nothing, nothing))
    assert {leg.trial for leg in itertools.islice(iter(again.next, None), 4)} == set(names)


def test_a_trial_is_decided_on_when_its_leg_has_ended() -> None:
    """It is at the rung already when it reports the rung's epoch, and has yet to keep its checkpoint."""
    study = study_of(3, Halving(finalists=1))
    [group] = groups(study)
    rung, _ = group.ladder[0]
    simulation = Simulation(study, {})
    recorder = Recorder(simulation.journal, simulation.state, nothing, nothing)
    legs = Legs(study, IMAGES, recorder)
    for _ in group.trials:
        leg = legs.next()
        assert leg is not None
        legs.start(leg.trial)
    for number, name in enumerate(group.trials):
        for epoch in range(1, int(rung) + 1):
            recorder.record_epoch(name, epoch, {METRIC: 0.1 + 0.2 * number, "epoch": epoch})
    decider = Decider(study, IMAGES)
    assert decider.decisions(simulation.state, group.trials, ()) == []
    decided = [decision.trial for decision in decider.decisions(simulation.state, group.trials[1:], ())]
    assert decided == list(group.trials[:1])
