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
    caches would otherwise survive. Decoded images stay, since they are never written to.
    """
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    if torch.are_deterministic_algorithms_enabled():  # the setter imports the compiler, which takes seconds
        torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)  # the order of a sum, and so its last bits, depends on it
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True
    # With the old functions and with the new one, because each sets switches that the other leaves alone.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.fp32_precision = "ieee"  # pyrefly: ignore[missing-attribute]
    seed_generators(seed)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seed_generators(seed: int) -> None:
    """Seeds all generators of this process, as :func:`reset_process` does."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators on the CPU and on the device, from which training draws."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restores :func:`generators`. A device whose state was not saved keeps its generator as it is."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "device" in states:
        torch.cuda.set_rng_state(states["device"], device)
