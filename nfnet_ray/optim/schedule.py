"""The learning rate of every step: linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, peak: float, warmup_steps: float, total_steps: float) -> float:
    r"""Learning rate of optimiser step ``step``, counted from 0.

    .. math::  \eta(t) = \eta_{max} \frac{t}{w} \; (t \le w), \qquad
               \eta(t) = \frac{\eta_{max}}{2} \Bigl(1 + \cos \pi \frac{t - w}{T - w}\Bigr) \; (t > w)

    ``warmup_steps`` may be fractional, as it is in the official run (1563.92 of 112,602), and the very
    first step has rate 0 if there is a warm-up. Source: official ``optim.py`` (``WarmupCosineDecay``).
    """
    if warmup_steps > 0 and step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1e-9)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
