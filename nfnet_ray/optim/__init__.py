"""Adaptive gradient clipping, SGD's parameter groups, and the learning-rate schedule."""

from nfnet_ray.optim.agc import clip_gradients_adaptively, unitwise_norm
from nfnet_ray.optim.schedule import warmup_cosine
from nfnet_ray.optim.sgd import create_sgd, decays

__all__ = ["clip_gradients_adaptively", "create_sgd", "decays", "unitwise_norm", "warmup_cosine"]
