"""Trials of one process that replay each other's graphs: bit for bit the numbers of trials in new processes.

Tapes stand for the graphs (``tape.py``). All that a trial has left is damaged before the next one begins, so whatever
it took over from it would be seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from nfnet_ray.models.published import with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import Outcome, PlainContext, captured, run, train
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
from nfnet_ray.training.cohort import train_cohort
from nfnet_ray.training.form.kept import NUMBERS, KeptGraphs, structure_of
from nfnet_ray.training.step import TrainStep
from tests.training.pretended_gpu import DEVICE, pretended_gpu
from tests.training.tape import TapeRecorder
from tests.training.test_captured import BASELINE
from tests.training.test_rates import CASES as STEPS
from tests.training.test_rates import OTHER_RATES

MEASURED = ("seconds", "per_second", "bytes", "joules", "watts", "utilisation")
UNLIKE = ("clock", "meter", "position", "taken_at")
"""Parts of a checkpoint that have times."""
CASES: dict[str, dict[str, Any]] = {
    **{name: {**values, "schedule.epochs": 1} for name, values in STEPS.items()},
    "only the classifier is trained": {"model.trained": "classifier", "schedule.epochs": 1},
    "growing images": {"data.progressive.start_size": 8, "data.progressive.step": 8},
}


@pytest.fixture
def recipe(quick: Recipe) -> Recipe:
    """Two epochs of two steps, in which all rates take part."""
    return quick.with_values(
        {
            "schedule.epochs": 2,
            "batch_size": 120,
            "optimizer.ema.decay": 0.9,
            "optimizer.agc.clip_factor": 0.02,
            "optimizer.weight_decay": 0.01,
        }
    )


Trained = Callable[..., dict[str, Any]]


class Process:
    """Trains trials, one after the other. ``recorders`` are those of its trials; only some have captured anything."""

    def __init__(self, folder: Path) -> None:
        self.kept, self.folder, self.trials = KeptGraphs(), folder, 0
        self.recorders: list[TapeRecorder] = []

    @property
    def captures(self) -> int:
        return sum(len(recorder.tapes) for recorder in self.recorders)

    def train(self, recipe: Recipe, until: float = math.inf, **more: Any) -> dict[str, Any]:
        """All that is known of a trial at its end: what it reports, keeps and returns."""
        self.trials += 1
        context = Trial(self.kept, more.pop("checkpoints", self.folder / str(self.trials)), until, **more)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "TrainStep", functools.partial(TrainStep, rates_on_device=True))
            if context.device.type == "cpu":
                patch.setattr(run, "recorder_for", self._recorder)
            outcome = train(recipe, context)
        return end_of(outcome, context)

    def _recorder(self, _device: torch.device, _share: float) -> TapeRecorder:
        self.recorders.append(TapeRecorder())
        return self.recorders[-1]

    def damage(self) -> None:
        """Overwrites all memory that is kept."""
        assert self.kept._kept
        for tensor in self.kept._kept.memory:
            spoil(tensor)
        for graph in self.kept._kept.captured.graphs.values():
            for tensor in (*captured._tensors(graph.batch), graph.result.loss_sum, graph.result.correct):
                spoil(tensor)


class Trial(PlainContext):
    def __init__(
        self, kept: KeptGraphs | None, checkpoints: Path, until: float, device: torch.device | None = None
    ) -> None:
        self.kept_graphs, self._until, self.reports = kept, until, list[dict[str, float]]()
        super().__init__(
            device=device or torch.device("cpu"), threads=1, checkpoints=checkpoints, on_report=self._keep
        )

    def _keep(self, metrics: Any) -> None:
        self.reports.append({name: number for name, number in metrics.items() if not name.endswith(MEASURED)})

    def progress(self, epochs: float) -> None:
        if epochs >= self._until:
            self.stop()


class Breaking(Trial):
    """Fails in its second epoch."""

    def progress(self, epochs: float) -> None:
        if epochs > 1:
            raise torch.OutOfMemoryError("as of a GPU")


def spoil(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.fill_(math.nan if tensor.is_floating_point() else 77)


def end_of(outcome: Outcome, context: Trial) -> dict[str, Any]:
    assert isinstance(context.store, CheckpointStore)
    newest = next(iter(context.store.entries()), None)
    state = context.store.load(newest) if newest else {}
    found = {
        "ending": (outcome.state, outcome.epochs, outcome.reason),
        "reports": context.reports,
        "clipping": context.clipping,
        "correct": context.correct_images,
        "model": outcome.model.state_dict(),
        "average": outcome.average.state_dict() if outcome.average else None,
        "generator": torch.get_rng_state(),
        "checkpoint": {name: part for name, part in state.items() if name not in UNLIKE},
    }
    # The memory of the network is the next trial's.
    return {
        str(path): leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf
        for path, leaf in tree_flatten_with_path(found)[0]
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for place, leaf in expected.items():
        if isinstance(leaf, Tensor):
            torch.testing.assert_close(found[place], leaf, rtol=0, atol=0, equal_nan=True, msg=place)
        else:
            assert repr(found[place]) == repr(leaf), place  # nan is nan


def other(recipe: Recipe) -> Recipe:
    """With other numbers wherever the next trial may have others."""
    values = recipe.to_values()
    numbers = {name: value for name, value in OTHER_RATES.items() if values[name] not in (None, 0)}
    return recipe.with_values(numbers | {"seed": 1, "schedule.shape": "staircase"})


@pytest.fixture(autouse=True)
def _one_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "STEPS_BEFORE_CAPTURE", 1)


@pytest.fixture
def used(tmp_path: Path) -> Process:
    return Process(tmp_path / "used")


@pytest.fixture
def new(tmp_path: Path) -> Trained:
    """Trains each trial in a process of its own."""
    numbers = iter(range(100))

    def trained(recipe: Recipe, **more: Any) -> dict[str, Any]:
        return Process(tmp_path / f"new {next(numbers)}").train(recipe, **more)

    return trained


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_next_trial_captures_nothing_and_takes_over_nothing(
    values: dict[str, Any], recipe: Recipe, used: Process, new: Trained
) -> None:
    """With all numbers changed, those of the device and those of the schedule, and another seed."""
    first = recipe.with_values(values)
    second = other(first)
    used.train(first)
    captures = used.captures
    used.damage()
    assert_same(used.train(second), new(second))
    assert used.captures == captures


def test_however_a_trial_ends_the_next_one_knows_nothing_of_it(
    recipe: Recipe, used: Process, new: Trained, tmp_path: Path
) -> None:
    """One that became nan; one that is stopped within an epoch, and resumed in a process that trained another since."""
    diverging = recipe.with_values({"schedule.base_learning_rate": 1e6, "schedule.warmup_epochs": 0.0})
    diverged = used.train(diverging)
    assert_same(diverged, new(diverging))
    assert "diverged" in diverged.values()
    assert_same(used.train(recipe), new(recipe))

    stopped = used.train(recipe, until=1.5, checkpoints=tmp_path / "stopped")
    assert_same(stopped, new(recipe, until=1.5, checkpoints=tmp_path / "stopped in a new one"))
    used.train(diverging)
    used.damage()
    resumed = used.train(recipe, checkpoints=tmp_path / "stopped")
    assert_same(resumed, new(recipe, checkpoints=tmp_path / "stopped in a new one"))
    assert used.captures == 1


def test_a_trial_that_fails_leaves_nothing(
    recipe: Recipe, used: Process, new: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    used.train(recipe)
    with monkeypatch.context() as patch:
        patch.setattr(Trial, "progress", Breaking.progress)
        with pytest.raises(torch.OutOfMemoryError):
            used.train(other(recipe))
    assert used.kept._kept is None
    assert_same(used.train(recipe), new(recipe))
    assert used.captures == 2


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.agc.clip_factor": None},
        {"batch_size": 60},
        {"memory_format": "channels_last"},
        {"model.overrides.width": [16, 16, 32, 48]},
        {"model.name": "nfnet_nano"},
    ],
    ids=str,
)
def test_another_structure_is_captured(
    values: dict[str, Any], recipe: Recipe, used: Process, new: Trained
) -> None:
    first = recipe.with_values({"schedule.epochs": 1})
    second = first.with_values(values)
    used.train(first)
    assert_same(used.train(second), new(second))
    assert all(recorder.tapes for recorder in used.recorders)
    assert len(used.recorders) == 2


def test_what_is_in_the_code_of_a_network_is_captured(recipe: Recipe, used: Process, new: Trained) -> None:
    """As the drop rates of timm's networks are. Their running statistics and draws are those of a new process."""
    first = recipe.with_values(
        {**BASELINE, "model.overrides.group_width": None, "optimizer.name": "rmsprop", "schedule.epochs": 1}
    )
    faster = first.with_values({"schedule.base_learning_rate": 0.2, "seed": 2})
    used.train(first)
    used.damage()
    assert_same(used.train(faster), new(faster))
    assert used.captures == 1
    dropped = first.with_values({"model.dropout": 0.3})
    assert_same(used.train(dropped), new(dropped))
    assert used.captures == 2


