"""Measures with CUDA events how long a GPU waits for batches.

The host runs ahead of a GPU. While the host waits for a batch, or launches its augmentation, the GPU may still be
working on earlier steps. So the host's clock cannot measure how long the GPU waits.
"""

from __future__ import annotations

import torch

from nfnet_ray.training.measurement.clock import Waits

MILLISECONDS = 1e-3


class CudaWaits:
    """Measures, on the GPU, the seconds between the end of a step and the moment at which the next one can begin.

    These include the copying and augmenting of a batch, except while an earlier step was still running.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: torch.cuda.Event | None = None
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """Marks the end of the last step in the GPU's queue."""
        self._begun = self._event()

    def end(self) -> None:
        """Marks the point in the GPU's queue after which the next step can begin."""
        if self._begun is not None:
            self._waits.append((self._begun, self._event()))
        self._begun = None

    def drain(self) -> None:
        """Waits for the device."""
        torch.cuda.synchronize(self._device)

    def take(self) -> float:
        """The seconds that the GPU has waited since the last call. Its queue must be empty."""
        waits, self._waits = self._waits, []
        return MILLISECONDS * sum(begun.elapsed_time(ended) for begun, ended in waits)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def waits_on(device: torch.device) -> Waits | None:
    """Measures how long a device waits for batches; None for a CPU, which has no queue."""
    return CudaWaits(device) if device.type == "cuda" else None
