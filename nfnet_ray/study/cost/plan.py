"""The cost of a study, estimated before anything is started."""

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

TRAINING_PER_FORWARD = 3  # a backward pass costs about two forward ones
DEEPEST_STRIDE = 32  # of EfficientNets and of ResNet-50: images up to this side end as one pixel
FROZEN_PER_FORWARD = 1  # there is no backward pass through what is not trained


@dataclass(frozen=True)
class StudyCost:
    """The cost if no trial is stopped early; ``least_…`` if halving stops as many trials as it can.

    Where rungs are in seconds, nobody knows yet at which epochs they are, and both are the same.
    """

    images: int
    multiply_adds: float
    least_multiply_adds: float
    parameters: int


def check_trials(trials: Sequence[Trial], data: DatasetSummary, workers: int) -> None:
    """Raises UserError if any trial could not run: an unknown model, a batch that data or workers do not fit."""
    for trial in trials:
        recipe = resolve(trial.recipe)
        check_batch_size(recipe, data.train_images, workers, data.path)
        _check_batch_normalisation(recipe, workers)


def _check_batch_normalisation(recipe: ResolvedRecipe, workers: int) -> None:
    """Raises UserError where batch normalisation would be given one number for each channel."""
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
    """Images to train on and the arithmetic that they need, from the trials' Recipes alone.

    Of a study that has begun, what is left of it: ``progress`` says how far its trials are.
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
    """The further trials of contenders that are certain, and those that may come.

    They are stand-ins for names while the contenders are unknown.
    """
    if progress is not None and progress.has_contenders:
        return list(progress.repeating), []
    least, most = further_to_run(study, progress or study.waiting_state())
    names = [f"further {number}" for number in range(most)]
    return names[:least], names[least:]


def longest(study: Study) -> int:
    """The epochs of the longest learning-rate schedule: of what a study adds when its settings have been compared."""
    return max(trials[0].recipe.schedule.epochs for trials in study.trials_by_setting())


def rerun_names(study: Study, progress: StudyState | None) -> list[str]:
    """The reruns of winners: by their names, or by stand-ins while the winners are unknown."""
    if progress is not None and progress.has_winners:
        return list(progress.confirming)
    return [f"rerun {number}" for number in range(reruns_to_run(study, progress or study.waiting_state()))]


def rerun_group(study: Study, progress: StudyState | None) -> Group:
    """The reruns of winners, which are not stopped early."""
    return Group(tuple(rerun_names(study, progress)), (), longest(study))


def dearest(study: Study, data: DatasetSummary) -> Recipe:
    """The Recipe of the setting that needs most arithmetic: what a rerun costs at most."""
    recipes = [trials[0].recipe for trials in study.trials_by_setting()]
    return max(recipes, key=lambda recipe: multiply_adds(recipe, data, recipe.schedule.epochs))


def training_multiply_adds(recipe: Recipe, classes: int, size: int | None = None) -> float:
    """Multiply-adds of training one image once: forward, backward, and SAM's ascent.

    ``size`` is the image's side in pixels, by default that of a full-size one.
    """
    return _training_multiply_adds(recipe, size or resolve(recipe).data.image_size, classes)


def multiply_adds(recipe: Recipe, data: DatasetSummary, epochs: int) -> float:
    """Multiply-adds of training for the first ``epochs`` epochs, each at its own image size."""
    data_recipe = resolve(recipe).data
    sizes = Counter(
        data_at_epoch(data_recipe, epoch, recipe.schedule.epochs).image_size for epoch in range(epochs)
    )
    return sum(
        _images(recipe, data, count) * _training_multiply_adds(recipe, size, len(data.class_names))
        for size, count in sizes.items()
    )


def trained_multiply_adds(recipe: Recipe, data: DatasetSummary, group: Group, epochs: int) -> float:
    """Multiply-adds of a trial of a group up to an epoch, over all the schedules that it has trained until then."""
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
    """Forward passes of the network that the training of one image is worth, SAM's ascent included."""
    sam = recipe.optimizer.sam
    one_pass = TRAINING_PER_FORWARD if recipe.model.trained == "all" else FROZEN_PER_FORWARD
    if sam.rho is None:
        return one_pass
    if sam.method == "esam":  # ascent on all images, a look at all, descent on the sharpest
        return one_pass + 1 + one_pass * sam.esam_data_share
    interval = sam.looksam_interval if sam.method == "looksam" else 1
    return one_pass * (1 + sam.ascent_share / interval)


def epoch_arithmetic(trials: Sequence[Trial], data: DatasetSummary) -> dict[str, float]:
    """{trial: multiply-adds of one of its epochs, of their mean where images grow}."""
    return {
        trial.name: multiply_adds(trial.recipe, data, trial.recipe.schedule.epochs)
        / trial.recipe.schedule.epochs
        for trial in trials
    }


def behind_it(trial: str, progress: StudyState | None) -> tuple[int, bool]:
    """The epochs that a trial has behind it, and whether it trains no more."""
    if progress is None or trial not in progress.trials:
        return 0, False
    held = progress.trials[trial]
    return held.epoch, held.state in ENDED_FOR_GOOD


def least_epochs(
    done: Sequence[float], ended: Sequence[bool], ladder: Sequence[tuple[int, int]], epochs: int
) -> list[int]:
    """The epoch that each of some trials that compete reaches at least: if every rung lets only its best through.

    ``done`` are the epochs that each has behind it, ``ended`` whether it trains no more; ``ladder`` is that of
    :meth:`nfnet_ray.study.halving.Halving.ladder`. Those that are ahead are taken to be let through.
    """
    targets, left = [], len(done)
    for rung, kept in ladder:
        targets += [rung] * (left - kept)
        left = kept
    targets += [epochs] * left
    result = [0] * len(done)
    for index, target in zip(sorted(range(len(done)), key=lambda index: done[index]), targets, strict=True):
        # A trial that is past a rung can be stopped at the next one only.
        result[index] = (
            math.ceil(done[index]) if ended[index] else max(target, next_rung(done[index], ladder, epochs))
        )
    return result


def ladder_in_epochs(group: Group, epoch_seconds: float | None) -> list[tuple[int, int]]:
    """A group's ladder with its rungs in epochs: if they are in seconds, by the training seconds of an epoch.

    Empty where these are not known yet.
    """
    if not group.in_seconds:
        return [(int(rung), kept) for rung, kept in group.ladder]
    if not epoch_seconds:
        return []
    return [(min(group.end, max(1, math.ceil(rung / epoch_seconds))), kept) for rung, kept in group.ladder]


def next_rung(done: float, ladder: Sequence[tuple[int, int]], epochs: int) -> int:
    """The epoch at which a trial with ``done`` epochs behind it can be stopped next, or ends."""
    return next((rung for rung, _ in ladder if rung >= done), epochs)


def makespan(seconds: Sequence[float], places: int) -> float:
    """The time that jobs of these lengths take, ``places`` at a time: at least that of the longest one."""
    return max(math.fsum(seconds) / places, max(seconds, default=0.0))
