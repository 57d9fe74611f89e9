"""Cohorts: trials that share every batch, trained as one program over a leading axis, the lanes (experimental)."""

from nfnet_ray.training.cohort.loop import train_cohort

__all__ = ["train_cohort"]
