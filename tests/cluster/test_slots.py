"""Legs are handed to slots whose workers are up, and what those say is recorded. No Ray is started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nfnet_ray.cluster import group_events, trainer
from nfnet_ray.cluster import slots as slots_module
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.mailbox import Mailbox, Register
from nfnet_ray.cluster.messages.configs import SlotConfig, WorkerConfig, slot_config, worker_config
from nfnet_ray.cluster.messages.notes import AttemptStarted, EpochEnded, FinalReport, WorkersLost
from nfnet_ray.cluster.messages.register_values import ENDED, FAILED_STARTS, LEG, READY, STOP, FailedStarts
from nfnet_ray.cluster.slots import run_legs
from nfnet_ray.cluster.trainer import Slot, WorkersDoNotStart, close_all, none_outlives_ray
from nfnet_ray.metric import METRIC
from nfnet_ray.study import Halving, Study
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.training.watchdog import SECONDS_OF_SILENCE, SECONDS_TO_STAY, SLOW_PHASES
from tests.cluster.test_messages import head as head
from tests.quick.test_decisions import InMemory, study_of

BEFORE_ITS_FIRST_STEP = object()
"""In place of a script: the workers have not begun with the leg when they are asked to stop."""
Script = Callable[["FakeSlot", WorkerConfig], list[Any]]


class FakeSlot:
    """A slot whose workers say what a script has them say."""

    made: list[FakeSlot]
    script: Script
    room: int

    def __init__(self, config: SlotConfig) -> None:
        self.config = config
        self.legs: list[WorkerConfig] = []
        self.notes: list[Any] = []
        self.made.append(self)
        self.number = len(self.made)
        self.is_closed = self.was_let_go = False

    def close(self) -> None:
        assert not self.notes, "it has a leg that is not over"
        self.was_let_go = True

    def is_ready(self) -> bool:
        return self.number <= self.room

    def is_over(self) -> bool:
        return True

    def hand(self, leg: WorkerConfig) -> None:
        assert not self.notes, "it has a leg that is not over"
        self.legs.append(leg)
        told = type(self).script(self, leg)
        begins = told != [BEFORE_ITS_FIRST_STEP]
        self.notes = [AttemptStarted(1, 2, 0, legs_before=len(self.legs) - 1), *told] if begins else [STOP]

    def keep_up(self) -> str | None:
        if not self.notes:
            return None
        note = self.notes[0]
        if isinstance(note, Exception):
            raise note
        if note is STOP:  # it waits until it is asked to stop
            if not Register(self.legs[-1]["mailbox"]).get(STOP):
                return None
            note = FinalReport("stopped")
        Mailbox(self.legs[-1]["mailbox"]).post(note)
        self.notes = self.notes[1:]
        return None


def epochs(first: int, last: int, top1: float) -> list[Any]:
    return [EpochEnded({"epoch": epoch, METRIC: top1}) for epoch in range(first, last + 1)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[StudyState, list[FakeSlot]]]:
    """Runs a study on fake slots."""
    monkeypatch.setattr(slots_module, "Slot", FakeSlot)
    monkeypatch.setattr(slots_module, "SECONDS_BETWEEN_READS", 0.0)

    def close_all(slots: list[FakeSlot]) -> None:
        for slot in slots:
            slot.is_closed = True

    monkeypatch.setattr(slots_module, "close_all", close_all)

    def run(
        study: Study, script: Script, *, most: int = 2, room: int = 2, stop_after: str = ""
    ) -> tuple[StudyState, list[FakeSlot]]:
        monkeypatch.setattr(FakeSlot, "made", [], raising=False)
        monkeypatch.setattr(FakeSlot, "script", staticmethod(script), raising=False)
        monkeypatch.setattr(FakeSlot, "room", room, raising=False)
        state, journal, stop = study.waiting_state(), InMemory(), threading.Event()

        def on_event() -> None:
            if stop_after and journal.events[-1]["event"] == stop_after:
                stop.set()

        recorder = Recorder(journal, state, on_event, lambda _: None, on_lost=stop.set)
        legs = Legs(study, 1000, recorder)
        resources = WorkerResources(2, 1, 0.0)

        def config(leg: Any) -> WorkerConfig:
            trial = legs.trial(leg.trial)
            return worker_config(trial, "0", tmp_path / leg.trial, resources, leg=leg)

        run_legs(legs, config, recorder, tmp_path, most, resources, lambda _: None, stop)
        assert all(slot.is_closed for slot in FakeSlot.made)
        run.events = journal.events  # type: ignore[attr-defined]
        run.lost = recorder.lost  # type: ignore[attr-defined]
        return state, FakeSlot.made

    return run


def test_legs_go_to_the_slots_that_have_room_and_none_waits_for_the_others(run: Any) -> None:
    def finishes(_slot: FakeSlot, _leg: WorkerConfig) -> list[Any]:
        return [*epochs(1, 27, 0.5), FinalReport("finished", None, 27)]

    state, slots = run(study_of(5, None), finishes, most=3, room=2)
    assert {trial.state for trial in state.trials.values()} == {"finished"}
    assert sorted(len(slot.legs) for slot in slots) == [0, 2, 3]
    started = [event for event in run.events if event["event"] == "trial_started"]
    assert [(event["slot"], event["reused"]) for event in started][:3] == [(1, False), (2, False), (1, True)]
    assert {event["workers"] for event in started} == {2}


def test_slots_that_can_get_no_leg_any_more_are_closed_while_others_train(run: Any) -> None:
    def finishes(_slot: FakeSlot, leg: WorkerConfig) -> list[Any]:
        assert leg["name"] != "clip_factor=0.004" or not any(slot.was_let_go for slot in FakeSlot.made)
        return [*epochs(1, 27, 0.5), FinalReport("finished", None, 27)]

    # The fourth slot never comes up; while the fourth trial trains, the first one has it and two are idle.
    run(study_of(4, None), finishes, most=4, room=3)
    assert [slot.was_let_go for slot in FakeSlot.made] == [False, True, True, True]


@pytest.mark.parametrize(
    ("asked", "most"), [({}, 9), ({"more_seeds": (1, 2)}, None), ({"confirm": 3}, None)], ids=str
)
def test_how_many_legs_can_run_at_once_is_unknown_while_trials_may_be_added(
    asked: dict[str, Any], most: int | None
) -> None:
    study = replace(study_of(9, None), **asked)
    recorder = Recorder(InMemory(), study.waiting_state(), lambda: None, lambda _: None)
    assert Legs(study, 1000, recorder).most_at_once() == most


def test_a_trial_pauses_at_a_rung_and_continues_in_the_same_attempt(run: Any) -> None:
    def trains(_slot: FakeSlot, leg: WorkerConfig) -> list[Any]:
        factor = leg["recipe"]["optimizer.agc.clip_factor"]
        last = leg["until_epoch"]
        end = FinalReport("finished" if last == 27 else "paused", None, last)
        return [*epochs(1, last, factor * 100), end]

    halving = Halving(3, 3.0, finalists=1)
    state, _ = run(study_of(9, halving), trains)
    states = [trial.state for trial in state.trials.values()]
    assert states.count("finished") == 1
    assert states.count("stopped") == 8
    assert state.trials["clip_factor=0.009"].state == "finished"
    assert {trial.attempts for trial in state.trials.values()} == {1}


@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_a_trial_that_ends_badly_ends_alone(run: Any, outcome: Any) -> None:
    def ends(slot: FakeSlot, _leg: WorkerConfig) -> list[Any]:
        return [FinalReport(outcome if len(slot.legs) == 2 else "finished", "why", 1)]

    state, _ = run(study_of(3, None), ends, most=1)
    assert [trial.state for trial in state.trials.values()] == ["finished", outcome, "finished"]


def test_a_stop_lets_running_legs_keep_a_checkpoint_and_starts_no_other(run: Any) -> None:
    def waits(slot: FakeSlot, _leg: WorkerConfig) -> list[Any]:
        return [*epochs(1, 1, 0.5), STOP] if slot.number == 1 else [STOP]

    state, slots = run(study_of(5, None), waits, stop_after="epoch")
    assert [trial.state for trial in state.trials.values()] == ["interrupted"] * 2 + [None] * 3
    assert [len(slot.legs) for slot in slots] == [1, 1]


def test_a_leg_that_is_stopped_before_its_first_step_leaves_no_trace(run: Any) -> None:
    def trains(slot: FakeSlot, _leg: WorkerConfig) -> list[Any]:
        return [*epochs(1, 1, 0.5), STOP] if slot.number == 1 else [BEFORE_ITS_FIRST_STEP]

    state, slots = run(study_of(2, None), trains, stop_after="epoch")
    assert [len(slot.legs) for slot in slots] == [1, 1]
    assert [trial.state for trial in state.trials.values()] == ["interrupted", None]
    assert {event["trial"] for event in run.events} == {slots[0].legs[0]["name"]}


@pytest.mark.parametrize("broken", ["storage", "controller"])
def test_what_no_trial_can_survive_stops_the_study(run: Any, broken: str) -> None:
    def breaks(_slot: FakeSlot, _leg: WorkerConfig) -> list[Any]:
        if broken == "storage":
            return [FinalReport("failed", "no room; make room", stops_study=True)]
        return [WorkersDoNotStart("Ray Train's controller ended (x)")]

    state, _ = run(study_of(5, None), breaks, most=1)
    assert run.lost is not None
    assert ("make room" if broken == "storage" else "controller ended (x)") in run.lost
    assert {trial.state for trial in state.trials.values()} <= {"interrupted", "running", None}


class FakeFit:
    """A ``TorchTrainer.fit`` that ends when a test says so."""

    error = "it was killed"
    over = False

    def __init__(self, _slot: SlotConfig) -> None:
        FakeFit.over = False

    def is_over(self) -> bool:
        return FakeFit.over

    def join(self, _seconds: float) -> None:
        """Nothing is to be waited for."""


@pytest.mark.parametrize("interrupted", [False, True])
def test_no_controller_outlives_the_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, interrupted: bool
) -> None:
    """Ray ends the process, with exit code 1, if one ends later. That they are killed leaves no trace of an error."""
    killed = threading.Event()

    class Trainer:
        def fit(self) -> None:
            assert killed.wait(60)
            raise RuntimeError("the actor died")

    monkeypatch.setattr(trainer, "torch_trainer", lambda _slot: Trainer())
    monkeypatch.setattr(trainer.ray_internals, "end_controllers", lambda _job: killed.set())
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    slots = [Slot(slot_config(1, tmp_path / name, WorkerResources(2, 1, 0.0))) for name in ("a", "b")]
    with suppress(KeyboardInterrupt), none_outlives_ray(slots):
        if interrupted:
            raise KeyboardInterrupt
    assert all(slot.is_over() for slot in slots)
    assert not list(tmp_path.rglob("error.txt"))


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Slot:
    """A slot whose controller is a fake."""
    monkeypatch.setattr(trainer, "_Fit", FakeFit)
    monkeypatch.setattr(trainer.ray_internals, "remove_orphaned_placement_groups", lambda _job: None)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    return Slot(slot_config(1, tmp_path, WorkerResources(2, 1, 0.0)))


def test_workers_that_are_started_again_know_which_leg_is_over(
    slot: Slot, head: dict[str, bytes], tmp_path: Path
) -> None:
    (trial,) = Study("s", "?", study_of(1, None).recipe, {}).trials()
    legs = [worker_config(trial, "0", tmp_path, WorkerResources(2, 1, 0.0)) for _ in range(4)]
    for leg in legs:
        slot.hand(leg)
        Register(leg["mailbox"]).set(ENDED, True)
    assert [Register(leg["mailbox"]).get(ENDED) for leg in legs] == [None, None, True, True]
    close_all([slot])
    assert head == {}


def test_a_controller_that_ends_is_started_again_unless_its_workers_never_come_up(slot: Slot) -> None:
    for _ in range(10):
        Register(slot.config["run"]).set(READY, True)
        assert slot.keep_up() is None
        FakeFit.over = True
        assert slot.keep_up() == "Ray Train's controller ended (it was killed)"
        assert not slot.is_ready()
    for _ in range(2):
        FakeFit.over = True
        assert slot.keep_up() is not None
    FakeFit.over = True
    with pytest.raises(WorkersDoNotStart, match="it was killed"):
        slot.keep_up()


@pytest.mark.usefixtures("head")
def test_a_worker_that_dies_while_the_group_starts_leaves_its_place_to_the_next_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray Train tells no callback of such a start but by the state that follows it, and forgets the group's place."""
    import ray.exceptions
    from ray.train.v2._internal.exceptions import (
        WorkerGroupStartupFailedError,
        WorkerGroupStartupTimeoutError,
    )
    from ray.train.v2._internal.execution.controller import state
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    freed: list[None] = []
    monkeypatch.setattr(
        group_events.ray_internals, "remove_placement_groups_of_this_actor", lambda: freed.append(None)
    )
    config = slot_config(1, tmp_path, WorkerResources(2, 1, 0.0))
    (trial,) = Study("s", "?", study_of(1, None).recipe, {}).trials()
    leg = worker_config(trial, "0", tmp_path, WorkerResources(2, 1, 0.0))
    Register(config["run"]).set(LEG, leg)
    events = group_events.GroupEvents(config)
    died = WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")
    died.__cause__ = ray.exceptions.ActorDiedError()
    scheduling = state.InitializingState()
    for after in (
        state.RunningState(),
        state.RestartingState(
            WorkerGroupError("a worker failed", {0: ValueError()})
        ),  # Ray Train frees its place
        state.ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2))),  # it had none
    ):
        events.after_controller_state_update(scheduling, after)
    assert freed == []
    assert Mailbox(leg["mailbox"]).take() == []
    events.after_controller_state_update(scheduling, state.ReschedulingState(ControllerError(died)))
    assert freed == [None]
    (note,) = Mailbox(leg["mailbox"]).take()
    assert note == WorkersLost("a worker died while the workers started", preempted=False)
    # As NCCL's backend does that finds no GPU: the process of a worker ends, or the worker says why.
    refusal = ray.exceptions.RayTaskError(
        "setup", "Traceback\nRuntimeError: no GPUs found!", RuntimeError("x")
    )
    for count, error in ((2, ray.exceptions.ActorDiedError()), (3, refusal)):
        events.after_controller_state_update(scheduling, state.ReschedulingState(ControllerError(error)))
        assert (Register(config["run"]).get(FAILED_STARTS) or {})["count"] == count
    assert freed == [None]  # Ray Train frees the places of workers that have been up
    assert [note.reason for note in Mailbox(leg["mailbox"]).take() if isinstance(note, WorkersLost)] == [
        "a worker died while the workers started",
        "the workers could not start (RuntimeError: no GPUs found!)",
    ]


