"""What a journal says of the conditions of its trials: the driver's with each start, the worker's with an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.tracking.conditions.of_trial import conditions_of
from nfnet_ray.tracking.events import epoch_ended, study_resumed
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.measurement.conditions import conditions_text
from tests.tracking.example_study import agc_sweep, write_journal

HARDWARE: Any = {"description": "8 × H200", "cpus": 64, "gpus": 8, "memory_gib": 500.0}
VERSIONS: Any = {
    "nfnet_ray": "0.1.0",
    "torch": "2.16.0",
    "ray": "2.60.0",
    "python": "3.12.1",
    "commit": "feed",
}


def test_a_worker_tells_the_conditions_of_its_recipe() -> None:
    recipe = Recipe().with_values({"model.name": "nfnet_pico", "precision": "bfloat16"})
    context = PlainContext(device=torch.device("cpu"), threads=2)
    told = json.loads(conditions_text(resolve(recipe), context))
    assert told["precision"] == "bfloat16"
    assert (told["eval_size"], told["eval_crop"]) == (resolve(recipe).data.eval_size, "squash")
    assert told["averaging"] == "moving average"
    assert told["test_time_augmentation"] == "none"
    assert (told["workers"], told["threads"], told["torch"]) == (1, 2, torch.__version__)
    assert told["device"]
    assert "cuda" not in told
    assert "step" not in told  # it is a GPU's
    on_a_gpu = json.loads(conditions_text(resolve(recipe), context, step="one CUDA graph"))
    assert on_a_gpu["step"] == "one CUDA graph"


def test_each_trial_knows_the_drivers_that_trained_it(tmp_path: Path) -> None:
    events = agc_sweep(clip_factors=(0.01,))[:-1]
    first, second = [event["trial"] for event in events if event["event"] == "trial_started"]
    middle = next(n for n, event in enumerate(events) if event.get("epoch") == 3 and event["trial"] == second)  # type: ignore[typeddict-item]
    resumed = {
        **study_resumed({}, places=2, hardware=HARDWARE, versions=VERSIONS),
        "time": events[middle]["time"],
    }
    write_journal(tmp_path, [*events[:middle], resumed, *events[middle:]])  # type: ignore[list-item]
    for brief in (False, True):
        state, started = StudyState.read(tmp_path, last_epochs_only=brief)
        assert state.trials[first].sessions == [0]
        assert state.trials[second].sessions == [0, 1]
        assert state.sessions[0].hardware == started["study"]["hardware"]
        assert (state.sessions[1].hardware, state.sessions[1].versions) == (HARDWARE, VERSIONS)
        assert state.sessions[1].places == 2


def test_a_resume_of_an_earlier_version_does_not_say_what_it_ran_on(tmp_path: Path) -> None:
    events = agc_sweep(clip_factors=(0.01,))
    write_journal(tmp_path, [*events, {"event": "study_resumed", "time": 2e9}])
    state, _ = StudyState.read(tmp_path)
    assert (state.sessions[1].hardware, state.sessions[1].versions, state.sessions[1].places) == (
        None,
        None,
        None,
    )


def test_conditions_of_an_epoch_are_kept(tmp_path: Path) -> None:
    events = agc_sweep(clip_factors=(0.01,))
    trial = next(event["trial"] for event in events if event["event"] == "trial_started")
    told = epoch_ended(trial, 8, {"validation_top1": 0.5}, {"conditions": '{"device":"H200"}'})
    write_journal(tmp_path, [*events, told])
    for brief in (False, True):
        state, _ = StudyState.read(tmp_path, last_epochs_only=brief)
        assert state.trials[trial].texts_of(8) == {"conditions": '{"device":"H200"}'}


def test_how_a_gpu_does_its_steps_is_a_condition(tmp_path: Path) -> None:
    """It touches the time; a journal of a CPU has none."""
    events: Any = agc_sweep(clip_factors=(0.01,))
    trial = next(event["trial"] for event in events if event["event"] == "trial_started")
    told = epoch_ended(trial, 8, {"validation_top1": 0.5}, {"conditions": '{"step":"one CUDA graph"}'})
    for gpus in (0, 1):
        events[0]["study"]["worker"]["gpus"] = gpus
        write_journal(tmp_path / str(gpus), [*events, told])
        conditions = conditions_of(StudyState.read(tmp_path / str(gpus))[0], trial)
        assert ("step" in conditions) == (gpus == 1)
    assert conditions["step"].text == "one CUDA graph"
