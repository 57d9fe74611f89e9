"""All trials of a shape are trained in one form, whoever times first and whoever dies. No Ray is started."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.cluster import forms as forms_module
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.forms import FormBook, agree
from nfnet_ray.cluster.messages.configs import WorkerConfig, worker_config
from nfnet_ray.cluster.messages.tune_reports import form_in, form_result
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.delivery.spool import runs_of
from nfnet_ray.tracking.events import study_started
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.training.context import FormNotes
from nfnet_ray.training.form.forms import Choice, Form
from tests.cluster.fake_head import fake_head
from tests.deadlines import HANG_SECONDS

SHAPE = "nfnet_pico, 32 px, on a processor"
QUICK, SLOW = Choice(Form("channels_last"), {"channels_last": 0.1}), Choice(Form("contiguous"))
STUDY = Study("agc", "?", Recipe(), {"optimizer.agc.clip_factor": [0.01, 0.02, None]})


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_head(monkeypatch)
    monkeypatch.setattr(forms_module, "SECONDS_BETWEEN_LOOKS", 0.001)


@pytest.fixture
def said() -> list[str]:
    """What the driver has told a person."""
    return []


@pytest.fixture
def driver(tmp_path: Path, said: list[str]) -> Iterator[tuple[Recorder, FormBook]]:
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        recorder = Recorder(journal, StudyState(), lambda: None, said.append)
        plans: Any = [{"name": trial.name, "point": {}, "recipe": {}} for trial in STUDY.trials()]
        recorder.record(study_started({"name": "agc", "seeds": [0], "worker": {}}, plans))  # type: ignore[typeddict-item]
        yield recorder, FormBook(recorder)


def config_of(number: int, recorder: Recorder, book: FormBook, directory: Path) -> WorkerConfig:
    return worker_config(
        STUDY.trials()[number],
        "0",
        directory,
        WorkerResources(1, 1, 0.0),
        forms=recorder.state.forms,
        forms_register=book.name,
    )


def never(_notes: FormNotes) -> Choice:
    raise AssertionError("the form is known")


def test_the_second_trial_waits_for_the_first_one(
    driver: tuple[Recorder, FormBook], said: list[str], tmp_path: Path
) -> None:
    recorder, book = driver
    names = [trial.name for trial in STUDY.trials()]
    configs = [config_of(number, recorder, book, tmp_path) for number in range(2)]
    is_waiting, found = threading.Event(), {}

    def second() -> None:
        found[1] = agree(configs[1], SHAPE, never, never, never, is_waiting.set)

    waiter = threading.Thread(target=second, daemon=True)

    def choose(notes: FormNotes) -> Choice:
        waiter.start()
        assert is_waiting.wait(HANG_SECONDS)
        notes.end_form()
        return QUICK

    def tell(shape: str, choice: dict[str, Any]) -> None:
        reported = form_in(form_result(shape, choice))
        assert reported == (SHAPE, QUICK.to_values())
        book.take(names[0], *reported)

    assert agree(configs[0], SHAPE, choose, tell, never, lambda: None) == QUICK
    waiter.join(HANG_SECONDS)
    assert found == {1: QUICK}
    assert said == [f"{names[0]}: form of a step: {QUICK.sentence()}"]
    # After a kill -9 a new driver reads it, and its head knows nothing.
    state, _ = StudyState.read(tmp_path)
    assert {shape: Choice.from_values(values) for shape, values in state.forms.items()} == {SHAPE: QUICK}
    resumed = FormBook(recorder)
    assert agree(config_of(2, recorder, resumed, tmp_path), SHAPE, never, never, never, lambda: None) == QUICK


def test_of_two_choices_the_first_that_the_driver_hears_of_holds(
    driver: tuple[Recorder, FormBook], tmp_path: Path
) -> None:
    """The second trial took the first one for dead."""
    recorder, book = driver
    names = [trial.name for trial in STUDY.trials()]

    def choose(_notes: FormNotes) -> Choice:
        book.take(names[1], SHAPE, SLOW.to_values())
        return QUICK

    def tell(shape: str, choice: dict[str, Any]) -> None:
        book.take(names[0], shape, choice)

    config = config_of(0, recorder, book, tmp_path)
    assert agree(config, SHAPE, choose, tell, never, lambda: None) == SLOW
    state, _ = StudyState.read(tmp_path)
    assert Choice.from_values(state.forms[SHAPE]) == SLOW


@pytest.mark.parametrize("patience", [0.0, HANG_SECONDS])
def test_a_trial_that_dies_while_it_times_is_not_waited_for(
    driver: tuple[Recorder, FormBook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """Its process by a signal, after which there are no news; or the trial by an error, which ends the waiting."""
    recorder, book = driver
    first, second = (config_of(number, recorder, book, tmp_path) for number in range(2))

    def fails(_notes: FormNotes) -> Choice:
        raise MemoryError if patience else KeyboardInterrupt

    with pytest.raises((MemoryError, KeyboardInterrupt)):
        agree(first, SHAPE, fails, never, never, lambda: None)
    monkeypatch.setattr(forms_module, "SECONDS_WITHOUT_NEWS", patience)
    began = time.monotonic()

    def tell(shape: str, choice: dict[str, Any]) -> None:
        book.take(STUDY.trials()[1].name, shape, choice)

    assert agree(second, SHAPE, lambda _: SLOW, tell, never, lambda: None) == SLOW
    assert time.monotonic() - began < HANG_SECONDS
    # The process that replaces the first one takes what holds.
    assert agree(first, SHAPE, never, never, never, lambda: None) == SLOW


def test_a_trial_that_compiles_for_long_is_not_taken_for_dead(
    driver: tuple[Recorder, FormBook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One compilation may take longer than the others wait without news."""
    recorder, book = driver
    monkeypatch.setattr(forms_module, "SECONDS_BETWEEN_SIGNS", 0.01)
    monkeypatch.setattr(forms_module, "SECONDS_WITHOUT_NEWS", 1.0)
    first, second = (config_of(number, recorder, book, tmp_path) for number in range(2))
    found: list[Choice] = []
    waiter = threading.Thread(
        target=lambda: found.append(agree(second, SHAPE, never, never, never, lambda: None)), daemon=True
    )

    def choose(_notes: FormNotes) -> Choice:
        waiter.start()
        time.sleep(2.0)
        return QUICK

    def tell(shape: str, choice: dict[str, Any]) -> None:
        book.take(STUDY.trials()[0].name, shape, choice)

    assert agree(first, SHAPE, choose, tell, never, lambda: None) == QUICK
    waiter.join(HANG_SECONDS)
    assert found == [QUICK]


