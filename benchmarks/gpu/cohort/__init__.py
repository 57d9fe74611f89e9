"""The part of ``python -m benchmarks.gpu`` about cohorts."""

from benchmarks.gpu.cohort.lanes import measure

__all__ = ["measure"]
