"""A study is extended in its own journal: nothing that was paid for runs again, and what is left out stays."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nfnet_ray.analysis.answer import contenders, winners
from nfnet_ray.analysis.record import study_record
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study import Halving, Study
from nfnet_ray.study.contenders import Contenders
from nfnet_ray.study.differences import differing_fields
from nfnet_ray.study.extension import UNNAMED, Extension, extension
from nfnet_ray.study.live.display import best_so_far, reported_epochs, trial_table
from nfnet_ray.study.space import Range
from nfnet_ray.tracking.events import Event, study_started
from nfnet_ray.tracking.runs.study_metrics import study_metrics
from nfnet_ray.tracking.state import StudyState
from studies.agc_sweep import agc_sweep
from studies.running.flags import main
from studies.running.program import StudyProgram
from studies.running.trials import StudyRequest
from tests.quick.test_decisions import IMAGES, Killed, Simulation, outcome

CLIP, BATCH = "optimizer.agc.clip_factor", "batch_size"
EPOCHS = 9
RECIPE = Recipe().with_values({"schedule.epochs": EPOCHS, "schedule.warmup_epochs": 0.0})
STUDY = Study("s", "?", RECIPE, {CLIP: (0.01, 0.02, 0.03, 0.04)}, halving=Halving(first_rung=1, finalists=1))
RANGE = replace(STUDY, space={CLIP: Range(0.002, 0.3, log=True)}, trial_limit=8)


class Curves(dict[str, list[float | None]]):
    """{trial: its accuracies}, of any trial: flat, and decided by its name."""

    def __missing__(self, name: str) -> list[float | None]:
        return [(zlib.crc32(name.encode()) % 1000) / 1000] * 100


def contenders_of(state: StudyState) -> Contenders:
    """The contenders as a study that runs finds them."""
    assert state.started is not None
    return Contenders(*contenders(study_record(state, state.started, with_epochs=False)))


def winners_of(state: StudyState) -> list[dict[str, Any]]:
    """The winners as a study that runs finds them."""
    assert state.started is not None
    return winners(study_record(state, state.started, with_epochs=False))


class Journaled:
    """A study and its journal, which whoever extends or resumes it has nothing but."""

    def __init__(self, study: Study, **curves: Any) -> None:
        self.curves = Curves(curves)
        started = study_started(
            {
                "name": study.name,
                "data": {"train_images": IMAGES, "validation_images": IMAGES},
                **study.description(),
            },  # type: ignore[typeddict-item]
            [study.plan(trial) for trial in study.trials()],
        )
        self.events: list[Event] = [started]

    def state(self) -> StudyState:
        state = StudyState()
        for event in self.events:
            state.apply(event)
        return state

    def study(self) -> Study:
        state = self.state()
        assert state.started is not None
        return Study.from_event(state.started).grown(state)

    def run(self, chance: random.Random | None = None, kill_after: int | None = None) -> StudyState:
        """Runs to the end, or until there are ``kill_after`` more events."""
        simulation = Simulation(self.study(), self.curves, IMAGES, None, contenders_of, winners_of)
        simulation.state, simulation.journal.events = self.state(), self.events
        kill = None if kill_after is None else kill_after + len(self.events)
        return simulation.run(2, chance or random.Random(0), kill)

    def extend(
        self, has_checkpoint: Callable[[str], bool] = lambda _: True, **changes: Any
    ) -> Extension | None:
        epochs = changes.pop("epochs", None)
        asked = replace(self.study(), **UNNAMED, **changes)
        if epochs:
            asked = replace(asked, recipe=asked.recipe.with_values({"schedule.epochs": epochs}))
        elif "space" in changes and "trial_limit" not in changes and not asked.draws_points:
            asked = replace(asked, trial_limit=None)
        extended = extension(asked, self.study(), self.state(), str(changes), IMAGES, has_checkpoint)
        if extended is not None:
            self.events.append(extended.event)
            assert [trial.name for trial in self.study().trials()] == [
                trial.name for trial in extended.study.trials()
            ]
            assert not differing_fields(self.study(), extended.study)
        return extended

    def trained_since(self, events: int) -> set[str]:
        return {event["trial"] for event in self.events[events:] if event["event"] == "epoch"}


def test_only_new_values_are_trained_and_those_left_out_stay_as_evidence() -> None:
    study = Journaled(replace(STUDY, halving=None))
    before = study.run()
    events = len(study.events)
    extended = study.extend(space={CLIP: (0.02, 0.5, 0.01)})
    assert extended is not None
    assert extended.added == 1
    assert extended.event["left_out"] == ["clip_factor=0.03", "clip_factor=0.04"]
    after = study.run()
    assert study.trained_since(events) == {"clip_factor=0.5"}
    assert list(after.trials) == [
        *("clip_factor=0.02", "clip_factor=0.5", "clip_factor=0.01", "clip_factor=0.03", "clip_factor=0.04")
    ]
    assert [trial.name for trial in after.members] == list(after.trials)[:3]
    for name in before.trials:
        assert outcome(after)[name] == outcome(before)[name]
    assert study.extend(space={CLIP: (0.02, 0.5, 0.01)}) is None  # it is that already


def test_a_value_that_was_left_out_is_taken_back_without_training() -> None:
    study = Journaled(replace(STUDY, halving=None))
    study.run()
    study.extend(space={CLIP: (0.01, 0.02)})
    extended = study.extend(space=STUDY.space)
    assert extended is not None
    assert extended.added == 0
    assert extended.event["taken_back"] == ["clip_factor=0.03", "clip_factor=0.04"]
    state = study.state()
    assert state.outside == frozenset()
    assert state.unfinished == []


def test_more_seeds_are_new_trials_and_the_first_seed_keeps_its_names() -> None:
    study = Journaled(replace(STUDY, halving=None))
    study.run()
    events = len(study.events)
    study.extend(seeds=(0, 1, 2))
    state = study.run()
    assert study.trained_since(events) == {
        f"clip_factor=0.0{factor},seed={seed}" for factor in (1, 2, 3, 4) for seed in (1, 2)
    }
    assert [trial.recipe.seed for trial in study.study().trials()] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(state.members) == 12
    study.extend(seeds=(0,))
    assert [trial.name for trial in study.state().members] == [trial.name for trial in STUDY.trials()]


def test_other_epochs_are_other_trainings() -> None:
    study = Journaled(replace(STUDY, halving=None))
    study.run()
    extended = study.extend(epochs=18)
    assert extended is not None
    assert "another learning-rate schedule" in " ".join(extended.sentences())
    state = study.run()
    assert [trial.name for trial in state.members] == [
        f"clip_factor=0.0{factor},epochs=18" for factor in (1, 2, 3, 4)
    ]
    assert all(trial.epoch == 18 for trial in state.members)
    assert state.plans["clip_factor=0.01"]["recipe"]["schedule.epochs"] == EPOCHS
    back = study.extend(epochs=EPOCHS)
    assert back is not None
    assert back.added == 0
    assert [trial.name for trial in study.state().members] == [trial.name for trial in STUDY.trials()]


def test_a_field_that_is_added_keeps_the_trials_with_the_value_of_the_recipe() -> None:
    study = Journaled(replace(STUDY, halving=None, space={CLIP: (0.01, 0.02)}))
    study.run()
    extended = study.extend(space={CLIP: (0.01, 0.02), BATCH: (RECIPE.batch_size, 64)})
    assert extended is not None
    assert [trial.name for trial in extended.study.trials()] == [
        "clip_factor=0.01",
        "clip_factor=0.02",
        "clip_factor=0.01,batch_size=64",
        "clip_factor=0.02,batch_size=64",
    ]
    assert len({trial.stratum for trial in extended.study.trials()}) == 2


def test_a_given_up_trial_is_promoted_if_the_enlarged_group_promotes_more() -> None:
    curves = {f"clip_factor=0.0{place}": [0.9 - place / 10] * 100 for place in (1, 2, 3, 4)}
    study = Journaled(STUDY, **curves)
    before = outcome(study.run())
    assert before["clip_factor=0.02"] == ("stopped", 3, [1])
    assert before["clip_factor=0.03"] == before["clip_factor=0.04"] == ("stopped", 1, [])
    study.curves.update({f"clip_factor=0.{place}": [0.1] * 100 for place in (5, 6, 7, 8, 9)})
    extended = study.extend(space={CLIP: (*STUDY.space[CLIP], 0.5, 0.6, 0.7, 0.8, 0.9)})  # type: ignore[misc]
    assert extended is not None
    # Of nine three continue: the third is promoted after all if no new one is better, the fourth in no case.
    assert extended.event["reconsidered"] == ["clip_factor=0.03"]
    after = outcome(study.run())
    assert after["clip_factor=0.03"][0] == "stopped"
    assert after["clip_factor=0.03"][1:] == (3, [1])
    assert after["clip_factor=0.04"] == before["clip_factor=0.04"]


def test_a_given_up_trial_without_a_checkpoint_stays_given_up() -> None:
    study = Journaled(STUDY)
    before = outcome(study.run())
    extended = study.extend(lambda _: False, halving=None)
    assert extended is not None
    assert extended.event["reconsidered"] == []
    assert outcome(study.run()) == before
    assert study.extend(halving=Halving(first_rung=1, finalists=1, eta=2)) is not None


def test_without_early_stopping_all_that_were_given_up_train_to_the_end() -> None:
    study = Journaled(STUDY)
    study.run()
    study.extend(halving=None)
    assert {trial.state for trial in study.run().members} == {"finished"}


@pytest.mark.parametrize("search", ["sobol", "random"])
def test_a_search_that_is_given_more_settings_continues_its_sequence(search: str) -> None:
    whole = replace(RANGE, search=search, trial_limit=20, halving=None)
    study = Journaled(replace(whole, trial_limit=8))
    study.run()
    events = len(study.events)
    study.extend(trial_limit=20)
    study.run()
    assert [trial.name for trial in study.study().trials()] == [trial.name for trial in whole.trials()]
    assert study.trained_since(events) == {trial.name for trial in whole.trials()[8:]}


def test_a_narrower_range_keeps_the_points_that_lie_in_it() -> None:
    study = Journaled(replace(RANGE, halving=None))
    study.run()
    within = [trial.name for trial in RANGE.trials() if 0.01 <= trial.point[CLIP] <= 0.1]
    assert 0 < len(within) < 8
    extended = study.extend(space={CLIP: Range(0.01, 0.1, log=True)})
    assert extended is not None
    names = [trial.name for trial in extended.study.trials()]
    assert names[: len(within)] == within
    assert len(names) == 8
    assert extended.added == 8 - len(within)


def test_proposals_continue_their_numbers() -> None:
    study = Journaled(replace(RANGE, search="tpe", trial_limit=6, halving=Halving(first_rung=1)))
    before = study.run()
    assert sorted(before.proposals.values()) == [4, 5]
    study.extend(trial_limit=9)
    after = study.run()
    assert sorted(after.proposals.values()) == [6, 7, 8]
    assert list(after.trials)[:6] == list(before.trials)
    whole = Journaled(replace(RANGE, search="tpe", trial_limit=9, halving=None))
    parts = Journaled(replace(RANGE, search="tpe", trial_limit=6, halving=None))
    parts.run()
    parts.extend(trial_limit=9)
    assert list(parts.run().trials) == list(whole.run().trials)


@pytest.mark.parametrize("kill_after", [0, 1, 7, 20])
def test_an_extended_study_that_was_killed_is_resumed_from_its_journal_alone(kill_after: int) -> None:
    study = Journaled(STUDY)
    study.run()
    space = {CLIP: tuple(number / 100 for number in range(1, 13))}
    study.extend(space=space, seeds=(0, 1))
    undisturbed = Journaled(STUDY)
    undisturbed.events = list(study.events)
    expected = outcome(undisturbed.run())
    with pytest.raises(Killed):
        study.run(kill_after=kill_after)
    assert study.extend(space=space, seeds=(0, 1)) is None  # the same command again resumes it
    assert outcome(study.run(random.Random(7))) == expected


@pytest.mark.parametrize("order", range(6))
def test_decisions_after_an_extension_do_not_depend_on_the_order_of_arrival(order: int) -> None:
    expected = None
    for seed in (100 + order, 200 + order):
        study = Journaled(STUDY, **{"clip_factor=0.03": [0.5] * 100})
        study.run(random.Random(1))
        study.extend(space={CLIP: tuple(number / 100 for number in range(1, 20))})
        found = outcome(study.run(random.Random(seed)))
        assert expected is None or found == expected
        expected = found


def test_a_search_takes_the_place_of_a_grid_where_a_range_takes_that_of_a_list() -> None:
    study = Journaled(replace(STUDY, halving=None))
    extended = study.extend(space={CLIP: Range(0.01, 0.5)}, search="random", trial_limit=6)
    assert extended is not None
    assert (extended.added, extended.study.search_name) == (2, "random")


def test_a_search_is_nothing_to_add(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(agc_sweep, Path("studies/agc_sweep.py"), ["--extend", "x", "--search", "random"]) == 2
    assert "--extend x needs what to add: --sweep FIELD=VALUES, --seeds N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": "Why?"}, "asks a different question"),
        ({"recipe": RECIPE.with_values({"optimizer.momentum": 0.5})}, "optimizer.momentum = 0.9, not 0.5"),
        ({"space": {BATCH: (64,)}}, f"sweeps {CLIP}"),
        ({"space": {BATCH: (64,), CLIP: (0.01,)}}, f"asks about {CLIP}"),
        ({"space": {}, "points": ({CLIP: 0.5},)}, "not a list of points"),
        ({"search": "tpe"}, "searches by grid, not tpe"),
        ({"search": "random"}, "searches by grid, not random"),
        ({"search": "sobol", "space": {CLIP: (0.01, 0.5)}}, "searches by grid, not sobol"),
    ],
)
def test_what_cannot_change_is_refused(changes: dict[str, Any], said: str) -> None:
    study = Journaled(replace(STUDY, halving=None))
    with pytest.raises(UserError, match=said) as raised:
        study.extend(**changes)
    assert "\n" not in str(raised.value)


def test_stretched_schedules_are_extended_only_where_they_stay_the_same() -> None:
    study = Journaled(replace(STUDY, halving=Halving(first_rung=1, finalists=1, schedule="stretched")))
    study.run()
    with pytest.raises(UserError, match="schedules of"):
        study.extend(halving=Halving(first_rung=2, finalists=1, schedule="stretched"))
    with pytest.raises(UserError, match="stretched schedules, not"):
        study.extend(halving=Halving(first_rung=2, unit="seconds"))
    events = len(study.events)
    assert study.extend(seeds=(0, 1)) is not None
    study.run()
    assert {name.split(",")[-1] for name in study.trained_since(events)} == {"seed=1"}


def test_an_extended_study_keeps_the_unit_of_its_rungs_and_its_schedules() -> None:
    stretched = Halving(first_rung=1, finalists=2, schedule="stretched")
    study = Journaled(replace(STUDY, halving=stretched))
    study.run()
    with pytest.raises(UserError, match="has stretched schedules, not truncated ones: start a new study"):
        study.extend(halving=Halving(first_rung=1, finalists=1))
    with pytest.raises(
        UserError, match=r"would train schedules of 1, 3, 9 epochs, and .* with those of 1, 9"
    ):
        study.extend(space={CLIP: tuple(number / 100 for number in range(1, 10))})
    events = len(study.events)
    study.extend(space={CLIP: (0.01, 0.02, 0.03, 0.05)})
    assert study.run().trials["clip_factor=0.05"].epoch
    assert "clip_factor=0.01" not in study.trained_since(events)

    truncated = Journaled(STUDY)
    truncated.run()
    with pytest.raises(UserError, match="has rungs in epochs, not in seconds: start a new study"):
        truncated.extend(halving=Halving(first_rung=60, unit="seconds"))


def asked(study: Study, **given: Any) -> Study:
    """What ``--extend`` with these flags would make of a study; ``whole`` is a Study from Python."""
    whole = given.pop("whole", None)
    program = StudyProgram(lambda *_: whole, is_open=whole is None, is_whole=whole is not None)
    data = DatasetSummary(Path("data"), 1437, 360, ("",) * 10, "0", None)
    return StudyRequest(program=program, extend=study.name, **given).extended(study, data)


def test_what_is_not_said_stays_as_it_was() -> None:
    study = Journaled(replace(STUDY, trial_limit=2, seeds=(3, 4))).study()
    same = asked(study)
    assert not differing_fields(same, study)
    assert asked(study, seeds=4).seeds == (3, 4, 5, 6)
    assert asked(study, seeds=1).seeds == (3,)
    assert len(asked(study, trials=3).trials()) == 3 * 2
    assert len(asked(study, sweep={CLIP: (0.1, 0.2)}).trials()) == 2 * 2
    assert asked(study, settings={CLIP: 0.5}).space == {CLIP: (0.5,)}
    assert asked(study, settings={CLIP: 0.5}).recipe == study.recipe
    assert asked(study, early_stopping="none").halving is None


def test_a_study_of_its_first_settings_is_told_how_many_of_another_space_it_is_to_have() -> None:
    """It ran all of the new space's, whatever ``--trials`` had said."""
    first_two = Journaled(replace(STUDY, trial_limit=2)).study()
    listed = Journaled(
        replace(STUDY, space={}, points=tuple({CLIP: c / 10, BATCH: 64} for c in (1, 2, 3)), trial_limit=1)
    )
    for study, changes, said in (
        (first_two, {"sweep": {CLIP: (0.1, 0.2, 0.3)}}, "first 2 of the 4 settings .* which has 3"),
        (first_two, {"sweep": {BATCH: (64, 128)}}, "first 2 of the 4 settings .* which has 8"),
        (first_two, {"sweep": {CLIP: tuple(range(1, 30_000))}}, "which has 10,000 or more"),
        (listed.study(), {"settings": {BATCH: 32}}, "first 1 of the 3 settings .* which has 3"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            asked(study, **changes)
        assert "\n" not in str(raised.value)
        assert len(asked(study, **changes, trials=3).trials()) == 3
    whole = Journaled(STUDY).study()
    assert len(asked(whole, sweep={BATCH: (64, 128)}).trials()) == 8
    ranges = {CLIP: Range(0.1, 0.2), BATCH: (32, 64)}
    assert len(asked(first_two, sweep=ranges).trials()) == 16  # a search draws them


def test_a_default_first_rung_follows_the_epochs_and_another_one_does_not() -> None:
    recipe = RECIPE.with_values({"schedule.epochs": 54})
    by_default = Journaled(replace(STUDY, recipe=recipe, halving=Halving())).study()
    chosen = Journaled(replace(STUDY, recipe=recipe, halving=Halving(first_rung=5))).study()
    for study, rung in ((by_default, 10), (chosen, 5)):
        longer = asked(study, epochs=270)
        assert longer.halving is not None
        assert longer.halving.first_rung_of(longer.recipe.schedule) == rung


def test_a_question_that_was_made_from_the_space_is_made_from_the_new_one() -> None:
    study = replace(STUDY, question="Which clip_factor is best?")
    assert "batch_size" in asked(study, sweep={BATCH: (64, 128)}).question
    assert asked(STUDY, sweep={BATCH: (64, 128)}).question == "?"
    journaled = Journaled(study)
    journaled.run()
    now_asked = asked(journaled.study(), sweep={BATCH: (64, 128)})
    assert journaled.extend(question=now_asked.question, space=now_asked.space) is not None
    assert journaled.study().question == "Which clip_factor is best, and how does that depend on batch_size?"
    with pytest.raises(UserError, match="asks a different question"):
        journaled.extend(question="Why?")


def test_a_whole_study_from_python_is_what_an_extended_one_becomes() -> None:
    study = Journaled(replace(STUDY, halving=None))
    study.run()
    whole = replace(study.study(), name="mine", space={CLIP: (0.01, 0.5)}, seeds=(0, 1), trial_limit=None)
    extended = extension(
        asked(study.study(), whole=replace(whole, **UNNAMED)), study.study(), study.state(), "", IMAGES, bool
    )
    assert extended is not None
    assert extended.study.name == "s"
    assert [trial.name for trial in extended.study.trials()][:2] == [
        "clip_factor=0.01",
        "clip_factor=0.5,seed=0",
    ]
    assert extended.added == 3


def test_a_field_that_is_not_swept_cannot_be_set() -> None:
    with pytest.raises(UserError, match=r"optimizer\.momentum=0\.5: s has 0\.9"):
        asked(STUDY, settings={"optimizer.momentum": 0.5})
    assert asked(STUDY, settings={"optimizer.momentum": 0.9}).recipe == STUDY.recipe


def test_points_with_epochs_of_their_own_keep_them() -> None:
    """Nothing would be trained, whatever ``--epochs`` says."""
    study = replace(STUDY, halving=None, space={}, points=({"schedule.epochs": 3}, {"schedule.epochs": 9}))
    with pytest.raises(UserError, match="--epochs 18: each point of s has epochs of its own"):
        asked(study, epochs=18)
    assert asked(study, seeds=2).points == study.points


@pytest.mark.parametrize(
    ("study", "changes"),
    [
        (STUDY, {"space": {CLIP: (0.01, 0.02), BATCH: (RECIPE.batch_size, 64)}}),
        (STUDY, {"seeds": (0, 1)}),
        (RANGE, {"space": {**RANGE.space, BATCH: (RECIPE.batch_size, 64)}}),
    ],
)
def test_an_extended_study_is_continued_by_the_command_that_asks_for_all_of_it(
    study: Study, changes: dict[str, Any]
) -> None:
    """``--name NAME --continue``: the trials keep the names that they have in the journal."""
    journaled = Journaled(study)
    journaled.run()
    assert journaled.extend(**changes) is not None
    whole = replace(journaled.study(), **UNNAMED)
    assert not differing_fields(whole, journaled.study())
    continued = whole.with_points_of(journaled.state())
    assert [one.name for one in continued.trials()] == [one.name for one in journaled.study().trials()]
    assert set(journaled.state().trials) >= {trial.name for trial in continued.trials()}


def test_tables_keep_what_was_left_out_apart() -> None:
    study = Journaled(replace(STUDY, halving=None), **{"clip_factor=0.04": [0.999] * 100})
    study.run()
    study.extend(space={CLIP: (0.01, 0.02)})
    state = study.run()
    assert state.started is not None
    record = study_record(state, state.started)
    assert [*record.trials["trial"]] == ["clip_factor=0.01", "clip_factor=0.02"]
    assert set(record.epochs["trial"]) == {"clip_factor=0.01", "clip_factor=0.02"}
    assert record.left_out is not None
    assert [*record.left_out["trial"]] == ["clip_factor=0.03", "clip_factor=0.04"]
    assert len(record.extensions) == 1
    console = Console(width=100, file=io.StringIO())
    console.print(trial_table(study.study(), state, reported_epochs))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert ["not in the study any more" in line for line in lines[1:5]] == [False, False, True, True]
    assert "0.999" not in best_so_far(study.study(), state)
    assert study_metrics(state, METRIC)[f"best_{METRIC}"] < 0.999
