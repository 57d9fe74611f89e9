"""The steps of a run, captured as CUDA graphs where that is possible.

On a GPU most of the time of a small network's step is spent in Python, which launches one kernel after the other. A
CUDA graph holds all kernels of a step with their addresses, and the GPU runs them without Python: forward and backward
pass, SAM's two passes, AGC and its counts, weight decay, momentum, the moving average, and the sums of the epoch. The
results are those of the captured step, bit for bit. This requires three things:

* A graph reads and writes the memory that it was captured with. So batches are copied into static tensors, rates are
  scalars on the device (``optim/rates.py``), and every tensor that a step changes keeps its address, also when a
  checkpoint is loaded.
* A graph runs no Python code. So steps may differ only in the shape of the batch and in :attr:`TrainStep.kind`, and
  each combination has its own graph: LookSAM has two, and progressive image sizes have one for each size.
* The graphs share one memory pool, and each overwrites the memory of the others. So no tensor in it may outlive a step.

The next run of the process may replay the same graphs (``form/kept.py``).

If a step cannot be captured, or if capturing fails, steps run kernel by kernel, and the log says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.context import Context
from nfnet_ray.training.determinism import generators, set_generators

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)

STEPS_BEFORE_CAPTURE = 3
"""In the first steps libraries choose their algorithms and allocate workspaces (torch's notes on CUDA graphs)."""
MOST_GRAPHS = 8
"""Each graph takes some megabytes for the arguments of its kernels, and growing images leave the graphs of earlier
sizes behind. When there would be one graph more than this, all graphs are dropped together. Dropping one is not safe:
torch before 2.15 may then free the workspaces that cuBLAS holds on the stream of the captures, to which the other
graphs still write (github.com/pytorch/pytorch/issues/193402)."""

MOST_KEPT_SHARE = 0.5
"""The largest share of a worker's GPU memory that graphs may keep (:func:`too_much_memory`). It is a judgement, and has
not been tried on a GPU."""

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Captures graphs."""

    def rehearse(self, act: Callable[[], None]) -> None:
        """Runs ``act`` once, under the conditions of the capture."""

    def record(self, act: Callable[[], None]) -> Callable[[], None]:
        """Captures ``act``. Returns a function that replays it."""

    def begin_anew(self) -> None:
        """Notes that all graphs were dropped. Later graphs share no memory with them."""

    def forget_peak(self) -> None:
        """Restarts the measurement of :meth:`peak_bytes`."""

    def peak_bytes(self) -> float:
        """The most memory that tensors have taken since :meth:`forget_peak`, in bytes."""


class CudaRecorder:
    """Captures CUDA graphs that share one memory pool.

    ``share`` is the share of the device's memory that this process may use.
    """

    def __init__(self, device: torch.device, share: float = 1.0) -> None:
        self._device, self._share = device, share
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def rehearse(self, act: Callable[[], None]) -> None:
        """Runs ``act`` on the stream of the captures, so that libraries allocate their workspaces for it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                act()
        finally:
            # Also after an error: kernels that are still running may write to weights, which are restored only then.
            current.wait_stream(self._stream)

    def record(self, act: Callable[[], None]) -> Callable[[], None]:
        """Captures ``act``, computing nothing. If that fails, raises the error of ``act``; eager steps still work."""
        graph, raised = torch.cuda.CUDAGraph(), list[Exception]()
        gc.collect()  # collecting an old graph during a capture would disturb it
        try:
            # Threads that load images, write checkpoints and read NVML continue meanwhile, in their own memory and
            # streams. The outer context restores the stream where torch does not (torch 2.11, if the capture cannot be
            # ended).
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                try:
                    act()
                except Exception as error:
                    raised.append(error)
                    raise
        except Exception:
            self._give_up()
            if raised:  # torch may have raised that the capture cannot be ended
                raise raised.pop() from None
            raise
        own = self._share * torch.cuda.get_device_properties(self._device).total_memory
        refusal = too_much_memory(torch.cuda.memory_reserved(self._device), own)
        if refusal:
            raise MemoryError(refusal)
        return graph.replay

    def begin_anew(self) -> None:
        """Takes a new pool: torch refuses one without graphs (create_or_incref_pool, CUDACachingAllocator.cpp)."""
        self._pool = torch.cuda.graph_pool_handle()

    def _give_up(self) -> None:
        """Cleans up after a capture that torch could not end: its use of the pool, and the state of the generator."""
        index = self._stream.device_index
        with contextlib.suppress(RuntimeError):  # if it was ended, it does not use the pool any more
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)
        # Otherwise: "Offset increment outside graph capture encountered unexpectedly" at the next draw.
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())

    def forget_peak(self) -> None:
        """Restarts the measurement of this process, and so also the one of its meter."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> float:
        """The most memory that tensors have taken since :meth:`forget_peak`, in bytes."""
        return float(torch.cuda.max_memory_allocated(self._device))


def too_much_memory(kept: float, own: float) -> str | None:
    """Says in a sentence that graphs keep too much of a worker's GPU memory; None if they do not.

    ``kept`` is what the graphs keep and ``own`` what the worker may use, in bytes. Evaluation cannot use the memory of
    graphs. It stores no activations, so it needs far less than a step. Networks that fill half of a GPU keep it busy
    without graphs.

    >>> too_much_memory(60 * 2**30, 80 * 2**30)
    'a graph would keep 60.0 of 80.0 GiB for itself'
    >>> too_much_memory(30 * 2**30, 80 * 2**30)
    """
    if kept <= MOST_KEPT_SHARE * own:
        return None
    return f"a graph would keep {kept / 2**30:.1f} of {own / 2**30:.1f} GiB for itself"


class Step(Protocol[R_co]):
    """A step that can be captured: a :class:`~nfnet_ray.training.step.TrainStep`, or the step of a cohort."""

    @property
    def number(self) -> int:
        """The number of steps done."""

    @number.setter
    def number(self, number: int) -> None: ...

    @property
    def kind(self) -> Hashable:
        """A key of the kernels that the next step runs: steps of one kind run the same ones."""

    @property
    def needs_warm_up(self) -> bool:
        """Whether the first step of an attempt would take longer than the others."""

    @property
    def repeats_draws(self) -> bool:
        """Whether a step rewinds torch's generator, to draw the same numbers twice."""

    def set_rates(self) -> Any:
        """Sets and returns the rates of the next step, on the device if it reads them there."""

    def apply(self, batch: TrainBatch, rates: Any) -> R_co:
        """Runs a step with these rates on the device. Apart from the rates, only :attr:`kind` differs between steps."""

    def __call__(self, batch: TrainBatch) -> R_co:
        """Does a step, kernel by kernel."""

    def warm_up(self, batch: TrainBatch) -> None:
        """Computes a gradient and discards it."""

    def forget_gradients(self) -> None:
        """Releases the memory of gradients that are kept from one step to the next."""

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that a step changes on the device, except gradients. They stay the same objects."""


class Sums(Protocol[R_contra]):
    """The sums of an epoch, to which the results of steps are added."""

    def add(self, result: R_contra) -> None:
        """Adds the result of a step."""

    def tensors(self) -> list[Tensor]:
        """The tensors of the sums. They stay the same objects."""


@dataclass
class _Graph(Generic[R]):
    batch: TrainBatch
    """The static tensors from which the graph reads its batch."""
    replay: Callable[[], None]
    result: R
    """The tensors to which the graph writes its result."""
    step: Step[R]
    """The step that was captured. It keeps other tensors alive that the graph reads, such as indices on the device."""
    peak_bytes: float
    """The most memory that the last rehearsal took, in bytes. A replay takes as much, but no counter shows it."""


@dataclass(frozen=True)
class Captured(Generic[R]):
    """The graphs of a run, and the recorder that captures more of them."""

    graphs: dict[Hashable, _Graph[R]]
    recorder: Recorder


class CapturedStep(Generic[R]):
    """Does the steps of a run, as CUDA graphs where possible, and adds their results to the epoch's ``sums``.

    Call :meth:`prepare` before the first step on a batch of a new kind or shape, then the object itself with each
    batch. Without a ``recorder`` steps run kernel by kernel, because the device has no graphs. If it has graphs and
    does not use them, :attr:`refusal` says why.
    """

    def __init__(
        self, step: Step[R], sums: Sums[R], recipe: Recipe, context: Context, recorder: Recorder | None
    ) -> None:
        self._step, self._sums, self._context = step, sums, context
        self._recorder = recorder
        self.refusal: str | None = None
        self.peak_bytes = 0.0
        """The most memory that a step of this run took within a graph, in bytes."""
        self._graphs: dict[Hashable, _Graph[R]] = {}
        self._warmed_up: set[torch.Size] = set()
        reason = _obstacle(recipe, context, step)
        if recorder and reason:
            self._refuse(reason, logging.INFO)

    @property
    def form(self) -> str | None:
        """Says in words how a GPU does the steps; None on a device that has no graphs."""
        if self.refusal:
            return f"kernel by kernel: {self.refusal}"
        return "one CUDA graph" if self._recorder else None

    def is_ready_for(self, batch: TrainBatch) -> bool:
        """Whether the next step takes no longer on this batch than later ones do."""
        if self._recorder:
            return self._key(batch) in self._graphs
        return not self._step.needs_warm_up or batch.images.shape in self._warmed_up

    def prepare(self, batch: TrainBatch) -> None:
        """Compiles, chooses algorithms, and captures the next step. It changes no weight, count or generator.

        The peak of the memory is reset afterwards, since cuDNN tries algorithms with large workspaces to choose one.
        """
        if self._recorder:
            with self._unchanged():
                try:
                    self._capture(batch, self._recorder)
                except Exception as error:
                    # From CUDA, cuDNN or the compiler. The step may still work without a graph.
                    self._graphs.clear()
                    lines = str(error).strip().splitlines() or [""]
                    self._refuse(f"{type(error).__name__}: {lines[0]}", logging.WARNING)
                self._step.forget_gradients()
        if self._recorder is None and self._step.needs_warm_up:
            self._step.warm_up(batch)
            if self._context.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._context.device)
        self._warmed_up.add(batch.images.shape)

    def __call__(self, batch: TrainBatch) -> R:
        """Does a step. The next step may overwrite the tensors of the result."""
        graph = self._graphs.get(self._key(batch)) if self._graphs else None
        if graph is None:
            result = self._step(batch)
            self._sums.add(result)
            return result
        self._step.set_rates()
        for static, given in zip(_tensors(graph.batch), _tensors(batch), strict=True):
            static.copy_(given, non_blocking=True)
        graph.replay()
        self._step.number += 1
        self.peak_bytes = max(self.peak_bytes, graph.peak_bytes)
        return graph.result

    def captured(self) -> Captured[R] | None:
        """The graphs that another run may replay, in the memory of this one; None if there are none."""
        return Captured(self._graphs, self._recorder) if self._recorder and self._graphs else None

    def replay_from(self, captured: Captured[R]) -> None:
        """Replays the graphs of an earlier run, whose memory this run has taken over."""
        if self._recorder:
            self._graphs, self._recorder = captured.graphs, captured.recorder

    def _key(self, batch: TrainBatch) -> Hashable:
        """A key that two steps share if the device does the same in both, except for the contents of their batches."""
        return (
            self._step.kind,
            batch.images.shape,
            batch.images.dtype,
            batch.partner_labels is None,
            batch.positions.tobytes(),
        )

    def _capture(self, batch: TrainBatch, recorder: Recorder) -> None:
        static = dataclasses.replace(
            batch,
            images=batch.images.clone(),
            labels=batch.labels.clone(),
            keys=batch.keys.clone(),
            partner_labels=None if batch.partner_labels is None else batch.partner_labels.clone(),
            label_share=None if batch.label_share is None else batch.label_share.clone(),
        )
        rates = self._step.set_rates()
        results: list[R] = []
        if len(self._graphs) >= MOST_GRAPHS:
            self._graphs.clear()
            recorder.begin_anew()

        def act() -> None:
            results[:] = [self._step.apply(static, rates)]
            self._sums.add(results[0])

        for rehearsal in range(1, 1 + STEPS_BEFORE_CAPTURE):
            if rehearsal == STEPS_BEFORE_CAPTURE:
                recorder.forget_peak()
            recorder.rehearse(act)
        results.clear()
        replay = recorder.record(act)
        self._graphs[self._key(batch)] = _Graph(static, replay, results[0], self._step, recorder.peak_bytes())

    @contextlib.contextmanager
    def _unchanged(self) -> Generator[None]:
        """A context for trying out steps. It restores all tensors and generators, from copies in the host's memory."""
        tensors = [*self._step.tensors(), *self._sums.tensors()]
        kept = [tensor.to("cpu", copy=True) for tensor in tensors]
        draws = generators(self._context.device)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, kept, strict=True):
                    tensor.copy_(before)
            set_generators(draws, self._context.device)

    def _refuse(self, reason: str, level: int) -> None:
        self._recorder, self.refusal = None, reason
        logger.log(level, "steps are not captured as a CUDA graph, but done kernel by kernel: %s", reason)


def recorder_for(device: torch.device, share: float = 1.0) -> Recorder | None:
    """The recorder for a device of which this process may use a ``share``; None for a CPU."""
    return CudaRecorder(device, share) if device.type == "cuda" else None


def _obstacle(recipe: Recipe, context: Context, step: Step[Any]) -> str | None:
    """Why the steps of a Recipe cannot be captured; None if no reason is known in advance."""
    if recipe.capture == "never":
        return "capture=never"
    if context.world_size > 1:
        return f"{context.world_size} workers exchange gradients within a step"
    if step.repeats_draws:
        return (
            "SAM repeats what the network draws from torch's generator, whose state cannot be read in a graph"
        )
    return None


def _tensors(batch: TrainBatch) -> list[Tensor]:
    tensors = (batch.images, batch.labels, batch.keys, batch.partner_labels, batch.label_share)
    return [tensor for tensor in tensors if tensor is not None]
