"""Whether torch can use the GPUs of a node.

Ray counts the GPUs that NVML sees. NVML also sees those that CUDA cannot use: where the driver is older than the CUDA
that torch was built for, where it was replaced and not loaded again, or where the fabric manager of a machine with
NVSwitch is down. Every trial would fail there; and a worker of a group would end its process before any code of ours
could say why (c10d's NCCL backend in torch 2.15), to be started again without end.
"""

from __future__ import annotations

import ctypes
import os
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DRIVER_LIBRARY = "libcuda.so.1"
_SUCCESS = 0


def gpu_problem(*, of_all: bool = True) -> str | None:
    """Why torch cannot compute on the GPUs of this machine; None if nothing speaks against it.

    It starts CUDA, without taking memory of a GPU. A process for which ``of_all`` GPUs were started sees all of them
    from then on: it has to be one of its own, as a task of Ray that asks for no GPU is. Else those of
    CUDA_VISIBLE_DEVICES are. Torch, which takes seconds to import, is not imported.
    """
    built_for = _cuda_of_torch()
    if built_for is None:
        return None
    if not built_for:
        return "torch is built for CPUs alone"
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return f"there is no CUDA driver ({DRIVER_LIBRARY})"
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) == _SUCCESS:
        known = f"{version.value // 1000}.{version.value % 1000 // 10}"
        # Within a major version an older driver runs what a newer CUDA has built (docs.nvidia.com/deploy/
        # cuda-compatibility, minor version compatibility).
        if version.value // 1000 < int(built_for.split(".")[0]):
            return f"NVIDIA's driver is too old for torch: it knows CUDA {known}, and torch is built for {built_for}"
    # Ray hides the GPUs from a task that has asked for none.
    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None) if of_all else None
    try:
        code = driver.cuInit(0)
    finally:
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden
    return None if code == _SUCCESS else f"CUDA does not start: {_in_words(driver, code)}"


def _cuda_of_torch() -> str | None:
    """The version of CUDA that torch is built for; empty for CPUs alone, None for GPUs that are not NVIDIA's."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    built: dict[str, Any] = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    if built.get("hip") or built.get("xpu"):
        return None
    return str(built.get("cuda") or "")


def _in_words(driver: ctypes.CDLL, code: int) -> str:
    said = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(said))
    return f"{(said.value or b'unknown error').decode()} (error {code} of cuInit)"
