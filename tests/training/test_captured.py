"""Steps that are captured and replayed: the bits of steps that are not, the same memory throughout, and the way back.

No GPU takes part. A tape (``tape.py``) does on a CPU what a CUDA graph does; the same comparison with real graphs is
``python -m benchmarks.gpu --part correctness``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.contexts import TuneContext
from nfnet_ray.cluster.messages.configs import worker_config
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import create_model
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study
from nfnet_ray.training import PlainContext, captured, run, train
from nfnet_ray.training import step as step_module
from nfnet_ray.training.agreement import EpochSums
from nfnet_ray.training.captured import CapturedStep, Recorder
from nfnet_ray.training.context import Context
from nfnet_ray.training.step import TrainStep
from tests.training import replicas
from tests.training.tape import Tape, TapeRecorder
from tests.training.test_rates import CASES, STEPS, WORKER, recipe_of

BASELINE = {
    "model.name": "test_efficientnet",
    "model.overrides.width": None,
    "model.overrides.depth": None,
    "model.overrides.se_ratio": None,
}


@pytest.fixture(autouse=True)
def one_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's libraries need more; a tape does not."""
    monkeypatch.setattr(captured, "STEPS_BEFORE_CAPTURE", 1)


def step_of(
    recipe: Recipe, recorder: Recorder | None, worker: Context = WORKER
) -> tuple[CapturedStep, TrainStep, EpochSums]:
    if recipe.model.name == "test_efficientnet":
        torch.manual_seed(0)
        model = create_model(recipe.model.name, replicas.CLASSES, dropout=0.3, stochastic_depth=0.3).train()
    else:
        model = replicas.network(recipe)
    step = TrainStep(model, recipe, worker, STEPS, rates_on_device=True)
    sums = EpochSums(worker)
    torch.manual_seed(1)
    return CapturedStep(step, sums, recipe, worker, recorder), step, sums


def do_steps(captured_step: CapturedStep, first: int, last: int) -> None:
    for number in range(first, last):
        batch = replicas.global_batch(number)
        if not captured_step.is_ready_for(batch):
            captured_step.prepare(batch)
        assert captured_step.is_ready_for(batch)
        captured_step(batch)


def everything(step: TrainStep, sums: EpochSums) -> list[Tensor]:
    return [tensor.clone() for tensor in (*step.tensors(), *sums.tensors())]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("values", "graphs"),
    [(values, 2 if name in ("LookSAM", "without AGC") else 1) for name, values in CASES.items()]
    + [(BASELINE, 1)],
    ids=[*CASES, "a network that draws from torch's generator"],
)
def test_replayed_steps_are_the_steps_themselves(
    values: dict[str, Any], graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, with a warm-up and a cosine, dropout, stochastic depth, label smoothing and a moving average."""
    monkeypatch.setattr(step_module, "STEPS_BETWEEN_NORMS", 2)
    recipe, recorder, found = recipe_of(values), TapeRecorder(), []
    for given in (None, recorder):
        captured_step, step, sums = step_of(recipe, given)
        do_steps(captured_step, 0, 3)
        found.append(everything(step, sums))
    assert_same(found[1], found[0])
    assert step.number == 3
    assert len(recorder.tapes) == graphs
    assert captured_step.form == "one CUDA graph"
    assert captured_step.peak_bytes == 1000.0 * (1 + graphs)


def test_to_prepare_a_step_changes_nothing() -> None:
    captured_step, step, sums = step_of(recipe_of(BASELINE), TapeRecorder())
    do_steps(captured_step, 0, 1)
    before, draws = everything(step, sums), torch.get_rng_state()
    captured_step.prepare(replicas.global_batch(5).part(slice(0, 8)))
    assert_same(everything(step, sums), before)
    assert torch.equal(torch.get_rng_state(), draws)
    assert step.number == 1


@pytest.mark.parametrize("name", ["AGC", "LookSAM", "RMSProp"])
def test_a_loaded_state_is_what_replayed_steps_go_on_from(name: str) -> None:
    """Into the memory that the graph has: an optimiser's own load_state_dict would put other tensors in its place."""
    captured_step, step, sums = step_of(recipe_of(CASES[name]), TapeRecorder())
    do_steps(captured_step, 0, 1)
    places = [tensor.data_ptr() for tensor in step.tensors()]
    fresh = copy.deepcopy(TrainStep(step._model, recipe_of(CASES[name]), WORKER, STEPS).state_dict())
    kept = copy.deepcopy((step._model.state_dict(), step.state_dict(), sums.state_dict()))
    ended = []
    for _ in range(2):
        do_steps(captured_step, step.number, STEPS)
        ended.append(everything(step, sums))
        assert [tensor.data_ptr() for tensor in step.tensors()] == places
        step._model.load_state_dict(kept[0])
        step.load_state_dict(kept[1])
        sums.start_epoch()
        sums.load_state_dicts([kept[2]], rank=0, batch_size=replicas.BATCH)
    assert_same(ended[1], ended[0])
    # A checkpoint of before the first step has no momentum and no direction.
    step.load_state_dict(fresh)
    assert [tensor.data_ptr() for tensor in step.tensors()] == places
    for state in step.optimizer.state.values():
        assert not state["momentum_buffer"].any()
    assert not any(part.any() for part in step._gradient.look_direction.state_dict()["direction"])


def test_a_batch_of_another_shape_has_a_graph_of_its_own() -> None:
    """As the last one of an epoch, or one of larger images; the first graph still holds then."""
    recipe, found = recipe_of({}), []
    whole, less = replicas.global_batch(0), replicas.global_batch(1).part(slice(0, 12))
    larger = dataclasses.replace(whole, images=whole.images.repeat(1, 2, 2, 1))
    plain = TrainBatch(whole.images, whole.labels, whole.indices, whole.positions, whole.keys)
    for recorder in (None, TapeRecorder()):
        captured_step, step, sums = step_of(recipe, recorder)
        for batch in (whole, less, larger, plain, whole, less):
            if not captured_step.is_ready_for(batch):
                captured_step.prepare(batch)
            captured_step(batch)
        found.append(everything(step, sums))
    assert isinstance(recorder, TapeRecorder)
    assert len(recorder.tapes) == 4
    assert_same(found[1], found[0])


class WithPools(TapeRecorder):
    """As torch, it takes a pool again only as long as one of its graphs is there."""

    def __init__(self) -> None:
        super().__init__()
        self._of_pool = weakref.WeakSet[Tape]()
        self._is_used = False

    def record(self, act: Callable[[], None]) -> Callable[[], None]:
        assert self._of_pool or not self._is_used, "the pool is gone"
        replay = super().record(act)
        self._of_pool.add(self.tapes.pop())
        self._is_used = True
        return replay

    def begin_anew(self) -> None:
        self._of_pool.clear()
        self._is_used = False


def test_old_graphs_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them: what a graph had on its stream is gone with it, and the others were captured on the same one."""
    monkeypatch.setattr(captured, "MOST_GRAPHS", 2)
    captured_step, _, _ = step_of(recipe_of({}), WithPools())
    whole = replicas.global_batch(0)
    batches = [whole, whole.part(slice(0, 12)), whole.part(slice(0, 8))]
    for batch in batches:
        captured_step.prepare(batch)
    assert captured_step.refusal is None
    assert [captured_step.is_ready_for(batch) for batch in batches] == [False, False, True]


def test_what_is_replayed_reads_its_batch_and_its_rates() -> None:
    """A result is overwritten by the next step, and not kept from the first."""
    captured_step, _, _ = step_of(recipe_of({}), TapeRecorder())
    batches = [replicas.global_batch(number) for number in range(3)]
    captured_step.prepare(batches[0])
    results = [captured_step(batch) for batch in batches]
    assert results[0].loss_sum is results[2].loss_sum
    assert float(results[2].step_of_epoch) == 3


@pytest.mark.parametrize(
    "values", [{}, CASES["SAM"], CASES["LookSAM"], BASELINE], ids=["AGC", "SAM", "LookSAM", "timm's"]
)
def test_a_step_leaves_nothing_of_its_backward_pass(values: dict[str, Any]) -> None:
    """The nodes that add up gradients remember their stream: one of an eager step would break a capture."""
    captured_step, step, _ = step_of(recipe_of(values), None)
    trained = list(step._model.parameters())
    gc.collect()
    gc.disable()
    try:
        for number in range(2):
            nodes = [get_gradient_edge(parameter).node for parameter in trained]
            for node in nodes:
                node.metadata["is of this step"] = True
            captured_step(replicas.global_batch(number))
            del node, nodes
            assert not any(get_gradient_edge(parameter).node.metadata for parameter in trained)
    finally:
        gc.enable()


class Failing(TapeRecorder):
    """A capture that fails after it has done its work."""

    def record(self, act: Callable[[], None]) -> Callable[[], None]:
        super().record(act)
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def test_a_capture_that_fails_leaves_everything_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    recipe, found = recipe_of(CASES["SAM"]), []
    with caplog.at_level(logging.INFO):
        for recorder in (None, Failing()):
            captured_step, step, sums = step_of(recipe, recorder)
            before = everything(step, sums)
            captured_step.prepare(replicas.global_batch(0))
            assert_same(everything(step, sums), before)
            do_steps(captured_step, 0, 2)
            found.append(everything(step, sums))
    assert_same(found[1], found[0])
    why = "RuntimeError: operation not permitted when stream is capturing"
    assert captured_step.form == f"kernel by kernel: {why}"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", f"steps are not captured as a CUDA graph, but done kernel by kernel: {why}")
    ]


def test_a_capture_that_cannot_be_ended_leaves_the_device_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.11 does where something in it is not allowed: its stream and its generator are left in the middle."""
    current, calls = ["default"], list[str]()

    class Stream(contextlib.AbstractContextManager[None]):
        device_index = 0

        def __init__(self, _stream: object) -> None:
            pass

        def __enter__(self) -> None:
            self.before = current[0]
            current[0] = "of the captures"

        def __exit__(self, *_: object) -> None:
            current[0] = self.before

    class Graph(Stream):
        def __init__(self, _graph: object, **_options: object) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    class Generator:
        state = "in a graph"

        def clone_state(self) -> str:
            return "as before"

        def graphsafe_set_state(self, state: str) -> None:
            self.state = state

    generator = Generator()
    for name, fake in {
        "Stream": Stream,
        "stream": Stream,
        "graph": Graph,
        "CUDAGraph": object,
        "graph_pool_handle": lambda: (0, 1),
        "default_generators": (generator,),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *given, name=name: calls.append(f"{name}{given}"))

    def act() -> None:
        assert current == ["of the captures"]
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured.CudaRecorder(torch.device("cuda")).record(act)
    assert current == ["default"]
    assert calls == ["_cuda_endAllocateToPool(0, (0, 1))", "_cuda_releasePool(0, (0, 1))"]
    assert generator.state == "as before"


@pytest.mark.parametrize("fails", [False, True])
def test_what_follows_a_rehearsal_waits_for_it(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it fails, too: the weights that are put back then must not be overwritten by what it has begun."""
    calls: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "of the captures" if isinstance(name, torch.device) else name

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"the stream {self.name} waits for that {other.name}")

    for name, fake in {
        "Stream": Stream,
        "stream": lambda _stream: contextlib.nullcontext(),
        "current_stream": lambda _device: Stream("of the training"),
        "graph_pool_handle": lambda: (0, 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def act() -> None:
        calls.append("step")
        if fails:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError) if fails else contextlib.nullcontext():
        captured.CudaRecorder(torch.device("cuda")).rehearse(act)
    assert calls == [
        "the stream of the captures waits for that of the training",
        "step",
        "the stream of the training waits for that of the captures",
    ]


@pytest.mark.parametrize(("gpus", "fits"), [(1.0, True), (0.5, True), (0.25, False), (0.0, True)])
def test_the_graphs_of_workers_that_share_a_gpu_take_their_part_of_it(
    gpus: float, fits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of four workers on a GPU each would otherwise keep half of it."""
    (trial,) = Study("s", "?", Recipe(), {}).trials()
    config = worker_config(trial, "0", tmp_path, WorkerResources(1, 1, gpus))
    context = TuneContext(config)
    for name, fake in {
        "Stream": lambda _device: None,
        "stream": contextlib.nullcontext,
        "graph": lambda _graph, **_options: contextlib.nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=None),
        "graph_pool_handle": lambda: (0, 1),
        "memory_reserved": lambda _device: 18 * 2**30,
        "get_device_properties": lambda _device: SimpleNamespace(total_memory=80 * 2**30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    recorder = captured.recorder_for(torch.device("cuda"), context.gpu_share)
    assert recorder is not None
    with contextlib.nullcontext() if fits else pytest.raises(MemoryError, match=r"18\.0 of 20\.0 GiB"):
        recorder.record(lambda: None)


@pytest.mark.parametrize(
    ("values", "workers", "why"),
    [
        ({"capture": "never"}, 1, "capture=never"),
        ({}, 2, "2 workers exchange gradients within a step"),
        ({**BASELINE, "optimizer.sam.rho": 0.1}, 1, "SAM repeats what the network draws"),
    ],
)
def test_what_cannot_be_captured_is_not_tried(
    values: dict[str, Any], workers: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(values)
    step = step_of(recipe, None)[1]
    worker = replicas.Worker(0, workers, workers)
    with caplog.at_level(logging.INFO):
        captured_step = CapturedStep(step, EpochSums(WORKER), recipe, worker, TapeRecorder())
    [record] = caplog.records
    assert record.message.startswith(
        f"steps are not captured as a CUDA graph, but done kernel by kernel: {why}"
    )
    assert captured_step.form is not None
    assert captured_step.form.startswith(f"kernel by kernel: {why}")
    assert captured_step.is_ready_for(replicas.global_batch(0))  # a CPU needs no warm-up


def test_a_cpu_captures_nothing() -> None:
    assert captured.recorder_for(torch.device("cpu")) is None
    captured_step, _, _ = step_of(recipe_of({}), None)
    assert captured_step.form is None


class Stopping(PlainContext):
    """Stops in the middle of the second epoch."""

    def progress(self, epochs: float) -> None:
        if epochs > 1.5:
            self.stop()


def test_a_training_of_replayed_steps_is_the_same_training(
    quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Through epochs, growing images, evaluations, a stop and a checkpoint."""
    recipe = quick.with_values(
        {
            "data.progressive.start_size": 8,
            "data.progressive.step": 4,
            "optimizer.ema.decay": 0.9,
        }
    )
    monkeypatch.setattr(run, "TrainStep", functools.partial(TrainStep, rates_on_device=True))
    settings: dict[str, Any] = {"device": torch.device("cpu"), "threads": 1}
    reports: list[list[dict[str, float]]] = [[], []]
    expected = train(recipe, PlainContext(**settings, on_report=lambda m: reports[0].append(dict(m))))

    recorders: list[TapeRecorder] = []

    def tapes(_device: torch.device, _share: float) -> TapeRecorder:
        recorders.append(TapeRecorder())
        return recorders[-1]

    monkeypatch.setattr(run, "recorder_for", tapes)
    context = Stopping(**settings, checkpoints=tmp_path, on_report=lambda m: reports[1].append(dict(m)))
    assert train(recipe, context).state == "stopped"
    context = PlainContext(**settings, checkpoints=tmp_path, on_report=lambda m: reports[1].append(dict(m)))
    with caplog.at_level(logging.INFO):
        outcome = train(recipe, context)

    # Of 8, 12 and 16 pixels: two until the stop, and two after it.
    assert [len(recorder.tapes) for recorder in recorders] == [2, 2]
    for mine, other in ((outcome.model, expected.model), (outcome.average, expected.average)):
        assert mine is not None
        assert other is not None
        assert_same(list(mine.state_dict().values()), list(other.state_dict().values()))
    last, same = reports[1][-1], reports[0][-1]
    for name in ("train_loss", "train_top1", "agc_clipped_fraction", "validation_top1", "learning_rate"):
        assert last[name] == same[name]
    assert "kernel by kernel" not in caplog.text
    assert np.isfinite(last["train_loss"])
