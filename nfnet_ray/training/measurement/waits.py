"""How long a GPU waits for batches, by events in its queue.

The host is ahead of a GPU: while it waits for a batch, or has it augmented, the GPU may still be at work on the steps
before. What the host's clock says of either is no time of the GPU's.
"""

from __future__ import annotations

import torch

from nfnet_ray.training.measurement.clock import Waits

MILLISECONDS = 1e-3


class CudaWaits:
    """The seconds between the end of a step and the moment at which the next one can begin, on the GPU itself.

    So the copying and augmenting of a batch count, as far as no step was at work meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: torch.cuda.Event | None = None
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """The step before has been put into the queue."""
        self._begun = self._event()

    def end(self) -> None:
        """All of the batch has been put into the queue."""
        if self._begun is not None:
            self._waits.append((self._begun, self._event()))
        self._begun = None

    def drain(self) -> None:
        """Waits for the device."""
        torch.cuda.synchronize(self._device)

    def take(self) -> float:
        """Seconds since the last call; the queue has to be empty."""
        waits, self._waits = self._waits, []
        return MILLISECONDS * sum(begun.elapsed_time(ended) for begun, ended in waits)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def waits_on(device: torch.device) -> Waits | None:
    """What measures how long a device waits for batches; None for a CPU, which does one thing after the other."""
    return CudaWaits(device) if device.type == "cuda" else None
