"""Determines whether accuracies and times of trials can be compared, and which of their conditions differ."""

from nfnet_ray.analysis.comparability.differences import (
    ConditionDifference,
    ConditionGroup,
    condition_differences,
)
from nfnet_ray.analysis.comparability.guard import AxesGroup, Comparability, comparability, not_one_accuracy

__all__ = [
    "AxesGroup",
    "Comparability",
    "ConditionDifference",
    "ConditionGroup",
    "comparability",
    "condition_differences",
    "not_one_accuracy",
]
