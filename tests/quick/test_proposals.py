"""What a running study proposes depends on its journal alone: not on who is first, nor on where it was killed.

Takes about 20 s.
"""

from __future__ import annotations

import math
import random
import zlib
from typing import Any

import pytest

from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study import Halving, Study
from nfnet_ray.study.differences import differing_fields
from nfnet_ray.study.live.display import best_so_far, reported_epochs, trial_table
from nfnet_ray.study.live.time_left import TimeLeft
from nfnet_ray.study.search.model import startup_points
from nfnet_ray.study.search.result import Result, result_at
from nfnet_ray.study.search.upcoming import Proposal, Waiting, has_more, next_proposal
from nfnet_ray.study.space import Range, When
from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.events import Event, TrialProposed, study_started, trial_proposed
from nfnet_ray.tracking.trial_progress import TrialProgress
from tests.quick.test_decisions import Killed, Simulation, outcome
from tests.tracking.example_study import state_of

CLIP, RHO, SHARE = "optimizer.agc.clip_factor", "optimizer.sam.rho", "optimizer.sam.ascent_share"
RECIPE = Recipe().with_values({"schedule.epochs": 9, "schedule.warmup_epochs": 0.0})
SPACE = {
    CLIP: Range(0.002, 0.3, log=True, or_none=True),
    RHO: (None, 0.05, 0.1),
    SHARE: When(Range(0.1, 1.0), RHO),
}
HALVING = Halving(first_rung=1, finalists=1)


class Curves(dict[str, list[float | None]]):
    """{trial: its accuracies}, of any trial: it rises to a height that depends on its clip factor."""

    def __missing__(self, name: str) -> list[float | None]:
        values = dict(part.split("=") for part in name.split(","))
        noise = zlib.crc32(name.encode()) % 1000 / 20_000
        if values["clip_factor"] == "none":
            return [None]
        distance = abs(math.log10(float(values["clip_factor"])) - math.log10(0.03))
        height = 0.9 - 0.3 * distance - (0.1 if values.get("rho") == "none" else 0) + noise
        return [height * (1 - 0.5**epoch) for epoch in range(1, RECIPE.schedule.epochs + 1)]


def study_of(halving: Halving | None, lag: int, settings: int = 26, seeds: int = 1, **own: Any) -> Study:
    return Study(
        **{"name": "s", "question": "?", "recipe": RECIPE, "space": SPACE, "search": "tpe", **own},
        seeds=tuple(range(seeds)),
        halving=halving,
        trial_limit=settings,
        lag=lag,
    )


def proposals(events: list[Event]) -> list[TrialProposed]:
    return [{**event, "time": 0.0} for event in events if event["event"] == "trial_proposed"]


def simulated(study: Study, places: int, order: int) -> Simulation:
    simulation = Simulation(study, Curves())
    simulation.run(places, random.Random(order))
    return simulation


@pytest.mark.parametrize(("halving", "seeds"), [(None, 1), (None, 2), (HALVING, 1), (HALVING, 2)], ids=str)
def test_the_same_proposals_on_any_number_of_places_and_in_any_order(
    halving: Halving | None, seeds: int
) -> None:
    study = study_of(halving, lag=3, seeds=seeds)
    first = simulated(study, 1, 0)
    assert len(proposals(first.journal.events)) == (26 - startup_points(SPACE)) * seeds
    for places, order in ((2, 1), (3, 2), (8, 3)):
        other = simulated(study, places, order)
        assert proposals(other.journal.events) == proposals(first.journal.events)
        assert outcome(other.state) == outcome(first.state)
    states = {trial.state for trial in first.state.trials.values()}
    assert states == {"finished", "diverged"} | ({"stopped"} if halving else set())
    assert not has_more(study, first.state)


@pytest.mark.parametrize("halving", [None, HALVING], ids=str)
def test_after_a_kill_at_any_event_the_proposals_are_those_of_the_whole_journal(
    halving: Halving | None,
) -> None:
    study = study_of(halving, lag=2, settings=18, seeds=2)
    whole = simulated(study, 2, 0)
    chance = random.Random(5)
    for kill_after in range(1, len(whole.journal.events), 17):
        simulation = Simulation(study, Curves())
        with pytest.raises(Killed):
            simulation.run(2, chance, kill_after)
        again = simulation.resumed()
        again.run(3, chance)
        assert proposals(again.journal.events) == proposals(whole.journal.events), kill_after
        assert outcome(again.state) == outcome(whole.state), kill_after


def test_a_proposal_names_the_trials_that_it_was_made_from() -> None:
    study = study_of(None, lag=3)
    events = simulated(study, 3, 0).journal.events
    names = [trial.name for trial in study.trials()] + [event["trial"] for event in proposals(events)]
    for event in proposals(events):
        assert event["trial"] == names[event["number"]]
        assert event["after"] == names[: event["number"] - 3 + 1]


def test_it_waits_for_the_result_of_number_j_minus_q_and_for_no_later_one() -> None:
    study = study_of(None, lag=3)
    trials = study.trials()
    state = study.waiting_state()
    for trial in trials:
        state.trials[trial.name] = TrialProgress(
            trial.name, "finished", epochs={9: {METRIC: Curves()[trial.name][-1] or 0.1}}
        )
    late, last = trials[5], trials[6]  # proposal 8 is made from those up to number 5
    expected = next_proposal(study, state)
    assert isinstance(expected, Proposal)
    assert expected.number == len(trials) == 8
    state.trials[last.name].state = "running"
    assert next_proposal(study, state) == expected
    state.trials[late.name].state = "running"
    assert next_proposal(study, state) == Waiting((late.name,))


