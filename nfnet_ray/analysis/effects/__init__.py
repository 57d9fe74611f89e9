"""What the swept fields do to the accuracy: isolation, response, effects, importance, and best-so-far against cost.

They are methods of :class:`nfnet_ray.analysis.StudyRecord`; docs/effects.md explains them. The least squares are
NumPy's and the distributions SciPy's: each model is a handful of columns, and the part that needs care, which trials
are missing and why, is in no library.
"""
