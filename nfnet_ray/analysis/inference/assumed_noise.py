"""The noise that trials are assumed to have if no study has measured it, depending on the number of training images.

The values come from the studies with several seeds in ``studies/results``, of networks of up to 0.5 million parameters
that were trained for 3 to 24 epochs (``docs/answers.md`` has the table), and from Picard (2021, arXiv:2109.08203), who
observed a spread of 0.1 to 0.2 points on ImageNet and on all of CIFAR-10.
"""

from __future__ import annotations

import math

ASSUMED_SPREAD = 0.003
"""The standard deviation between seeds with at least :data:`MANY_IMAGES` training images, a fraction."""
MANY_IMAGES = 50_000
_DISAGREEMENT = 0.1
"""The share of the validation images on which two trials disagree, with at least :data:`MANY_IMAGES` training
images."""
_DISAGREEMENT_OF_FEW = 0.2


def assumed_spread(train_images: int) -> float:
    """Returns the standard deviation between seeds, a fraction, which falls as 1 / sqrt(training images)."""
    return ASSUMED_SPREAD * math.sqrt(max(1.0, MANY_IMAGES / max(train_images, 1)))


def assumed_disagreement(train_images: int) -> float:
    """Returns the share of the validation images on which two trials disagree, one being right and one wrong."""
    return _DISAGREEMENT if train_images >= MANY_IMAGES else _DISAGREEMENT_OF_FEW
