"""The steps of a run, captured as CUDA graphs where that is possible.

On a GPU a step of a small network consists of launching kernels, one by one, from Python. A CUDA graph has all kernels
of a step with their addresses, and the GPU works through it by itself: forward, loss, backward, SAM's two passes, AGC
and its counts, weight decay, momentum, the moving average, and the sums of the epoch. It is bit for bit the step that
it was captured from. What has to hold for that:

* It reads and writes the memory that it was captured with. Batches are copied into static tensors, rates are scalars on
  the device (``optim/rates.py``), and all that a step changes stays where it is, also when a checkpoint is loaded.
* No line of Python runs. So what a step does may depend on its batch's shape and on :attr:`TrainStep.kind` alone, of
  which each has a graph: LookSAM has two, and progressive image sizes have one for each size.
* Memory within a graph is used again by the others, which share a pool. So nothing that outlives a step is made there.

The next run of the process may replay them, too (``form/kept.py``).

Where a step cannot be captured, or capturing fails, the steps are done kernel by kernel, and the log says why.
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
"""Libraries choose their algorithms and make their workspaces in the first ones (torch's notes on CUDA graphs)."""
MOST_GRAPHS = 8
"""Each takes some megabytes for its kernels' arguments; growing images leave those of earlier sizes behind. One more
replaces them all: with a graph torch before 2.15 may free the workspaces that cuBLAS has on the stream of its capture,
and graphs that were captured there as well would still write to them (github.com/pytorch/pytorch/issues/193402)."""

MOST_KEPT_SHARE = 0.5
"""Of a worker's part of a GPU's memory: see :func:`too_much_memory`. By judgement; no GPU has seen it."""

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Makes graphs."""

    def rehearse(self, act: Callable[[], None]) -> None:
        """Does it once, as it will be captured."""

    def record(self, act: Callable[[], None]) -> Callable[[], None]:
        """Captures it; what is returned does it again."""

    def begin_anew(self) -> None:
        """What was recorded so far is gone; what follows shares no memory with it."""

    def forget_peak(self) -> None:
        """Begins to measure :meth:`peak_bytes` anew."""

    def peak_bytes(self) -> float:
        """The largest memory that tensors took since then."""


class CudaRecorder:
    """Makes CUDA graphs, which share the memory between their kernels.

    ``share`` is the part of the device that this process may use; other processes use the rest.
    """

    def __init__(self, device: torch.device, share: float = 1.0) -> None:
        self._device, self._share = device, share
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def rehearse(self, act: Callable[[], None]) -> None:
        """On the stream of the captures, whose workspaces are made by this."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                act()
        finally:
            # Where it fails, too: what it has begun may write to weights, which must not be put back before that.
            current.wait_stream(self._stream)

    def record(self, act: Callable[[], None]) -> Callable[[], None]:
        """Nothing is computed now. If it fails, this raises what ``act`` raised, and eager steps go on as before."""
        graph, raised = torch.cuda.CUDAGraph(), list[Exception]()
        gc.collect()  # an old graph that is collected while another one is captured would disturb it
        try:
            # Threads that load images, write checkpoints and read NVML continue meanwhile, in their own memory and
            # streams. The outer context puts the stream back where torch's own does not (torch 2.11: where the capture
            # cannot be ended).
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
            if raised:  # torch may say instead that the capture cannot be ended
                raise raised.pop() from None
            raise
        own = self._share * torch.cuda.get_device_properties(self._device).total_memory
        refusal = too_much_memory(torch.cuda.memory_reserved(self._device), own)
        if refusal:
            raise MemoryError(refusal)
        return graph.replay

    def begin_anew(self) -> None:
        """torch refuses a pool whose graphs are all gone (create_or_incref_pool in its CUDACachingAllocator.cpp)."""
        self._pool = torch.cuda.graph_pool_handle()

    def _give_up(self) -> None:
        """Undoes what torch leaves of a capture that it could not end: its share in the pool, and its generator."""
        index = self._stream.device_index
        with contextlib.suppress(RuntimeError):  # where it was ended, there is no share any more
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)
        # Otherwise: "Offset increment outside graph capture encountered unexpectedly" at the next draw.
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())

    def forget_peak(self) -> None:
        """Of this process, and so of its meter, too."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> float:
        """The same."""
        return float(torch.cuda.max_memory_allocated(self._device))


def too_much_memory(kept: float, own: float) -> str | None:
    """Whether graphs keep too much of a worker's memory on its GPU: evaluation cannot use theirs. A sentence, or None.

    ``kept`` and ``own`` are bytes: those of the graphs, and all that the worker may use. Evaluation holds no
    activations, so it needs far less than a step. Networks that fill half a GPU keep it busy without a graph.

    >>> too_much_memory(60 * 2**30, 80 * 2**30)
    'a graph would keep 60.0 of 80.0 GiB for itself'
    >>> too_much_memory(30 * 2**30, 80 * 2**30)
    """
    if kept <= MOST_KEPT_SHARE * own:
        return None
    return f"a graph would keep {kept / 2**30:.1f} of {own / 2**30:.1f} GiB for itself"


class Step(Protocol[R_co]):
    """A step that can be captured: a :class:`~nfnet_ray.training.step.TrainStep`, or that of a cohort."""

    @property
    def number(self) -> int:
        """The number of steps done."""

    @number.setter
    def number(self, number: int) -> None: ...

    @property
    def kind(self) -> Hashable:
        """What the next step does and others may not."""

    @property
    def needs_warm_up(self) -> bool:
        """Whether the first step of an attempt would take longer than the others."""

    @property
    def repeats_draws(self) -> bool:
        """Whether a step sets torch's generator back, to draw the same again."""

    def set_rates(self) -> Any:
        """The rates of the next step, on the device if that is where they are read."""

    def apply(self, batch: TrainBatch, rates: Any) -> R_co:
        """What the device does in a step with these rates. Nothing else depends on the step but :attr:`kind`."""

    def __call__(self, batch: TrainBatch) -> R_co:
        """A step, kernel by kernel."""

    def warm_up(self, batch: TrainBatch) -> None:
        """Computes a gradient and throws it away."""

    def forget_gradients(self) -> None:
        """Lets go of the memory of gradients that it keeps from one step to the next."""

    def tensors(self) -> Iterator[Tensor]:
        """All that a step changes on the device, but gradients, always the same tensors."""


