"""Training one network: the loop, one step, the clock, evaluation, checkpoints. Knows neither Ray nor MLflow.

The names below are imported when they are first asked for: they need torch, and a driver that reads a constant of a
module of this package does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfnet_ray.training.context import Context, PlainContext
    from nfnet_ray.training.loop import Outcome, train

__all__ = ["Context", "Outcome", "PlainContext", "train"]

_DEFINED_IN = {"Context": "context", "Outcome": "loop", "PlainContext": "context", "train": "loop"}

if not TYPE_CHECKING:  # so that mypy reports a name that does not exist

    def __getattr__(name: str) -> object:
        if name not in _DEFINED_IN:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