@pytest.mark.usefixtures("head")
def test_workers_that_never_start_are_given_up(slot: Slot) -> None:
    """They were started again without end, and a person was told once."""
    register = Register(slot.config["run"])
    why = "a worker died"
    register.set(FAILED_STARTS, FailedStarts(count=trainer.MOST_FAILED_STARTS - 1, why=why))
    assert slot.keep_up() is None
    register.set(FAILED_STARTS, FailedStarts(count=trainer.MOST_FAILED_STARTS, why=why))
    with pytest.raises(WorkersDoNotStart, match=r"could not be started 10 times in a row \(a worker died\)"):
        slot.keep_up()


@pytest.mark.parametrize(
    ("workers", "gpus", "backend"), [(2, 0.5, "gloo"), (2, 1.0, "nccl"), (2, 0.0, "gloo"), (1, 1.0, "gloo")]
)
def test_workers_that_share_a_gpu_or_exchange_nothing_do_not_use_nccl(
    tmp_path: Path, workers: int, gpus: float, backend: str
) -> None:
    slot = trainer.torch_trainer(slot_config(1, tmp_path, WorkerResources(workers, 1, gpus)))
    assert slot.backend_config.backend == backend


@pytest.mark.parametrize("hang_seconds", [None, 8.0, 1200.0])
def test_an_exchange_may_take_longer_than_the_watchdogs_wait(
    tmp_path: Path, hang_seconds: float | None
) -> None:
    """Its error would end a run that compiles, and says less than their stacks."""
    slot = trainer.torch_trainer(slot_config(1, tmp_path, WorkerResources(2, 1, 0.0), hang_seconds))
    patience = (hang_seconds or SECONDS_OF_SILENCE) * max(SLOW_PHASES.values())
    assert slot.backend_config.timeout_s > patience + SECONDS_TO_STAY
