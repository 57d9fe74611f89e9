"""Measures how fast a trial runs on this machine, in a separate process that ends after at most two minutes."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Any

from nfnet_ray.models.own.source import source_of
from nfnet_ray.recipe import Recipe

MOST_SECONDS = 120.0
# The first steps of a probe also fill caches, so they are slower.
FIRST_STEPS = 2
_PROGRAM = "nfnet_ray.training.trial_probe"


@dataclass
class Probe:
    """The measurements of the beginning of a trial on one worker. Values the probe did not reach are None or empty.

    Attributes:
        process_seconds: the time from the start of the process until its imports were done.
        startup_seconds: the time from then to the first batch, or to the end of the warm-up if there is one.
        step_seconds: the time of each step, including the wait for the next batch; a step has ``images`` images of
            ``image_size`` pixels.
        eval_seconds: the time of validating ``eval_images`` images.
        checkpoint_seconds: the time for which training waits for a checkpoint of ``checkpoint_bytes``.
        memory_bytes: the peak memory of the process or, on a GPU, of the GPU's memory.
        trouble: the reason in one line if the probe ended early.
    """

    process_seconds: float | None = None
    startup_seconds: float | None = None
    step_seconds: tuple[float, ...] = ()
    images: int = 0
    image_size: int = 0
    eval_seconds: float = 0.0
    eval_images: int = 0
    checkpoint_seconds: float | None = None
    checkpoint_bytes: int | None = None
    memory_bytes: float | None = None
    trouble: str = ""

    def take(self, line: Mapping[str, Any], seconds: float) -> None:
        """Reads the values from a line of the process's output, ``seconds`` after its start."""
        if "imported" in line:
            self.process_seconds = seconds
        elif "first_batch" in line or "warmed_up" in line:
            self.startup_seconds = seconds - (self.process_seconds or 0.0)
        elif "step_seconds" in line:
            self.step_seconds += (line["step_seconds"],)
            self.images, self.image_size = line["images"], line["image_size"]
        elif "eval_seconds" in line:
            self.eval_seconds += line["eval_seconds"]
            self.eval_images += line["images"]
        elif "checkpoint_seconds" in line:
            self.checkpoint_seconds = line["checkpoint_seconds"]
            self.checkpoint_bytes = line["checkpoint_bytes"]
        elif "memory_bytes" in line:
            self.memory_bytes = line["memory_bytes"]


def probe_at_once(recipe: Recipe, threads: int, workers: int, gpu: bool, copies: int) -> Probe:
    """Runs :func:`probe` in several processes at once, as trials that share a machine run, and combines the results."""
    with ThreadPoolExecutor(copies) as pool:
        probes = list(pool.map(lambda _: probe(recipe, threads, workers, gpu), range(copies)))

    def largest(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    first = max(probes, key=lambda measured: len(measured.step_seconds))
    return replace(
        first,
        process_seconds=largest(measured.process_seconds for measured in probes),
        startup_seconds=largest(measured.startup_seconds for measured in probes),
        # The first steps of each process are left out, because they also fill caches.
        step_seconds=first.step_seconds[:FIRST_STEPS]
        + tuple(second for measured in probes for second in measured.step_seconds[FIRST_STEPS:]),
        eval_seconds=sum(measured.eval_seconds for measured in probes),
        eval_images=sum(measured.eval_images for measured in probes),
        checkpoint_seconds=largest(measured.checkpoint_seconds for measured in probes),
        memory_bytes=largest(measured.memory_bytes for measured in probes),
        trouble=next((measured.trouble for measured in probes if measured.trouble), ""),
    )


def probe(recipe: Recipe, threads: int, workers: int, gpu: bool) -> Probe:
    """Runs the beginning of a trial in a process, for at most :data:`MOST_SECONDS`.

    The trial's batch is shared by ``workers`` workers, one of which is the probe, with ``threads`` threads. With
    ``gpu`` the probe runs on a GPU, or says why it cannot; without, it uses no GPU even if the machine has one.
    """
    result, started = Probe(), time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(recipe, gpu),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        lines, errors = _Lines(process.stdout), _Lines(process.stderr)
        try:
            asked = {"recipe": recipe.to_values(), "threads": threads, "workers": workers, "gpu": gpu}
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(asked))
            while (line := lines.next_until(started + MOST_SECONDS)) is not None:
                result.take(json.loads(line), time.monotonic() - started)
        except TimeoutError:
            result.trouble = f"it was ended after {MOST_SECONDS:.0f} s"
        finally:
            if lines.is_open():  # the output was not read to its end
                process.kill()
            code = process.wait()
            lines.close()
            errors.close()
        if code and not result.trouble:
            result.trouble = errors.last or "it was killed"
    return result


def _environment(recipe: Recipe, gpu: bool) -> dict[str, str]:
    """Returns the probe's environment: with or without GPUs, and with the path of a network outside this repository."""
    environment = dict(os.environ) if gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if recipe.model.is_own:
        root = str(source_of(recipe.model.name).root)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return environment


class _Lines:
    """The lines of a stream, which a thread reads as they arrive."""

    def __init__(self, stream: IO[str]) -> None:
        self.last = ""
        """The last line that is not empty."""
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def next_until(self, moment: float) -> str | None:
        """Returns the next line; None at the end.

        Raises TimeoutError if none arrives by ``moment``, a time of time.monotonic().
        """
        try:
            return self._queue.get(timeout=max(0.0, moment - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None

    def is_open(self) -> bool:
        """Whether the stream may still deliver lines."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Waits for the end of the stream."""
        self._thread.join()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.last = line.strip() or self.last
            self._queue.put(line)
        self._queue.put(None)
