"""Describes a study and its trials, estimates their cost, and displays them while they run. Does not import Ray.

>>> from nfnet_ray.recipe import Recipe
>>> from nfnet_ray.study import Study
>>> study = Study("sizes", "Which batch size is best?", Recipe(), {"batch_size": (64, 256)})
>>> [trial.name for trial in study.trials()]
['batch_size=64', 'batch_size=256']
"""

from nfnet_ray.study.halving import Halving
from nfnet_ray.study.study import Study, Trial

__all__ = ["Halving", "Study", "Trial"]
