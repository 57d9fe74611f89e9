"""What ``--plan`` says of a design's power: which differences it can tell, and the price of telling 0.5 points."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from nfnet_ray.analysis.earlier_noise import EarlierNoise, earlier_noise
from nfnet_ray.analysis.inference.holdout import held_out
from nfnet_ray.analysis.inference.power import (
    Design,
    PairNoise,
    images_to_tell,
    seeds_to_tell,
    smallest_difference,
)
from nfnet_ray.analysis.verdict import ASSUMED_SPREAD
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.study import Study
from nfnet_ray.wording import as_points, count

ASKED = 0.005
"""The difference whose price is told, a fraction: half a point, by which published networks differ."""
ASSUMED_DISAGREEMENT = 0.1
"""Share of the images that two trials judge differently, where no earlier study says: an assumption."""
_FEWEST_SEEDS = 3  # for which the price in images is told where a study has one seed


def power_sentences(
    study: Study, data: DatasetSummary, storage: Path, seed_hours: float | None, word: str
) -> list[str]:
    """The power of a study of several settings, in sentences; none for a single one.

    Args:
        storage: where earlier studies lie.
        seed_hours: accelerator-hours of all settings with one seed; None if they are unknown.
        word: what an accelerator is called, ``GPU`` or ``worker``.
    """
    if len(study.trials_by_setting()) < 2 and not study.is_adaptive:
        return []
    earlier = earlier_noise(storage, data.fingerprint, study.recipe.model.name)
    disagreement = ASSUMED_DISAGREEMENT if earlier.disagreement is None else earlier.disagreement
    spread = ASSUMED_SPREAD if earlier.seed_spread is None else earlier.seed_spread
    noise = PairNoise.assumed(disagreement, spread)
    seeds, share = len(study.seeds) + len(study.more_seeds), study.holdout or 1.0
    images, which = data.validation_images, "validation image"
    if study.holdout:  # settings are compared on the images that the best one was not chosen on
        images, which = int(np.count_nonzero(held_out(images, share))), "held-out validation image"
    smallest = 100 * smallest_difference(noise, Design(seeds, images))
    design = f"{count(seeds, 'seed')} and {count(images, which)}"
    difference = as_points(f"{smallest:.2g}")
    if seeds == 1:
        told = (
            f"Power: with {design} it can tell two networks apart that differ by {difference}, but not "
            "whether other seeds would turn their order"
        )
    else:
        told = f"Power: with {design} it can tell two settings apart that differ by {difference}"
    return [
        f"{told} (in 80% of studies; {_basis(earlier, disagreement, spread)}).",
        _price(noise, images, share, max(seeds, _FEWEST_SEEDS) if seeds == 1 else seeds, seed_hours, word),
    ]


def _price(
    noise: PairNoise, images: int, share: float, seeds: int, seed_hours: float | None, word: str
) -> str:
    """What it would take to tell half a point; ``images`` are the ``share`` of all on which settings are compared."""

    def hours(number: int) -> str:
        return "" if seed_hours is None else f" ({seed_hours * number:.3g} {word}-hours)"

    more_seeds = seeds_to_tell(noise, ASKED, images)
    more_images = images_to_tell(noise, ASKED, seeds)
    ways = []
    if more_seeds is not None:
        ways.append(f"{count(more_seeds, 'seed')} with these images{hours(more_seeds)}")
    if more_images is not None:
        of_all = count(math.ceil(more_images / share), "validation image")
        ways.append(f"{count(seeds, 'seed')} with {of_all}{hours(seeds)}")
    points = f"To tell {100 * ASKED:.1f} points"
    if not ways:
        return f"{points} it would take both more seeds and more validation images."
    return f"{points} it would take {', or '.join(ways)}."


def _basis(earlier: EarlierNoise, disagreement: float, spread: float) -> str:
    """What the numbers are from."""
    from_studies = f"by {count(earlier.studies, 'earlier study')}"
    differ = f"two trials judge {100 * disagreement:.2g}% of the images differently"
    seeds = f"seeds spread by {as_points(f'{100 * spread:.2g}')}"
    known = [
        text
        for text, value in ((differ, earlier.disagreement), (seeds, earlier.seed_spread))
        if value is not None
    ]
    assumed = [text for text in (differ, seeds) if text not in known]
    parts = [f"{from_studies}, {' and '.join(known)}"] if known else []
    parts += [f"assumed: {' and '.join(assumed)}"] if assumed else []
    return "; ".join(parts)
