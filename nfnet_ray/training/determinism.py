"""Makes a used process like a new one, so that one trial cannot affect the next."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def reset_process(seed: int, threads: int) -> None:
    """Sets every process-wide switch that can change a result.

    Ray Tune runs one trial after another in the same process, where torch's defaults, generators and
    caches would otherwise survive. Decoded images stay: they are never written to.
    """
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    if torch.are_deterministic_algorithms_enabled():  # to call the setter imports the compiler: seconds
        torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)  # the order of a sum, and so its last bits, depends on it
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True
    # By the old functions and by the new one: each leaves out some of what the other sets.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.fp32_precision = "ieee"  # pyrefly: ignore[missing-attribute]
    seed_generators(seed)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seed_generators(seed: int) -> None:
    """Sets all generators of this process, as :func:`reset_process` does."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that training draws from: torch's, on the CPU and on the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restores :func:`generators`; a device whose state was not saved keeps its own."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "device" in states:
        torch.cuda.set_rng_state(states["device"], device)