class Sums(Protocol[R_contra]):
    """Where the results of steps are added up."""

    def add(self, result: R_contra) -> None:
        """Counts a step."""

    def tensors(self) -> list[Tensor]:
        """Where it adds, always the same tensors."""


@dataclass
class _Graph(Generic[R]):
    batch: TrainBatch
    """What it reads."""
    replay: Callable[[], None]
    result: R
    """What it writes."""
    step: Step[R]
    """What it was captured from, which keeps alive what it reads besides, such as indices brought to the device."""
    peak_bytes: float
    """The largest memory that the last rehearsal took. A replay takes it, too; no counter sees it."""


@dataclass(frozen=True)
class Captured(Generic[R]):
    """The graphs of a run, and what adds to them."""

    graphs: dict[Hashable, _Graph[R]]
    recorder: Recorder


class CapturedStep(Generic[R]):
    """Does the steps of a run and adds them to the epoch's ``sums``: ``step(batch)``, after :meth:`prepare`.

    ``recorder`` None: kernel by kernel, because the device has no graphs. :attr:`refusal` says why a device that has
    them does not use them.
    """

    def __init__(
        self, step: Step[R], sums: Sums[R], recipe: Recipe, context: Context, recorder: Recorder | None
    ) -> None:
        self._step, self._sums, self._context = step, sums, context
        self._recorder = recorder
        self.refusal: str | None = None
        self.peak_bytes = 0.0
        """The largest memory that a step of this run took within a graph."""
        self._graphs: dict[Hashable, _Graph[R]] = {}
        self._warmed_up: set[torch.Size] = set()
        reason = _obstacle(recipe, context, step)
        if recorder and reason:
            self._refuse(reason, logging.INFO)

    @property
    def form(self) -> str | None:
        """How a GPU does the steps, in words; None on a device that has no graphs."""
        if self.refusal:
            return f"kernel by kernel: {self.refusal}"
        return "one CUDA graph" if self._recorder else None

    def is_ready_for(self, batch: TrainBatch) -> bool:
        """Whether the next step takes no longer on this batch than later ones do."""
        if self._recorder:
            return self._key(batch) in self._graphs
        return not self._step.needs_warm_up or batch.images.shape in self._warmed_up

    def prepare(self, batch: TrainBatch) -> None:
        """Compiles, chooses algorithms, and captures the next step. No weight, count or generator is changed by it.

        What memory that took is forgotten: to choose, cuDNN tries algorithms with whatever workspace they ask for.
        """
        if self._recorder:
            with self._unchanged():
                try:
                    self._capture(batch, self._recorder)
                except Exception as error:
                    # Of CUDA, cuDNN or the compiler: without a graph the step may work.
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
        """A step. The tensors of the result may be those of the next one, too, which overwrites them."""
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
        """What another run may replay, in the memory of this one; None if there is nothing."""
        return Captured(self._graphs, self._recorder) if self._recorder and self._graphs else None

    def replay_from(self, captured: Captured[R]) -> None:
        """Replays the graphs of a run whose memory is this one's now."""
        if self._recorder:
            self._graphs, self._recorder = captured.graphs, captured.recorder

    def _key(self, batch: TrainBatch) -> Hashable:
        """Steps of one key are the same for the device, whatever their batches hold."""
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
        """Within it steps may be tried out: then everything is as before. What is kept is in the host's memory."""
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
    """What makes graphs on a device, of which this process may use a ``share``; None on a CPU."""
    return CudaRecorder(device, share) if device.type == "cuda" else None


def _obstacle(recipe: Recipe, context: Context, step: Step[Any]) -> str | None:
    """Why the steps of a Recipe cannot be captured; None if nothing is known to prevent it."""
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
