"""What the machine can do at most: the rate of a large matrix product, and of a copy within the device's memory."""

from __future__ import annotations

import argparse

import torch

from benchmarks.gpu.machine import Machine, Timing
from benchmarks.gpu.rows import Recorder

# Of a square matrix. 8192 is the size of the public measurements that ours are compared with (docs/performance.md).
MATRIX_SIZE, SMALL_MATRIX_SIZE = 8192, 128
COPIED_BYTES, SMALL_COPIED_BYTES = 1 << 31, 1 << 20
REPEATS = 20


def measure(recorder: Recorder, machine: Machine, _options: argparse.Namespace) -> None:
    """TFLOP/s of a bf16 product of random matrices, and TB/s of a copy."""
    size = SMALL_MATRIX_SIZE if machine.is_small else MATRIX_SIZE
    case = f"matrix product, bf16, {size} x {size}"
    with recorder.case(case):
        timing = matrix_product(machine)
        recorder.add(case, "rate", flops(machine) / timing.seconds / 1e12, "TFLOP/s", timing)
    case = "copy within the device"
    with recorder.case(case):
        timing = copy(machine)
        recorder.add(case, "bytes read and written", moved(machine) / timing.seconds / 1e12, "TB/s", timing)


def flops(machine: Machine) -> float:
    """Of one :func:`matrix_product`."""
    return 2.0 * (SMALL_MATRIX_SIZE if machine.is_small else MATRIX_SIZE) ** 3


def moved(machine: Machine) -> float:
    """Bytes that one :func:`copy` reads and writes."""
    return 2.0 * (SMALL_COPIED_BYTES if machine.is_small else COPIED_BYTES)


def matrix_product(machine: Machine) -> Timing:
    """On random numbers: on zeros a GPU draws less power and runs faster."""
    size = SMALL_MATRIX_SIZE if machine.is_small else MATRIX_SIZE
    a, b = (torch.randn(size, size, device=machine.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return machine.time(lambda: torch.mm(a, b, out=out), repeats=REPEATS)


def copy(machine: Machine) -> Timing:
    """From one half of the memory to the other."""
    count = SMALL_COPIED_BYTES if machine.is_small else COPIED_BYTES
    source = torch.randn(count // 4, device=machine.device)  # of float32, 4 bytes each
    target = torch.empty_like(source)
    return machine.time(lambda: target.copy_(source), repeats=REPEATS)
