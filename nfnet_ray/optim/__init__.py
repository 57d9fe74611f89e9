"""From gradients to new weights: SAM, AGC, SGD and RMSProp, learning-rate schedules, the moving average."""

from nfnet_ray.optim.agc import UnitNorms, clip_gradients_adaptively, unit_norms, unitwise_norm
from nfnet_ray.optim.ema import ExponentialMovingAverage
from nfnet_ray.optim.optimizer import create_optimizer, decayed_names
from nfnet_ray.optim.sam import LookDirection, perturbation, perturbed, sharpest
from nfnet_ray.optim.schedule import learning_rate_at, warmup_cosine, warmup_staircase

__all__ = [
    "ExponentialMovingAverage",
    "LookDirection",
    "UnitNorms",
    "clip_gradients_adaptively",
    "create_optimizer",
    "decayed_names",
    "learning_rate_at",
    "perturbation",
    "perturbed",
    "sharpest",
    "unit_norms",
    "unitwise_norm",
    "warmup_cosine",
    "warmup_staircase",
]
