"""Which trials of a study are trained as one program, and what the journal says of their time. Two seconds."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nfnet_ray.cluster.driver import _JournalCallback
from nfnet_ray.cluster.forms import FormBook
from nfnet_ray.cluster.messages.tune_reports import said_result
from nfnet_ray.errors import UserError
from nfnet_ray.study import Halving, Study
from nfnet_ray.study.decisions import Leg
from nfnet_ray.study.halving import parse_halving
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.search.upcoming import has_more
from nfnet_ray.tracking.conditions.of_trial import condition_text, conditions_of
from nfnet_ray.tracking.events import trial_started
from nfnet_ray.tracking.state import StudyState
from studies.running.program import StudyProgram
from studies.running.runner import WorkerDemand
from studies.running.trials import StudyRequest, TuneRunner
from tests.quick.test_decisions import (
    EPOCHS,
    IMAGES,
    RECIPE,
    InMemory,
    Simulation,
    nothing,
    outcome,
    random_curves,
    study_of,
)
from tests.quick.test_idle import begins, ends, is_over, started
from tests.tracking.example_study import state_of

ONE_WORKER = WorkerDemand(1, 1, 0.0)


def legs_of(study: Study, state: StudyState | None = None, **finders: Any) -> Legs:
    return Legs(
        study, IMAGES, Recorder(InMemory(), state or study.waiting_state(), nothing, nothing), **finders
    )


def names(legs: list[Leg]) -> list[str]:
    return [leg.trial for leg in legs]


def test_trials_of_one_batch_are_a_cohort_and_each_free_place_gets_a_part() -> None:
    study = Study(
        "s", "?", RECIPE, {"optimizer.agc.clip_factor": (0.01, 0.02, 0.04), "batch_size": (64, 256)}
    )
    legs = legs_of(study)
    first = legs.next_cohort(8, 1)
    assert names(first) == [f"clip_factor={factor},batch_size=64" for factor in (0.01, 0.02, 0.04)]
    assert set(legs.running) == set(names(first))
    assert names(legs.next_cohort(2, 1)) == [
        f"clip_factor={factor},batch_size=256" for factor in (0.01, 0.02)
    ]
    assert names(legs.next_cohort(8, 1)) == ["clip_factor=0.04,batch_size=256"]
    assert legs.next_cohort(8, 1) == []

    # A place that has other trials to train is left no part of these.
    legs = legs_of(study)
    assert [len(legs.next_cohort(8, free)) for free in (2, 1)] == [3, 3]
    legs = legs_of(study)
    assert [len(legs.next_cohort(8, free)) for free in (3, 2, 1)] == [2, 1, 3]

    legs = legs_of(study_of(5, None))
    assert [len(legs.next_cohort(8, free)) for free in (2, 1)] == [3, 2]


@pytest.mark.parametrize(
    "space",
    [
        {"optimizer.sam.rho": (None, 0.1)},
        {"optimizer.sam.method": ("asam", "esam")},
        {"model.name": ("nfnet_pico", "nfnet_nano")},
        {"data.randaugment.layers": (0, 2)},
        {"schedule.epochs": (EPOCHS, EPOCHS + 1)},
    ],
)
def test_trials_of_other_batches_shapes_or_passes_are_not(space: dict[str, Any]) -> None:
    recipe = RECIPE.with_values({"optimizer.sam.rho": 0.1})
    assert len(legs_of(Study("s", "?", recipe, space)).next_cohort(8, 1)) == 1


def test_seeds_do_not_share_batches() -> None:
    assert len(legs_of(study_of(2, None, seeds=3)).next_cohort(8, 1)) == 2


def test_promoted_trials_are_a_cohort_again_and_failed_ones_are_alone() -> None:
    study = study_of(6, Halving(first_rung=9, eta=3.0))
    state = study.waiting_state()
    recorder = Recorder(InMemory(), state, nothing, nothing)
    legs = Legs(study, IMAGES, recorder)
    for number, leg in enumerate(legs.next_cohort(8, 1)):
        legs.start(leg.trial, 6)
        recorder.record_epoch(leg.trial, 9 if number else 1, {"validation_top1": 0.3 + number / 10})
        if number == 0:
            legs.end(leg.trial, "failed", "its worker died")
        else:
            legs.pause(leg.trial)
    promoted = legs.next_cohort(8, 1)
    assert [(leg.until, leg.rung) for leg in promoted] == [(EPOCHS, None)] * 3
    for leg in promoted:
        legs.start(leg.trial, 2)
        legs.end(leg.trial, "interrupted", None)
    resumed = legs_of(study, state)
    failed = study.trials()[0].name
    found = [names(resumed.next_cohort(8, 1)) for _ in range(3)]
    assert sorted(found) == sorted([names(promoted), [failed], []])


def test_reruns_of_the_winner_are_trained_alone() -> None:
    study = Study("s", "?", RECIPE, {"optimizer.agc.clip_factor": (0.01, 0.02)}, confirm=2)
    state = study.waiting_state()
    legs = legs_of(study, state, find_winners=lambda _: [dict(study.trials()[0].point)])
    for leg in legs.next_cohort(8, 1):
        legs.start(leg.trial, 2)
        legs.end(leg.trial, "finished", None)
    assert has_more(study, state)
    assert [len(legs.next_cohort(8, 1)) for _ in range(3)] == [1, 1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_a_study_in_cohorts_decides_as_one_trial_by_trial(seed: int) -> None:
    study = study_of(9, Halving(eta=3.0), seeds=2)
    curves = random_curves(study, random.Random(seed))
    alone = outcome(Simulation(study, curves).run(2, random.Random(seed)))
    simulation = Simulation(study, curves)
    recorder = Recorder(simulation.journal, simulation.state, nothing, nothing)
    legs = Legs(study, IMAGES, recorder)
    while cohort := legs.next_cohort(5, 1):
        for leg in cohort:
            legs.start(leg.trial, len(cohort))
        for leg in cohort:
            epochs = range(simulation.state.trials[leg.trial].epoch, leg.until)
            for epoch in epochs:
                top1 = curves[leg.trial][epoch]
                if top1 is None:
                    legs.end(leg.trial, "diverged", None)
                    break
                recorder.record_epoch(leg.trial, epoch + 1, {"validation_top1": top1, "epoch": epoch + 1})
            else:
                legs.pause(leg.trial) if leg.rung else legs.end(leg.trial, "finished", None)
    assert outcome(simulation.state) == alone


def test_what_a_cohort_holds_and_its_place_are_counted_once() -> None:
    of_cohort = [{**begins(name, 5.0), "lanes": 3} for name in "abc"]
    state = state_of([started("abcd", places=2), *of_cohort, begins("d", 10.0)])
    assert state.accelerator_seconds_at(20.0) == pytest.approx(15 + 10)
    for event in [*(ends(name, 20.0) for name in "abcd"), is_over(20.0)]:
        state.apply(event)
    assert state.accelerator_seconds == pytest.approx(15 + 10)
    idle = state.idle_time()
    assert idle is not None
    assert (idle.available, idle.seconds) == pytest.approx((40, 5 * 2 + 5))


def test_what_the_worker_of_a_cohort_says_comes_to_a_person() -> None:
    said: list[str] = []
    study = study_of(2, None)
    recorder = Recorder(InMemory(), study.waiting_state(), nothing, said.append)
    callback = _JournalCallback(
        recorder, FormBook(recorder), Legs(study, IMAGES, recorder), threading.Event()
    )
    trial: Any = SimpleNamespace(config={"trial": {"name": "a"}})
    callback.on_trial_result(1, [trial], trial, said_result("2 trials do not fit"))
    assert said == ["a: 2 trials do not fit"]


def test_the_conditions_of_a_trial_say_so() -> None:
    study = study_of(2, None)
    with pytest.raises(KeyError):
        trial_started("a", 1)["lanes"]
    state = StudyState()
    description = {
        "seeds": [0],
        "recipe": RECIPE.to_values(),
        "metric": "validation_top1",
        "data": {"name": "d", "fingerprint": "f" * 32, "validation_images": 10},
    }
    plans = [{"name": trial.name, "point": {}, "recipe": {}} for trial in study.trials()]
    state.apply({"event": "study_started", "time": 0.0, "study": description, "trials": plans})  # type: ignore[typeddict-item]
    one, other = (trial.name for trial in study.trials())
    for trial, epoch, told in ((one, 1, '{"lanes": 6}'), (one, 2, '{"lanes": 3}'), (other, 1, "{}")):
        event: Any = {"event": "epoch", "time": 1.0, "trial": trial, "epoch": epoch, "metrics": {}}
        state.apply({**event, "conditions": told})
    conditions = [conditions_of(state, trial) for trial in (one, other)]
    assert [own["training"].text for own in conditions] == ["in a cohort", "alone"]
    assert conditions[0]["lanes"].value == (6, 3)
    assert "lanes" not in conditions[1]
    assert ["trained in a cohort" in condition_text(own) for own in conditions] == [True, False]


@pytest.mark.parametrize(
    ("changed", "demand", "said"),
    [
        ({}, WorkerDemand(2, 1, 0.0), "leave --workers-per-trial out"),
        ({"search": "tpe"}, ONE_WORKER, "give --search grid, sobol or random"),
        (
            {"halving": parse_halving("synchronous:first_rung=60,unit=seconds")},
            ONE_WORKER,
            "leave unit= out of --early-stopping",
        ),
        (
            {"recipe": RECIPE.with_values({"compile": True})},
            ONE_WORKER,
            "compile = true: .*; leave --cohorts out",
        ),
        (
            {"space": {"batch_size": (64, 256)}, "seeds": (0, 1)},
            ONE_WORKER,
            "no two trials of this study differ only in .*; leave --cohorts out",
        ),
    ],
)
def test_a_study_without_cohorts_is_refused(changed: dict[str, Any], demand: WorkerDemand, said: str) -> None:
    values: dict[str, Any] = {
        "recipe": RECIPE,
        "space": {"optimizer.agc.clip_factor": (0.01, 0.02)},
        **changed,
    }
    study = Study("s", "?", **values)
    TuneRunner().check(study, demand)
    with pytest.raises(UserError, match=said):
        TuneRunner(4).check(study, demand)


def test_a_resumed_study_that_cannot_be_in_cohorts_any_more_is_told_how(tmp_path: Path) -> None:
    """Nobody has given the flag now, so it cannot be left out."""
    started: Any = {"study": {"cohorts": 4}}
    recipe = RECIPE.with_values({"compile": True})
    study = Study("s", "?", recipe, {"optimizer.agc.clip_factor": (0.01, 0.02)})
    request = StudyRequest(program=StudyProgram(lambda *_: study))
    with pytest.raises(UserError, match="was started with --cohorts 4: give --cohorts 1"):
        request.runner(tmp_path, started).check(study, ONE_WORKER)
    replace(request, cohorts=1).runner(tmp_path, started).check(study, ONE_WORKER)
    with pytest.raises(UserError, match="leave --cohorts out"):
        replace(request, cohorts=2).runner(tmp_path, started).check(study, ONE_WORKER)
