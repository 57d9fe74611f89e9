"""The power of a design in ``--plan``: the differences that it can detect, and the price of detecting 0.5 points."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from nfnet_ray.analysis.earlier_noise import EarlierNoise, earlier_noise
from nfnet_ray.analysis.inference.assumed_noise import assumed_disagreement, assumed_spread
from nfnet_ray.analysis.inference.holdout import held_out
from nfnet_ray.analysis.inference.power import (
    Design,
    PairNoise,
    images_to_tell,
    seeds_to_tell,
    smallest_difference,
)
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study
from nfnet_ray.wording import as_points, count

ASKED = 0.005
"""The difference whose price is told, a fraction: half a point, by which published networks differ."""
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
    earlier = noise_of_earlier(study, data, storage)
    train_images = images_of_training(study, data)
    noise = earlier.pair_noise(train_images)
    seeds, share = len(study.seeds) + len(study.more_seeds), study.holdout or 1.0
    images, which = data.validation_images, "validation image"
    if study.holdout:  # settings are compared on the images that the best one was not chosen on
        images, which = int(np.count_nonzero(held_out(images, share))), "held-out validation image"
    smallest = smallest_difference(noise, Design(seeds, images))
    design = f"{count(seeds, 'seed')} and {count(images, which)}"
    told = f"Power: with {design} it can tell two {'networks' if seeds == 1 else 'settings'} apart that differ by "
    told += _points(smallest) if smallest < 1 else "more than any two can"
    told += f" (in 80% of studies; {_basis(earlier, train_images)})."
    if seeds == 1:
        by_seeds = _points(min(earlier.apart_by_seeds(train_images), 1.0))
        told += " Whether other seeds would reverse their order it cannot tell: by their seeds alone, equal settings "
        told += f"differ by up to {by_seeds}."
    return [
        told,
        _price(noise, images, share, max(seeds, _FEWEST_SEEDS) if seeds == 1 else seeds, seed_hours, word),
    ]


def noise_of_earlier(study: Study, data: DatasetSummary, storage: Path) -> EarlierNoise:
    """The spread and the disagreement of similar trials in earlier studies in ``storage``."""
    return earlier_noise(storage, data, _recipes(study))


def images_of_training(study: Study, data: DatasetSummary) -> int:
    """How many training images a trial has, at least."""
    return round(min(recipe.data.train_share for recipe in _recipes(study)) * data.train_images)


def _recipes(study: Study) -> list[Recipe]:
    return [trial.recipe for trial in study.trials()] or [study.recipe]


def _price(
    noise: PairNoise, images: int, share: float, seeds: int, seed_hours: float | None, word: str
) -> str:
    """The cost of detecting half a point. ``images`` is the number of images for comparisons, a ``share`` of all."""

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
    points = f"To tell a difference of {100 * ASKED:.1f} points,"
    if not ways:
        return f"{points} it would take both more seeds and more validation images."
    return f"{points} it would take {', or '.join(ways)}."


def _basis(earlier: EarlierNoise, train_images: int) -> str:
    """The origin of the numbers, in words."""
    disagreement, spread = earlier.disagreement, earlier.seed_spread
    measured, assumed = [], []
    differ = "two trials judge {:.2g}% of the images differently"
    if disagreement is None:
        assumed.append(differ.format(100 * assumed_disagreement(train_images)))
    else:
        measured.append(differ.format(100 * disagreement))
    if spread is None:
        assumed.append(f"seeds spread by {_points(assumed_spread(train_images))}")
    else:
        by = f"by {_points(spread)}" if spread else "by no more than luck with the images"
        measured.append(f"seeds spread {by} ({count(earlier.freedom, 'degree')} of freedom)")
    parts = []
    if measured:
        others = len(earlier.studies) - 1
        more = f" and {count(others, 'other study')}" if others else ""
        source = f"{count(earlier.trials, 'trial')} of {earlier.studies[0]}{more}"
        parts.append(f"measured in {source}: {' and '.join(measured)}")
    if assumed:
        parts.append(f"assumed for {count(train_images, 'training image')}: {' and '.join(assumed)}")
    return "; ".join(parts)


def _points(difference: float) -> str:
    """Two digits of a difference that is a fraction."""
    return as_points(f"{100 * difference:.2g}" if difference < 0.995 else "100")
