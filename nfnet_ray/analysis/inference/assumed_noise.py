"""How noisy trials are taken to be where no study has measured it: more so with fewer training images.

From the studies with several seeds in ``studies/results``, of networks of up to 0.5 million parameters that were
trained for 3 to 24 epochs (``docs/answers.md`` has the table), and Picard (2021, arXiv:2109.08203), who saw a spread of
0.1 to 0.2 points on ImageNet and on all of CIFAR-10.
"""

from __future__ import annotations

import math

ASSUMED_SPREAD = 0.003
"""Standard deviation between seeds with :data:`MANY_IMAGES` training images or more, a fraction."""
MANY_IMAGES = 50_000
_DISAGREEMENT = 0.1
"""Share of the validation images that two trials judge differently with as many training images."""
_DISAGREEMENT_OF_FEW = 0.2


def assumed_spread(train_images: int) -> float:
    """The standard deviation between seeds, a fraction: as one over the root of the number of training images."""
    return ASSUMED_SPREAD * math.sqrt(max(1.0, MANY_IMAGES / max(train_images, 1)))


def assumed_disagreement(train_images: int) -> float:
    """The share of the validation images that two trials judge differently."""
    return _DISAGREEMENT if train_images >= MANY_IMAGES else _DISAGREEMENT_OF_FEW
