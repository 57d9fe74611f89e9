"""Which differences a design can tell, and what it would take to tell smaller ones.

A design tells a difference if, in 80% of studies in which the difference is there, the 95% interval of two settings
excludes 0. What it depends on: on how many images two trials judge differently, the spread between seeds, the number of
images and of seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nfnet_ray.analysis.inference.intervals import Z_95

Z_80 = 0.8416212335729143
"""The 80% quantile of the standard normal distribution."""
MOST_SEEDS = 100
MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class PairNoise:
    """How far the difference of two settings varies, as squared standard errors of one seed each on one image.

    Attributes:
        images: for the draw of images: some are harder for one setting than for the other.
        luck: of what each seed gets right by luck, per trial; both trials have their own.
        seeds: variance between seeds of one setting, of its accuracy on images without end.
    """

    images: float
    luck: float
    seeds: float

    @staticmethod
    def assumed(disagreement: float, seed_spread: float) -> PairNoise:
        """Of settings that are hardly different: what two trials judge differently is luck.

        Args:
            disagreement: share of the images that two trials judge differently.
            seed_spread: standard deviation between seeds, a fraction.
        """
        return PairNoise(0.0, disagreement / 2, seed_spread**2)


@dataclass(frozen=True)
class Design:
    """How many seeds each setting has, and on how many validation images it is measured."""

    seeds: int
    images: int


def smallest_difference(noise: PairNoise, design: Design) -> float:
    """The smallest difference, a fraction, that the design tells with 80% power.

    With a single seed it is for the images alone: nothing is known of what another seed would change.
    """
    of_images = noise.images / design.images
    of_seeds = 2 * noise.luck / (design.images * design.seeds)
    if design.seeds == 1:
        return (Z_95 + Z_80) * math.sqrt(of_images + of_seeds)
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    of_seeds += 2 * noise.seeds / design.seeds
    freedom = 2 * (design.seeds - 1)
    half_width = math.sqrt(Z_95**2 * of_images + float(stdtrit(freedom, 0.975)) ** 2 * of_seeds)
    return half_width + Z_80 * math.sqrt(of_images + of_seeds)


def seeds_to_tell(noise: PairNoise, difference: float, images: int) -> int | None:
    """The number of seeds for each setting that tells a difference on ``images`` images; None if 100 do not."""
    for seeds in range(2, MOST_SEEDS + 1):
        if smallest_difference(noise, Design(seeds, images)) <= difference:
            return seeds
    return None


def images_to_tell(noise: PairNoise, difference: float, seeds: int) -> int | None:
    """The number of validation images that tells a difference with ``seeds`` seeds, to two digits; else None."""
    design = Design(seeds, MOST_IMAGES)
    if smallest_difference(noise, design) > difference:
        return None
    low, high = 1, MOST_IMAGES
    while low < high:
        middle = (low + high) // 2
        if smallest_difference(noise, replace(design, images=middle)) <= difference:
            high = middle
        else:
            low = middle + 1
    digits = 10 ** max(0, len(str(low)) - 2)
    return -(-low // digits) * digits