def test_a_state_from_a_checkpoint_of_another_order_is_kept_in_the_same_one(
    recipe: Recipe, used: Process, new: Trained, tmp_path: Path
) -> None:
    """As one of a CPU, where timm's optimiser makes its state in an order of its own."""
    first = recipe.with_values({"optimizer.name": "rmsprop"})
    new(first, until=1.5, checkpoints=tmp_path / "a")
    store = CheckpointStore(tmp_path / "a")
    entry = store.entries()[0]
    state = dict(store.load(entry))
    moments = state["step"]["optimizer"]["state"]
    state["step"]["optimizer"]["state"] = {
        number: dict(reversed(moment.items())) for number, moment in reversed(moments.items())
    }
    store.save(state, step=entry.step + 1, epoch=entry.epoch, time=0.0, metric=None)
    used.train(first, checkpoints=tmp_path / "a")
    used.damage()
    assert_same(used.train(other(first)), new(other(first)))
    assert used.captures == 1


def test_old_graphs_are_let_go_before_memory_is_needed(recipe: Recipe, used: Process) -> None:
    kept, recipe = used.kept, with_published_values(recipe)
    used.train(recipe)
    for same in (recipe, other(recipe), recipe.with_values({"memory_format": "auto"})):
        kept.drop_unless_for(same)
        assert kept._kept
    kept.drop_unless_for(recipe.with_values({"micro_batches": 2}))
    assert kept._kept is None


