"""The peak speeds of GPUs, from their data sheets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Precision = Literal["float32", "bfloat16", "float64"]

_H100_SXM: Mapping[Precision, float] = {"float64": 67, "float32": 67, "bfloat16": 1979 / 2}
_H100_NVL: Mapping[Precision, float] = {"float64": 60, "float32": 60, "bfloat16": 1671 / 2}
_A100: Mapping[Precision, float] = {"float64": 19.5, "float32": 19.5, "bfloat16": 312}

# (pattern of torch.cuda.get_device_name(), peak in 10^12 floating-point operations per second without sparsity). The
# numbers are from NVIDIA's data sheets ("NVIDIA H100 Tensor Core GPU Datasheet" and so on). Those of B200 and GB200 are
# the "NVIDIA Blackwell Datasheet"'s for one GPU of an HGX B200 and of a GB200 NVL72. Those of GeForce cards are from
# the white papers "NVIDIA Ampere GA102 GPU Architecture" and "NVIDIA Ada GPU Architecture", with accumulation in
# float32, as in torch. If a data sheet gives a peak only with sparsity, half of it is used. The float32 peak is that of
# the CUDA cores, since training turns TF32 off (nfnet_ray/training/determinism.py). The float64 peak is that of the
# tensor cores if the data sheet gives one. V100 and T4 have no bfloat16 arithmetic. A slice of a GPU (MIG) has a
# different name, and no data sheet describes it.
_PEAK_TERAFLOPS: tuple[tuple[str, Mapping[Precision, float]], ...] = (
    (r"(Tesla )?V100-SXM[23]-(16|32)GB(-LS)?", {"float64": 7.8, "float32": 15.7}),
    (r"(Tesla )?V100-PCIE-(16|32)GB", {"float64": 7.0, "float32": 14.0}),
    (r"(Tesla )?V100S-PCIE-32GB", {"float64": 8.2, "float32": 16.4}),
    (r"(Tesla )?T4", {"float32": 8.1}),
    (r"A100-(SXM4|SXM|PCIE|PCIe)-(40|80)GB|A100 80GB PCIe", _A100),
    (r"A10", {"float32": 31.2, "bfloat16": 125}),
    (r"A10G", {"float32": 35, "bfloat16": 70}),
    (r"A40", {"float32": 37.4, "bfloat16": 299.4 / 2}),
    (r"RTX A6000", {"float32": 38.7, "bfloat16": 309.7 / 2}),
    (r"H100 80GB HBM3", _H100_SXM),
    (r"H100 PCIe", {"float64": 51, "float32": 51, "bfloat16": 1513 / 2}),
    (r"H100 NVL", _H100_NVL),
    (r"H200", _H100_SXM),
    (r"H200 NVL", _H100_NVL),
    (r"B200", {"float64": 37, "float32": 75, "bfloat16": 4500 / 2}),
    (r"GB200", {"float64": 40, "float32": 80, "bfloat16": 5000 / 2}),
    (r"L4", {"float32": 30.3, "bfloat16": 242 / 2}),
    (r"L40", {"float32": 90.5, "bfloat16": 181.05}),
    (r"L40S", {"float32": 91.6, "bfloat16": 362.05}),
    (r"GeForce RTX 3090", {"float32": 35.6, "bfloat16": 71}),
    (r"GeForce RTX 4090", {"float32": 82.6, "bfloat16": 165.2}),
)


def peak_flops_per_second(device_name: str, precision: Precision) -> float | None:
    """The peak of a GPU by its data sheet, without sparsity; None for a device or precision not in the table above.

    >>> peak_flops_per_second("NVIDIA A100-SXM4-80GB", "bfloat16")
    312000000000000.0
    """
    name = device_name.removeprefix("NVIDIA ")
    for pattern, peaks in _PEAK_TERAFLOPS:
        if re.fullmatch(pattern, name):
            teraflops = peaks.get(precision)
            return None if teraflops is None else teraflops * 1e12
    return None
