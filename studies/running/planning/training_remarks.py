"""Warnings of a plan about a training that is too short, or compared too early, for its question."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import fmean

from nfnet_ray.data.batching import batches_per_epoch, images_of_share
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.models.baselines import BASELINES, TENSORFLOW_BATCH_NORM_MOMENTUM
from nfnet_ray.models.variants import get_variant, list_models
from nfnet_ray.optim.ema import ema_decay
from nfnet_ray.optim.schedule import learning_rate_at
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.forecast import rung_table
from nfnet_ray.study.space.late_fields import LATE_ENOUGH, compared_early
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.labels import short_names
from nfnet_ray.wording import agree, count, in_a_row, percent

MOST_WARMUP = 1 / 2
"""Of all epochs. Published Recipes have 1/72 of them, and the studies 1/8."""
MOST_LEFT_OF_PEAK = 0.1
"""Of the peak learning rate, at the end of the stairs. The published ones of EfficientNet and ResNet-50 end at 0.01."""
MOST_OF_INITIAL = 0.05
"""Of the initial weights or statistics, in a moving average."""
LEAST_GAIN = 0.1
"""Of a residual branch: with alpha 0.2 its variance is then 0.0004 of the shortcut's."""

# What acts within residual branches alone.
_IN_BRANCHES = (
    "model.stochastic_depth",
    *(f"model.overrides.{name}" for name in ("alpha", "squeeze_excite", "se_ratio", "depth", "expansion")),
)


def training_remarks(study: Study, data: DatasetSummary) -> list[str]:
    """A sentence for each kind of problem, of the first trial that has it."""
    found: dict[str, str] = {}
    recipes = [study.recipe, *(trial.recipe for trial in study.trials())]
    first_rung = _first_rung(study)
    for recipe in recipes:
        steps = _steps_per_epoch(recipe, data)
        for kind, sentence in (*_of_schedule(recipe, steps), *_of_averages(recipe, steps, first_rung)):
            found.setdefault(kind, sentence)
    return [
        *found.values(),
        *_compared_early(study, first_rung),
        *_idle_branches(study, recipes, data),
        *_same_averages(study, recipes, data),
    ]


def _first_rung(study: Study) -> float:
    """The epoch at which trials are compared first; infinite if none is given up, or if rungs are in seconds."""
    if study.halving is None or study.halving.in_seconds or len(rung_table(study)) < 2:
        return math.inf
    return rung_table(study)[0][0]


def _of_schedule(recipe: Recipe, steps: int) -> Iterator[tuple[str, str]]:
    """Whether the warm-up and the stairs fit the number of epochs, each of ``steps`` steps."""
    schedule, epochs = recipe.schedule, recipe.schedule.epochs
    if schedule.warmup_epochs > MOST_WARMUP * epochs:
        share = min(1.0, schedule.warmup_epochs / epochs)
        said = (
            f"The learning rate rises for {percent(share)} of the training: schedule.warmup_epochs="
            f"{schedule.warmup_epochs:g} is for more than {count(epochs, 'epoch')}. For an eighth of the training: "
            f"--set schedule.warmup_epochs={epochs / 8:g}"
        )
        yield "warm-up", said
    if schedule.shape == "staircase" and schedule.decay_factor < 1:
        last = learning_rate_at(epochs * steps - 1, schedule, peak=1.0, steps_per_epoch=steps)
        stairs = math.log(MOST_LEFT_OF_PEAK**2) / math.log(schedule.decay_factor)
        said = (
            f"The learning rate ends at {percent(last)} of its peak: stairs of schedule.decay_epochs="
            f"{schedule.decay_epochs:g} are for a longer training. To end at 1%: --set schedule.decay_epochs="
            f"{epochs / stairs:.2g}"
        )
        if last > MOST_LEFT_OF_PEAK:
            yield "stairs", said


def _of_averages(recipe: Recipe, steps: int, first_rung: float) -> Iterator[tuple[str, str]]:
    """Whether what is evaluated where trials are first compared, or at the end, has forgotten its beginning."""
    epoch = min(first_rung, recipe.schedule.epochs)
    before = count(round(epoch * steps), "step")
    baseline, average = BASELINES.get(recipe.model.name), recipe.optimizer.ema
    if baseline is not None and baseline.has_tensorflow_form and recipe.model.weights is None:
        left = (1 - TENSORFLOW_BATCH_NORM_MOMENTUM) ** (epoch * steps)
        said = (
            f"Batch normalisation is evaluated after epoch {epoch:g} with statistics that are the initial ones by "
            f"{percent(left)}: {recipe.model.name} has TensorFlow's momentum of 0.99, which is for more than {before}. "
            "For more steps: a smaller batch_size, or more epochs"
        )
        if left > MOST_OF_INITIAL:
            yield "statistics", said
    if average.decay is not None and not average.warmup:
        left = average.decay ** (epoch * steps)
        said = (
            f"What is evaluated after epoch {epoch:g} is a moving average that consists of the initial weights by "
            f"{percent(left)}: optimizer.ema.decay={average.decay:g} is for more than {before}. To forget them: "
            "--set optimizer.ema.warmup=true"
        )
        if left > MOST_OF_INITIAL:
            yield "average", said