def test_a_network_of_ones_own_leaves_nothing(recipe: Recipe) -> None:
    """What it may have besides parameters and buffers would be the next trial's."""
    kept = KeptGraphs()
    for name, is_kept in (("nfnet_pico", True), ("my_net:build", False)):
        own = recipe.with_values(
            {"model.name": name, "model.overrides.width": None, "model.overrides.depth": None}
        )
        kept.keep(own, [], "graphs", reads_drop_rates=False)
        assert (kept._kept is not None) == is_kept


def test_a_cohort_leaves_nothing(recipe: Recipe, tmp_path: Path) -> None:
    kept, recipe = KeptGraphs(), recipe.with_values({"schedule.epochs": 1})
    with pretended_gpu() as gpu:
        lanes = [recipe, recipe.with_values({"optimizer.agc.clip_factor": 0.05})]
        contexts = [Trial(kept, tmp_path / str(lane), math.inf, DEVICE) for lane in range(2)]
        train_cohort(lanes, contexts)
    assert gpu.replays
    assert kept._kept is None


def test_on_a_gpu_the_weights_are_those_of_the_cpu(recipe: Recipe, used: Process, new: Trained) -> None:
    """Also where a second trial replays what the first one has captured."""
    first = recipe.with_values({"schedule.epochs": 1})
    trials = (first, other(first))
    expected = [new(one) for one in trials]
    with pretended_gpu() as gpu:
        found = [used.train(one, device=DEVICE) for one in trials]
    assert (gpu.captures, gpu.replays) == (1, 4)
    for mine, theirs in zip(found, expected, strict=True):
        weights = [place for place in theirs if "'model'" in place or "'average'" in place]
        assert_same({place: mine[place] for place in weights}, {place: theirs[place] for place in weights})


def test_every_number_on_the_device_is_tried() -> None:
    """By ``test_rates.py``, which compares the operators of steps with other numbers; and by the trials here."""
    assert set(NUMBERS) == {
        name for name in OTHER_RATES if name != "seed" and not name.startswith("schedule.")
    }


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.agc.clip_factor": None},
        {"optimizer.ema.decay": None},
        {"optimizer.momentum": 0.0},
        {"optimizer.weight_decay": 0.0},
        {"optimizer.sam.rho": 0.1},
        {"optimizer.sam.esam_weight_share": 1.0},
        {"loss.label_smoothing": 0.0},
        {"model.dropout": 0.0},
        {"model.stochastic_depth": 0.0},
        {"micro_batches": 2},
        {"capture": "never"},
        {"grouped_convolutions": "sliced"},
    ],
    ids=str,
)
def test_what_a_step_leaves_out_is_a_part_of_its_structure(values: dict[str, Any], recipe: Recipe) -> None:
    structure = structure_of(recipe, reads_drop_rates=True)
    assert structure_of(recipe.with_values(values), reads_drop_rates=True) != structure
    assert structure_of(other(recipe), reads_drop_rates=True) == structure
    assert structure_of(other(recipe), reads_drop_rates=False) != structure
