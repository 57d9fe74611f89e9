"""What train_cohort(recipes, contexts) promises: of each lane what train(recipe, context) gives, and its files.

In float64, where rounding is no excuse. 7 s on one core of an Intel Xeon.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import Outcome, PlainContext, train
from nfnet_ray.training.cohort import loop, train_cohort
from nfnet_ray.training.cohort.clock import LaneClock, LaneEnergy, SharedClock
from nfnet_ray.training.cohort.step import CohortStep, Lane, LaneRates, LaneResults
from nfnet_ray.training.cohort.system import SharedSystemMeter
from nfnet_ray.training.measurement.clock import PHASES, Clock

EPOCHS = 2
OF_THE_MACHINE = ("_seconds", "_per_second", "_bytes", "_watts", "_joules", "_utilisation")


class Watched(PlainContext):
    """Keeps what is reported; asks for a stop after ``stops_after`` epochs, a fraction included."""

    def __init__(self, checkpoints: Path | None = None, stops_after: float | None = None) -> None:
        super().__init__(device=torch.device("cpu"), threads=1, checkpoints=checkpoints)
        self.epochs: list[dict[str, float]] = []
        self.texts: list[dict[str, str]] = []
        self._stops_after = stops_after

    def report(self, metrics: Mapping[str, float], texts: Mapping[str, str]) -> None:
        super().report(metrics, texts)
        self.epochs.append(dict(metrics))
        self.texts.append(dict(texts))

    def progress(self, epochs: float) -> None:
        if self._stops_after and epochs >= self._stops_after:
            self.stop()


@pytest.fixture(scope="module")
def recipes(quick: Recipe) -> list[Recipe]:
    """Three lanes that are different in much, and the last of which diverges."""
    base = quick.with_values(
        {
            "schedule.epochs": EPOCHS,
            "precision": "float64",
            "memory_format": "auto",
            "batch_size": 20,
            "data.train_share": 0.35,
            "signal_epochs": 2,
        }
    )
    return [
        base.with_values({"optimizer.agc.clip_factor": 0.02, "optimizer.ema.decay": 0.9}),
        base.with_values(
            {
                "optimizer.agc.clip_factor": 0.1,
                "optimizer.ema.decay": None,
                "model.dropout": 0.3,
                "model.stochastic_depth": 0.0,
                "optimizer.momentum": 0.8,
                "loss.label_smoothing": 0.2,
            }
        ),
        base.with_values({"optimizer.agc.clip_factor": None, "schedule.base_learning_rate": 1e6}),
    ]


Ended = tuple[Outcome, Watched, list[dict[str, Any]]]


def ended(outcome: Outcome, context: Watched) -> Ended:
    """The outcome, what was reported, and the states of all checkpoints, newest first."""
    assert context.store is not None
    return outcome, context, [dict(context.store.load(entry)) for entry in context.store.entries()]


@pytest.fixture(scope="module")
def alone(recipes: list[Recipe], tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    folder = tmp_path_factory.mktemp("alone")
    contexts = [Watched(folder / str(number)) for number in range(3)]
    return [ended(train(recipe, context), context) for recipe, context in zip(recipes, contexts, strict=True)]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {key: leaf for one, item in value.items() for key, leaf in flat(item, f"{name}/{one}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def kept(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint has, but for times, what was reported, and the form, which is one of cohorts or of trials."""
    others = (
        "/clock",
        "/form",
        "/taken_at",
        "/meter",
        "/position/metrics",
        "/position/texts",
        "/position/train_seconds",
    )
    return {name: leaf for name, leaf in flat(state).items() if not name.startswith(others)}


def learned(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith(OF_THE_MACHINE)}


def assert_same(found: Ended, expected: Ended) -> None:
    """Outcome, metrics, correct images, clipping records and last checkpoint, but for seconds and the last bits."""
    (outcome, context, states), (other, other_context, other_states) = found, expected
    assert (outcome.state, outcome.epochs, outcome.reason) == (other.state, other.epochs, other.reason)
    assert (outcome.average is None) == (other.average is None)
    assert len(context.epochs) == len(other_context.epochs)
    for metrics, other_metrics in zip(context.epochs, other_context.epochs, strict=True):
        assert learned(metrics) == pytest.approx(learned(other_metrics), rel=1e-9)
    for texts, other_texts in list(zip(context.texts, other_context.texts, strict=True))[-1:]:
        for name in ("correct_images", "clipping"):
            assert texts[name] == other_texts[name]
    assert len(states) == len(other_states)
    for state, other_state in list(zip(states, other_states, strict=True))[:1]:
        leaves, other_leaves = kept(state), kept(other_state)
        assert leaves.keys() == other_leaves.keys()
        for name, leaf in other_leaves.items():
            if isinstance(leaf, torch.Tensor):
                torch.testing.assert_close(leaves[name], leaf, rtol=1e-9, atol=1e-11, msg=name)
            else:
                assert leaves[name] == leaf, name


