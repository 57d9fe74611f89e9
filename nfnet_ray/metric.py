"""The metric by which checkpoints, trials and studies are compared."""

from __future__ import annotations

from typing import Final

METRIC: Final = "validation_top1"
"""Share of the validation images whose label has the largest logit, 0 to 1. ``training/evaluation.py`` computes it."""
