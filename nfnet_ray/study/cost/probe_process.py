"""How fast a trial runs here, measured in a process of its own that ends after two minutes at the latest."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from nfnet_ray.recipe import Recipe

MOST_SECONDS = 120.0
_PROGRAM = "nfnet_ray.training.trial_probe"


@dataclass
class Probe:
    """What a probe has measured of the beginning of a trial, on one worker; None or empty: it did not get that far.

    Attributes:
        process_seconds: from the start of the process until its imports were done.
        startup_seconds: from then to the first batch, and to the end of a warm-up where there is one.
        step_seconds: of each step, with the wait for the next batch; ``images`` of one, of ``image_size`` pixels.
        eval_seconds: of validating ``eval_images``.
        checkpoint_seconds: for which training waits for a checkpoint, of ``checkpoint_bytes``.
        memory_bytes: the peak of the process or, on a GPU, of its memory.
        trouble: why it ended early, in a line.
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
        """Takes in a line of the process, ``seconds`` after its start."""
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


def probe(recipe: Recipe, threads: int, workers: int, most_seconds: float = MOST_SECONDS) -> Probe:
    """Runs the beginning of a trial in a process, for at most ``most_seconds``.

    ``workers`` of the trial share its batch; the probe is one of them, with ``threads``.
    """
    result, started = Probe(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        with process.stdin:
            asked = {"recipe": recipe.to_values(), "threads": threads, "workers": workers}
            process.stdin.write(json.dumps(asked))
        lines = _lines(process.stdout)
        while True:
            left = started + most_seconds - time.monotonic()
            try:
                line = lines.get(timeout=max(0.0, left))
            except queue.Empty:
                result.trouble = f"it was ended after {most_seconds:.0f} s"
                break
            if line is None:
                break
            result.take(json.loads(line), time.monotonic() - started)
        if not result.trouble and process.wait() != 0:
            reader.join(1)
            result.trouble = next(
                (line.strip() for line in reversed(errors) if line.strip()), "it was killed"
            )
    except BrokenPipeError:
        result.trouble = "it did not start"
    finally:
        process.kill()
        process.wait()
    return result


def _lines(stream: IO[str]) -> queue.Queue[str | None]:
    """The lines of a stream as they come; None at its end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines
