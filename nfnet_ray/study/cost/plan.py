"""Estimates the cost of a study before anything is started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nfnet_ray.data.augmentation.progressive import data_at_epoch
from nfnet_ray.data.batching import batches_per_epoch, check_batch_size, images_of_share
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.baselines import BASELINES
from nfnet_ray.models.catalogue import count_multiply_adds, count_parameters, own_has_batch_norm
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import ModelRecipe, Recipe, ResolvedRecipe
from nfnet_ray.study.confirmation import reruns_to_run
from nfnet_ray.study.contenders import further_to_run
from nfnet_ray.study.decisions import Group, groups
from nfnet_ray.study.halving import with_schedule_of
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD

TRAINING_PER_FORWARD = 3  # a backward pass costs about as much as two forward passes
DEEPEST_STRIDE = 32  # of EfficientNets and ResNet-50, which reduce images of up to this side to one pixel
FROZEN_PER_FORWARD = 1  # weights that are not trained need no backward pass


@dataclass(frozen=True)
class StudyCost:
    """The cost if no trial is stopped early; ``least_…`` is the cost if halving stops as many trials as it can.

    If rungs are in seconds, their epochs are not known in advance, and both values are equal.
    """

    images: int
    multiply_adds: float
    least_multiply_adds: float
    parameters: int


def check_trials(trials: Sequence[Trial], data: DatasetSummary, workers: int) -> None:
    """Raises UserError if a trial could not run, e.g. for an unknown model or an unsuitable batch size."""
    for trial in trials:
        recipe = resolve(trial.recipe)
        check_batch_size(recipe, data.train_images, workers, data.path)
        _check_batch_normalisation(recipe, workers)


def _check_batch_normalisation(recipe: ResolvedRecipe, workers: int) -> None:
    """Raises UserError if batch normalisation would have to normalise over a single number per channel."""
    name = recipe.model.label
    images = recipe.batch_size // workers // recipe.micro_batches
    size = recipe.data.progressive.start_size or recipe.data.image_size
    if images == 1 and size <= DEEPEST_STRIDE and _has_batch_norm(recipe.model):
        raise UserError(
            f"batch_size {recipe.batch_size} gives a pass a single image, and {name} normalises over a batch, which "
            f"at {size} px is then one number for each channel: choose a larger batch, fewer micro_batches, or "
            f"data.image_size above {DEEPEST_STRIDE}"
        )


def _has_batch_norm(model: ModelRecipe) -> bool:
    if model.is_own:
        return own_has_batch_norm(model.name)
    return model.name in BASELINES or bool(model.overrides.batch_norm)


def estimate_cost(
    study: Study, trials: Sequence[Trial], data: DatasetSummary, progress: StudyState | None = None
) -> StudyCost:
    """Estimates the number of training images and the multiply-adds from the trials' Recipes alone.

    For a study that has begun, ``progress`` is the state of its trials, and only the remaining work is counted.
    """
    recipes = {trial.name: trial.recipe for trial in trials}
    images, total, least_multiply_adds = 0, 0.0, 0.0
    for group in groups(study):
        behind = [behind_it(name, progress) for name in group.trials]
        ladder = ladder_in_epochs(group, None)
        done, ended = zip(*behind, strict=True)
        targets = least_epochs(done, ended, ladder, group.end)
        for name, epochs, (done_epochs, has_ended) in zip(group.trials, targets, behind, strict=True):
            if name in recipes and not has_ended:
                images += _images(recipes[name], data, group.end - done_epochs)
                paid = trained_multiply_adds(recipes[name], data, group, done_epochs)
                total += trained_multiply_adds(recipes[name], data, group, group.end) - paid
                least_multiply_adds += trained_multiply_adds(recipes[name], data, group, epochs) - paid
    model = study.recipe.model
    parameters = count_parameters(model.name, len(data.class_names), model.overrides.chosen())
    return StudyCost(images, total, least_multiply_adds, parameters)


def further_names(study: Study, progress: StudyState | None) -> tuple[list[str], list[str]]:
    """Returns the names of the contenders' further trials: (those that are certain, those that are possible).

    While the contenders are unknown, placeholders take the place of names.
    """
    if progress is not None and progress.has_contenders:
        return list(progress.repeating), []
    least, most = further_to_run(study, progress or study.waiting_state())
    names = [f"further {number}" for number in range(most)]
    return names[:least], names[least:]


def longest(study: Study) -> int:
    """Returns the epochs of the longest learning-rate schedule, an upper bound for trials that are added later."""
    return max(trials[0].recipe.schedule.epochs for trials in study.trials_by_setting())


def rerun_names(study: Study, progress: StudyState | None) -> list[str]:
    """Returns the names of the reruns of winners, or placeholders while the winners are unknown."""
    if progress is not None and progress.has_winners:
        return list(progress.confirming)
    return [f"rerun {number}" for number in range(reruns_to_run(study, progress or study.waiting_state()))]


def rerun_group(study: Study, progress: StudyState | None) -> Group:
    """Returns the group of the reruns of winners, which are not stopped early."""
    return Group(tuple(rerun_names(study, progress)), (), longest(study))


def dearest(study: Study, data: DatasetSummary) -> Recipe:
    """Returns the Recipe of the setting with the most arithmetic, which bounds the cost of a rerun."""
    recipes = [trials[0].recipe for trials in study.trials_by_setting()]
    return max(recipes, key=lambda recipe: multiply_adds(recipe, data, recipe.schedule.epochs))


def training_multiply_adds(recipe: Recipe, classes: int, size: int | None = None) -> float:
    """Returns the multiply-adds of training on one image once: forward, backward, and SAM's ascent.

    ``size`` is the side of the image in pixels, by default that of a full-size image.
    """
    return _training_multiply_adds(recipe, size or resolve(recipe).data.image_size, classes)


def multiply_adds(recipe: Recipe, data: DatasetSummary, epochs: int) -> float:
    """Returns the multiply-adds of training for the first ``epochs`` epochs, each at its own image size."""
    data_recipe = resolve(recipe).data
    sizes = Counter(
        data_at_epoch(data_recipe, epoch, recipe.schedule.epochs).image_size for epoch in range(epochs)
    )
    return sum(
        _images(recipe, data, count) * _training_multiply_adds(recipe, size, len(data.class_names))
        for size, count in sizes.items()
    )


def trained_multiply_adds(recipe: Recipe, data: DatasetSummary, group: Group, epochs: int) -> float:
    """Returns the multiply-adds of a trial of a group up to an epoch, over all schedules trained until then."""
    total, left = 0.0, epochs
    for length in group.schedules or (epochs,):
        stretched = with_schedule_of(recipe, length) if group.schedules else recipe
        total += multiply_adds(stretched, data, min(left, length))
        left = max(0, left - length)
    return total


def _training_multiply_adds(recipe: Recipe, size: int, classes: int) -> float:
    overrides = recipe.model.overrides.chosen()
    return _forward_passes(recipe) * count_multiply_adds(recipe.model.name, size, classes, overrides)


def _images(recipe: Recipe, data: DatasetSummary, epochs: int) -> int:
    images = images_of_share(data.train_images, recipe.data.train_share)
    return batches_per_epoch(images, recipe.batch_size) * recipe.batch_size * epochs


def _forward_passes(recipe: Recipe) -> float:
    """Returns the cost of training on one image in forward passes, SAM's ascent included."""
    sam = recipe.optimizer.sam
    one_pass = TRAINING_PER_FORWARD if recipe.model.trained == "all" else FROZEN_PER_FORWARD
    if sam.rho is None:
        return one_pass
    if sam.method == "esam":  # ascent on all images, a forward pass for all losses, descent on the sharpest
        return one_pass + 1 + one_pass * sam.esam_data_share
    interval = sam.looksam_interval if sam.method == "looksam" else 1
    return one_pass * (1 + sam.ascent_share / interval)


def epoch_arithmetic(trials: Sequence[Trial], data: DatasetSummary) -> dict[str, float]:
    """Returns {trial: multiply-adds of one of its epochs}, the mean over epochs if images grow."""
    return {
        trial.name: multiply_adds(trial.recipe, data, trial.recipe.schedule.epochs)
        / trial.recipe.schedule.epochs
        for trial in trials
    }


def behind_it(trial: str, progress: StudyState | None) -> tuple[int, bool]:
    """Returns the number of epochs that a trial has trained, and whether the trial has ended."""
    if progress is None or trial not in progress.trials:
        return 0, False
    held = progress.trials[trial]
    return held.epoch, held.state in ENDED_FOR_GOOD


def least_epochs(
    done: Sequence[float], ended: Sequence[bool], ladder: Sequence[tuple[int, int]], epochs: int
) -> list[int]:
    """Returns the least epoch that each competing trial reaches, if every rung lets only its best trials continue.

    ``done`` has the epochs that each trial has trained, ``ended`` whether the trial has ended; for ``ladder`` see
    :meth:`nfnet_ray.study.halving.Halving.ladder`. Trials that are ahead are assumed to continue.
    """
    targets, left = [], len(done)
    for rung, kept in ladder:
        targets += [rung] * (left - kept)
        left = kept
    targets += [epochs] * left
    result = [0] * len(done)
    for index, target in zip(sorted(range(len(done)), key=lambda index: done[index]), targets, strict=True):
        # A trial that is past a rung can only be stopped at the next one.
        result[index] = (
            math.ceil(done[index]) if ended[index] else max(target, next_rung(done[index], ladder, epochs))
        )
    return result


def ladder_in_epochs(group: Group, epoch_seconds: float | None) -> list[tuple[int, int]]:
    """Returns a group's ladder with rungs in epochs, converted from seconds by the training seconds of an epoch.

    The ladder is empty while these seconds are unknown.
    """
    if not group.in_seconds:
        return [(int(rung), kept) for rung, kept in group.ladder]
    if not epoch_seconds:
        return []
    return [(min(group.end, max(1, math.ceil(rung / epoch_seconds))), kept) for rung, kept in group.ladder]


def next_rung(done: float, ladder: Sequence[tuple[int, int]], epochs: int) -> int:
    """Returns the next epoch at which a trial that has trained ``done`` epochs can be stopped or ends."""
    return next((rung for rung, _ in ladder if rung >= done), epochs)


def makespan(seconds: Sequence[float], places: int) -> float:
    """Returns a lower bound of the time that jobs of these lengths take, ``places`` at a time."""
    return max(math.fsum(seconds) / places, max(seconds, default=0.0))
