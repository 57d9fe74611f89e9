"""From gradients to new weights: SAM, AGC, SGD and RMSProp, learning-rate schedules, the moving average."""

from nfnet_ray.optim.agc import UnitNorms, Units, clip_gradients_adaptively, unit_norms, unitwise_norm
from nfnet_ray.optim.ema import ExponentialMovingAverage
from nfnet_ray.optim.optimizer import (
    create_optimizer,
    decayed_names,
    fill_state,
    load_in_place,
    update_weights,
)
from nfnet_ray.optim.rates import DeviceRates, Rates, rates_at
from nfnet_ray.optim.sam import LookDirection, perturbation, perturbed, sharpest
from nfnet_ray.optim.schedule import learning_rate_at, warmup_cosine, warmup_staircase

__all__ = [
    "DeviceRates",
    "ExponentialMovingAverage",
    "LookDirection",
    "Rates",
    "UnitNorms",
    "Units",
    "clip_gradients_adaptively",
    "create_optimizer",
    "decayed_names",
    "fill_state",
    "learning_rate_at",
    "load_in_place",
    "perturbation",
    "perturbed",
    "rates_at",
    "sharpest",
    "unit_norms",
    "unitwise_norm",
    "update_weights",
    "warmup_cosine",
    "warmup_staircase",
]
