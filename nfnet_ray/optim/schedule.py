"""The learning rate of every step: linear warm-up, then a cosine to zero or stairs."""

from __future__ import annotations

import math

from nfnet_ray.recipe import ScheduleRecipe

# The steps in an epoch may be a fraction such as 1281167 / 4096. Where a product is cut to whole steps, a rounding
# error in its last bit must not cost a step.
_ROUNDING = 1e-6


def warmup_cosine(step: int, *, peak: float, warmup_steps: float, total_steps: float) -> float:
    r"""Learning rate of optimiser step ``step``, counted from 0.

    .. math::  \eta(t) = \eta_{max} \frac{t}{w} \; (t \le w), \qquad
               \eta(t) = \frac{\eta_{max}}{2} \Bigl(1 + \cos \pi \frac{t - w}{T - w}\Bigr) \; (t > w)

    ``warmup_steps`` may be fractional, as it is in the official run (1563.92 of 112,602), and the very
    first step has rate 0 if there is a warm-up. Source: official ``optim.py`` (``WarmupCosineDecay``).

    >>> [round(warmup_cosine(step, peak=0.4, warmup_steps=2, total_steps=10), 4) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.2, 0.4, 0.2, 0.0]
    """
    if warmup_steps > 0 and step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1e-9)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def warmup_staircase(
    step: int, *, peak: float, warmup_steps: float, decay_steps: float, decay_factor: float
) -> float:
    r"""Learning rate of optimiser step ``step``, counted from 0.

    .. math::  \eta(t) = \eta_{max} \frac{t}{\lfloor w \rfloor} \; (t < \lfloor w \rfloor), \qquad
               \eta(t) = \eta_{max} \, \gamma^{\lfloor t / s \rfloor} \; (t \ge \lfloor w \rfloor)

    The stairs of ``decay_steps`` :math:`s` are counted from the start of training, not from the end of the
    warm-up. After EfficientNet's warm-up of five epochs two stairs of 2.4 epochs have passed, so the rate falls from
    almost ``peak`` to 0.97 squared of it. Source: tensorflow/tpu ``models/official/efficientnet/utils.py``
    (``build_learning_rate``); its warm-up is cut to whole steps, its stairs are not.
    """
    whole_warmup_steps = math.floor(warmup_steps + _ROUNDING)
    if step < whole_warmup_steps:
        return peak * step / whole_warmup_steps
    return peak * decay_factor ** math.floor(step / decay_steps + _ROUNDING)


def learning_rate_at(step: int, schedule: ScheduleRecipe, *, peak: float, steps_per_epoch: float) -> float:
    """The Recipe's learning rate in optimiser step ``step``, counted from 0.

    ``peak`` is ``Recipe.peak_learning_rate``. ``steps_per_epoch`` may be a fraction. With 1281167 / 4096 the cosine
    equals the official run's to the last digit: the length of the run is cut to whole steps, that of the warm-up is
    not.
    """
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if schedule.shape == "staircase":
        return warmup_staircase(
            step,
            peak=peak,
            warmup_steps=warmup_steps,
            decay_steps=schedule.decay_epochs * steps_per_epoch,
            decay_factor=schedule.decay_factor,
        )
    total_steps = math.floor(schedule.epochs * steps_per_epoch + _ROUNDING)
    return warmup_cosine(step, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps)