def _compared_early(study: Study, first_rung: float) -> Iterator[str]:
    halving = study.halving
    if halving is None:
        return
    early = compared_early(study.fields, first_rung, study.epochs, is_stretched=halving.is_stretched)
    if early:
        names = short_names(study.fields)
        later = replace(halving, first_rung=math.ceil(LATE_ENOUGH * study.epochs), eta=2)
        yield (
            f"Trials are compared from epoch {first_rung:g} of {study.epochs:,} on. The best "
            f"{in_a_row([names[field] for field in early])} may {agree(len(early), 'be another one', 'be others')} "
            f"there than at the end (docs/early_stopping.md). To compare later: --early-stopping {later.text()}"
        )


def _idle_branches(study: Study, recipes: Iterable[Recipe], data: DatasetSummary) -> Iterator[str]:
    """Where a swept field acts in branches whose gains cannot have grown."""
    names = short_names(study.fields)
    fields = [names[field] for field in study.fields if field in _IN_BRANCHES]
    if not fields:
        return
    # A study has up to 10,000 settings, most of which are alike in this.
    unlike = {
        (
            one.model.name,
            one.model.overrides,
            one.optimizer.agc,
            one.schedule,
            one.batch_size,
            one.data.train_share,
        ): one
        for one in recipes
    }
    largest = max((_largest_gain(recipe, data) for recipe in unlike.values()), default=math.inf)
    if largest < LEAST_GAIN:
        yield (
            f"The residual branches, in which {in_a_row(fields)} {agree(len(fields), 'acts', 'act')}, hardly take "
            f"part: AGC lets their gains grow from 0 to at most {largest:.1g} in so few steps "
            "(docs/methods/residual_branches.md). Without the gains: --set model.overrides.skip_gain=false"
        )


def _same_averages(study: Study, recipes: Iterable[Recipe], data: DatasetSummary) -> Iterator[str]:
    """Where decays are swept that the warm-up of the average does not reach."""
    if "optimizer.ema.decay" not in study.fields:
        return
    beyond: dict[tuple[int, float], set[float]] = {}
    for recipe in recipes:
        decay, steps = recipe.optimizer.ema.decay, recipe.schedule.epochs * _steps_per_epoch(recipe, data)
        last = ema_decay(steps - 1, 1.0)
        if recipe.optimizer.ema.warmup and decay is not None and decay >= last:
            beyond.setdefault((steps, last), set()).add(decay)
    for (steps, last), decays in beyond.items():
        if len(decays) > 1:
            yield (
                f"optimizer.ema.decay {in_a_row([f'{one:g}' for one in sorted(decays)])} are the same training: while "
                f"the average warms up, its decay is less, and {last:.3f} after the {count(steps, 'step')}. For larger "
                "ones: --set optimizer.ema.warmup=false"
            )
            return


def _largest_gain(recipe: Recipe, data: DatasetSummary) -> float:
    """A bound on the gain of a residual branch at the end of training; infinite where nothing holds it.

    A step moves a gain s by at most the learning rate times clip factor times max(|s|, eps), and momentum adds such
    steps up: the bound grows linearly up to eps, and exponentially from there on.
    """
    agc, model = recipe.optimizer.agc, recipe.model
    if agc.clip_factor is None or model.weights is not None or model.name not in list_models():
        return math.inf
    if not get_variant(model.name, model.overrides.chosen()).skip_gain:
        return math.inf
    steps = _steps_per_epoch(recipe, data)
    all_steps, peak = recipe.schedule.epochs * steps, recipe.peak_learning_rate
    mean = fmean(
        learning_rate_at(step, recipe.schedule, peak=peak, steps_per_epoch=steps)
        for step in _sampled(all_steps)
    )
    total = mean * all_steps * agc.clip_factor / (1 - recipe.optimizer.momentum)
    if total > math.log(1 / agc.eps):
        return math.inf
    return agc.eps * (total if total < 1 else math.exp(total - 1))


def _sampled(steps: int) -> range:
    """Steps at which the learning rate is looked at: a thousand of them, spread over all."""
    return range(0, max(1, steps), max(1, steps // 1000))


def _steps_per_epoch(recipe: Recipe, data: DatasetSummary) -> int:
    images = images_of_share(data.train_images, recipe.data.train_share)
    return max(1, batches_per_epoch(images, recipe.batch_size))
