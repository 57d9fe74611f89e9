"""Computes the effects of swept fields on accuracy: isolation, response, effects, importance, and best so far.

These are methods of :class:`nfnet_ray.analysis.StudyRecord`; docs/effects.md explains them. The least squares are
NumPy's and the distributions SciPy's. Each model is only a handful of columns, and no library handles the difficult
part: which trials are missing, and why.
"""