def test_a_space_with_no_more_points_ends_the_study_and_its_rungs() -> None:
    few = {"micro_batches": Range(1, 9, integer=True)}
    study = study_of(Halving(1, finalists=1, group=6), lag=2, settings=40, space=few)

    class Rising(Curves):
        def __missing__(self, name: str) -> list[float | None]:
            return [int(name.split("=")[1]) / 20 + epoch / 100 for epoch in range(9)]

    simulation = Simulation(study, Rising())
    state = simulation.run(2, random.Random(0))
    assert len(state.trials) == 9
    assert {trial.state for trial in state.trials.values()} == {"finished", "stopped"}
    assert not has_more(study, state)
    assert not simulation.resumed().run(2, random.Random(0)).unfinished


def test_a_result_at_a_rung_stays_what_it_was_there() -> None:
    def at(state: str, *top1: float, promoted: tuple[int, ...] = ()) -> Result | None:
        epochs = {epoch: {METRIC: value} for epoch, value in enumerate(top1, start=1)}
        trial = TrialProgress("t", state, epochs=epochs, promoted=dict.fromkeys(promoted, ""))
        return result_at({CLIP: 0.1}, [trial], 2)

    there = Result({CLIP: 0.1}, "given up", {1: 0.5, 2: 0.6})
    assert at("running", 0.5) is None
    assert at("running", 0.5, 0.6) is None  # it may diverge in this very epoch
    assert at("paused", 0.5, 0.6) == there
    assert at("stopped", 0.5, 0.6) == there
    assert at("running", 0.5, 0.6, promoted=(2,)) == there
    assert at("interrupted", 0.5, 0.6, 0.7, promoted=(2,)) == there
    assert at("diverged", 0.5, 0.6, 0.1, promoted=(2,)) == there
    assert at("diverged", 0.5, math.nan) == Result({CLIP: 0.1}, "diverged", {1: 0.5})
    assert at("diverged", 0.5) == Result({CLIP: 0.1}, "diverged", {1: 0.5})


def test_a_journal_gives_back_the_study_and_its_proposals() -> None:
    study = study_of(HALVING, lag=2, first_points=({CLIP: 0.05, RHO: None},))
    simulation = simulated(study, 2, 0)
    description: Any = {
        "name": "s",
        "question": "?",
        "recipe": RECIPE.to_values(),
        "space": {
            CLIP: {"low": 0.002, "high": 0.3, "log": True, "or_none": True},
            RHO: [None, 0.05, 0.1],
            SHARE: {"domain": {"low": 0.1, "high": 1.0}, "when": RHO},
        },
        "seeds": [0],
        "halving": study.halving_description(),
        "search": {"name": "tpe", "settings": 26, "first_points": [{CLIP: 0.05, RHO: None}], "lag": 2},
    }
    told: StudyDescription = description
    started = study_started(told, [study.plan(trial) for trial in study.trials()])
    state = state_of((started, *simulation.journal.events))
    again = Study.from_event(started)
    assert again.trials()[1].point == {CLIP: 0.05, RHO: None}
    assert differing_fields(again, study) == differing_fields(study, again) == []
    grown = again.grown(state)
    assert [trial.name for trial in grown.trials()] == list(simulation.state.trials)
    assert grown.grown(state) is grown
    assert study.with_points_of(state).trials() == grown.trials()
    other = study_of(HALVING, lag=5, settings=20)
    assert any("settings is 20, was 26" in line for line in differing_fields(other, again))


def test_the_time_left_counts_settings_that_are_yet_to_be_proposed() -> None:
    study = study_of(None, lag=1, settings=18)
    state = study.waiting_state()
    first = study.trials()[0].name
    left = TimeLeft(study, state, dict.fromkeys(state.trials, 1.0))
    state.trials[first].state = "running"
    left.observe(0.0)
    state.trials[first].epochs = {epoch: {"train_seconds": 10.0 * epoch} for epoch in range(1, 10)}
    state.trials[first].state = "finished"
    left.observe(1.0)
    assert left.seconds(lambda trial: trial.epoch) == (17 * 90.0, 17 * 90.0)
    [proposed] = study.trials_at({CLIP: 0.04, RHO: None})
    state.apply(trial_proposed(study.plan(proposed), number=8, after=[]))
    left.observe(2.0)
    assert left.seconds(lambda trial: trial.epoch) == (17 * 90.0, 17 * 90.0)
    state.trials[proposed.name].state = "finished"
    left.observe(3.0)
    assert left.seconds(lambda trial: trial.epoch) == (16 * 90.0, 16 * 90.0)


def test_the_table_has_a_row_for_each_proposed_trial() -> None:
    study = study_of(HALVING, lag=2, settings=14)
    state = simulated(study, 2, 0).state
    assert trial_table(study, state, reported_epochs).row_count == len(state.trials) == 14
    best = max(state.trials.values(), key=lambda trial: trial.last(METRIC) or 0.0)
    assert f"Best so far: {best.last(METRIC):.1%} after epoch 9 of 9" in best_so_far(study, state)