def test_a_form_whose_compilation_ends_the_process_twice_is_left_out(
    driver: tuple[Recorder, FormBook], tmp_path: Path
) -> None:
    """A crash of the compiler, or the watchdog, which ends one that hangs: the trial would never get any further."""
    recorder, book = driver
    config, heard = config_of(0, recorder, book, tmp_path), list[str]()
    tried: list[tuple[str, bool]] = []

    def choose(notes: FormNotes) -> Choice:
        notes.end_form()  # an eager one
        for form, ends_the_process in (("compiled", False), ("tuned", True)):
            tried.append((form, notes.begin_compiling(form)))
            if not tried[-1][1]:
                break
            if ends_the_process:
                raise KeyboardInterrupt
            notes.end_form()
        return QUICK

    def tell(shape: str, choice: dict[str, Any]) -> None:
        book.take(STUDY.trials()[0].name, shape, choice)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            agree(config, SHAPE, choose, tell, heard.append, lambda: None)
    assert agree(config, SHAPE, choose, tell, heard.append, lambda: None) == QUICK
    assert tried == [("compiled", True), ("tuned", True)] * 2 + [("compiled", True), ("tuned", False)]
    assert len(heard) == 3
    assert "--set compile=false" in heard[0]


def test_a_head_that_is_away_is_answered_later(
    driver: tuple[Recorder, FormBook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, book = driver
    with monkeypatch.context() as patch:

        def away(*_: Any) -> None:
            raise OSError("away")

        patch.setattr(forms_module.Register, "set", away)
        book.take(STUDY.trials()[0].name, SHAPE, QUICK.to_values())
    asked: list[int] = []

    def sign_of_life() -> None:
        asked.append(1)
        if len(asked) == 3:
            book.answer()

    waiting = config_of(1, recorder, book, tmp_path)
    waiting["forms"] = {}
    forms_module.Register(book.name).set_first(forms_module.claim_of(SHAPE), "another 0")
    assert agree(waiting, SHAPE, never, never, never, sign_of_life) == QUICK


def test_mlflow_has_no_run_of_a_chosen_form(driver: tuple[Recorder, FormBook]) -> None:
    recorder, book = driver
    book.take(STUDY.trials()[0].name, SHAPE, QUICK.to_values())
    assert runs_of({"event": "form_chosen", "time": 0.0, "trial": "x", "shape": SHAPE, "choice": {}}) == ()
    assert recorder.state.trials[STUDY.trials()[0].name].state is None
