"""Runs parts of ``python -m benchmarks.gpu --small`` on a pretended GPU.

    python -m tests.training.rehearse_gpu_benchmark [PART …]

A lent GPU is there for minutes, so what would fail on it should fail here. It prints the rows; numbers mean nothing.
What a pretended GPU has not got, fails: the profiler, and NCCL. Names of parts may follow (default: all that need no
compiler). It takes ten minutes of a core, so ``make test`` does not run it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from math import inf
from pathlib import Path
from unittest import mock

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rows import Recorder, read_rows, table
from tests.training.pretended_gpu import pretended_gpu
from tests.training.test_gpu_benchmark import few_images

PARTS = ("roof", "correctness", "step", "captured", "cohort", "observed", "convolutions", "cifar")


def main(parts: list[str]) -> None:
    """Runs them one after the other."""
    for part in parts or PARTS:
        module = importlib.import_module(f"benchmarks.gpu.{part}")
        with tempfile.TemporaryDirectory() as folder:
            options = argparse.Namespace(
                form=None, seconds_left=lambda: inf, cifar=few_images(Path(folder) / "cifar"), small=True
            )
            rows = Path(folder) / "rows"
            no_nccl = mock.patch("torch.distributed.init_process_group", side_effect=RuntimeError("no NCCL"))
            with pretended_gpu(), no_nccl:  # it would end the process
                machine = Machine(is_small=True)
                module.measure(Recorder(rows, part, machine), machine, options)
            print(table(read_rows(rows)[0]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
