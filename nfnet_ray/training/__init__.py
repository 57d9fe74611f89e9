"""Training one network: the loop, one step, the clock, evaluation, checkpoints. Knows neither Ray nor MLflow."""

from __future__ import annotations

from nfnet_ray.training.context import Context, PlainContext
from nfnet_ray.training.loop import Outcome, train

__all__ = ["Context", "Outcome", "PlainContext", "train"]