def test_a_cohort_gives_of_each_lane_what_training_it_alone_gives(
    recipes: list[Recipe], alone: list[Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, in_memory = weakref.WeakSet[CohortStep](), set[int]()

    class Counted(CohortStep):
        def __call__(self, batch: TrainBatch) -> LaneResults:
            steps.add(self)
            in_memory.add(len(steps))
            return super().__call__(batch)

    class Measuring(SharedSystemMeter):
        def _of_node(self) -> dict[str, float]:
            measured.append(super()._of_node())
            return measured[-1]

    measured: list[dict[str, float]] = []
    monkeypatch.setattr(loop, "CohortStep", Counted)
    monkeypatch.setattr(loop, "SharedSystemMeter", Measuring)
    contexts = [Watched(tmp_path / str(number)) for number in range(3)]
    start = time.perf_counter()
    outcomes = train_cohort(recipes, contexts)
    passed = time.perf_counter() - start
    found = [ended(outcome, context) for outcome, context in zip(outcomes, contexts, strict=True)]
    assert [outcome.state for outcome in outcomes] == ["finished", "finished", "diverged"]
    # With the dead lane the memory of its cohort has gone, on a GPU that of a captured step.
    assert in_memory == {1}
    for one, other in zip(found, alone, strict=True):
        assert_same(one, other)
    assert len(measured) == EPOCHS  # once for all lanes
    assert contexts[0].texts[-1]["system"] == contexts[1].texts[-1]["system"]
    conditions = [json.loads(context.texts[0]["conditions"]) for context in contexts[:2]]
    assert [told["lanes"] for told in conditions] == [3, 3]
    # The layout is open, and on a CPU a single trial is channels_last.
    assert [told["memory_format"] for told in conditions] == ["contiguous", "contiguous"]
    # The seconds of all lanes together are those that passed, but for what comes after the last report.
    of_lanes = [sum(outcome.metrics[f"{phase}_seconds"] for phase in PHASES) for outcome in outcomes]
    assert 0.5 * passed < sum(of_lanes) <= passed
    assert of_lanes[0] == pytest.approx(of_lanes[1], rel=0.1)
    for outcome in outcomes:
        for parameter in outcome.model.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.nbytes


def test_lanes_pause_at_a_rung_and_go_on_in_another_cohort_and_alone(
    recipes: list[Recipe], alone: list[Ended], tmp_path: Path
) -> None:
    def contexts() -> list[Watched]:
        return [Watched(tmp_path / str(number)) for number in range(2)]

    paused = contexts()
    outcomes = train_cohort(recipes[:2], paused, until_epoch=1)
    assert [(outcome.state, outcome.epochs) for outcome in outcomes] == [("paused", 1), ("paused", 1)]
    resumed = contexts()
    outcomes = [*train_cohort(recipes[:1], resumed[:1]), train(recipes[1], resumed[1])]
    for outcome, context, other in zip(outcomes, resumed, alone, strict=False):
        assert outcome.metrics["paused_seconds"] > 0
        assert_same(ended(outcome, context), other)


def test_when_one_lane_is_asked_to_stop_all_do_and_go_on_from_wherever_each_is(
    recipes: list[Recipe], alone: list[Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = [Watched(tmp_path / str(number), stops_after=0.5 if number else None) for number in range(2)]
    outcomes = train_cohort(recipes[:2], stopped)
    assert [(outcome.state, outcome.epochs) for outcome in outcomes] == [("stopped", 0), ("stopped", 0)]
    steps = [context.store.entries()[0].step for context in stopped if context.store]
    assert steps[0] == steps[1] > 0
    train(recipes[1], Watched(tmp_path / "1"), until_epoch=1)
    # To stop means both, also where they are at two places.
    stopped = [Watched(tmp_path / "0", stops_after=0.1), Watched(tmp_path / "1")]
    outcomes = train_cohort(recipes[:2], stopped)
    assert [(outcome.state, outcome.epochs) for outcome in outcomes] == [("stopped", 0), ("stopped", 1)]
    resumed = [Watched(tmp_path / str(number)) for number in range(2)]
    sizes: list[int] = []

    class Noted(CohortStep):
        def __init__(self, lanes: Sequence[Lane]) -> None:
            super().__init__(lanes)
            sizes.append(self.lanes)

    monkeypatch.setattr(loop, "CohortStep", Noted)
    outcomes = train_cohort(recipes[:2], resumed)
    assert sizes == [1, 2]  # the one that is behind catches up
    for outcome, context, other in zip(outcomes, resumed, alone, strict=False):
        assert_same(ended(outcome, context), other)


def test_lanes_that_do_not_fit_the_memory_are_trained_in_halves_from_their_checkpoints(
    recipes: list[Recipe], alone: list[Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts, said = [Watched(tmp_path / str(number)) for number in range(2)], list[str]()

    class TooLarge(CohortStep):
        def apply(self, batch: TrainBatch, rates: LaneRates) -> LaneResults:
            if self.lanes == 2 and contexts[0].epochs:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().apply(batch, rates)

    monkeypatch.setattr(loop, "CohortStep", TooLarge)
    start = time.perf_counter()
    outcomes = train_cohort(recipes[:2], contexts, say=said.append)
    passed = time.perf_counter() - start
    assert said == [
        "2 trials do not fit the memory as one cohort: they are trained as two, of 1 and 1, one after the other"
    ]
    for outcome, context, other in zip(outcomes, contexts, alone, strict=False):
        del context.epochs[1], context.texts[1]  # of the first epoch again, as whenever a run resumes
        assert_same(ended(outcome, context), other)
    counted = [phase for phase in PHASES if phase != "lost"]
    assert sum(outcome.metrics[f"{phase}_seconds"] for outcome in outcomes for phase in counted) <= passed


def test_halves_that_do_not_fit_either_are_halved_and_a_trial_that_does_not_fit_alone_fails(
    recipes: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 1

    def train_some(_program: object, trials: Sequence[loop._Trial]) -> list[Any]:
        if len(trials) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return [trial.recipe.optimizer.momentum for trial in trials]

    monkeypatch.setattr(loop._Program, "train", train_some)
    momenta = [0.1, 0.2, 0.3, 0.4, 0.5]
    lanes = [recipes[0].with_values({"optimizer.momentum": momentum}) for momentum in momenta]
    said: list[str] = []
    assert train_cohort(lanes, [Watched()] * 5, say=said.append) == momenta
    assert [line.split(",")[1] for line in said] == [
        " of 3 and 2",
        " of 2 and 1",
        " of 1 and 1",
        " of 1 and 1",
    ]
    most = 0
    with pytest.raises(RuntimeError, match="allocate memory"):
        train_cohort(lanes, [Watched()] * 5, say=said.append)


def test_seconds_and_joules_are_divided_among_the_lanes_of_the_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those before the first lanes are divided among these; what passes while there are none belongs to nobody."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    shared = SharedClock(Clock(), energy=SimpleNamespace(joules=lambda: 50 * now[0]))
    one, two = LaneClock(shared), LaneClock(shared)
    now[0] = 104.0
    shared.divide_among([one, two])
    one.enter("train")
    now[0] = 110.0
    shared.divide_among([one])
    now[0] = 113.0
    shared.divide_among([])
    now[0] = 200.0
    shared.divide_among([two])
    two.enter("eval")
    now[0] = 201.0
    found = [{phase: lane.seconds(phase) for phase in ("startup", "train", "eval")} for lane in (one, two)]
    assert found == [{"startup": 2.0, "train": 6.0, "eval": 0.0}, {"startup": 2.0, "train": 3.0, "eval": 1.0}]
    assert LaneEnergy(shared, one).joules() == 50 * (2 + 6)
    assert LaneEnergy(shared, two).joules() == 50 * (2 + 3 + 1)


def test_recipes_that_share_no_batches_are_refused(recipes: list[Recipe]) -> None:
    other = recipes[1].with_values({"batch_size": 24})
    with pytest.raises(UserError, match="batch_size = 20 and 24 cannot be trained in one cohort"):
        train_cohort([recipes[0], other], [Watched(), Watched()])
