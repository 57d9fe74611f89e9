"""The Recipe: everything that decides one training run.

A Recipe is a tree of frozen dataclasses (:mod:`nfnet_ray.settings` checks them). Every leaf has one dotted name
(``optimizer.agc.clip_factor``) that is the same in a study's space, in ``--set`` on a command line,
in MLflow's params and as a column of a table. A wrong value fails when the Recipe is built, with the
field, the value and what is allowed.

This module needs nothing but the standard library: the same Recipe is read by a driver that has no
torch in memory and by a worker on a machine that has only torch.

The defaults are the published ImageNet recipe of NFNet-F0 (Brock et al. 2021, appendix A.1 and the
official ``experiment_nfnets.py``); studies replace what their question needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nfnet_ray import settings
from nfnet_ray.settings import LARGEST_SIDE, RecipeError, Section, setting


@dataclass(frozen=True)
class Overrides(Section):
    """The official class's knobs; None keeps what the model's name stands for."""

    width: tuple[int, ...] | None = setting(None, "channels of each stage", at_least=1, at_most=65536)
    depth: tuple[int, ...] | None = setting(None, "blocks of each stage", at_least=1, at_most=1000)
    group_width: tuple[int, ...] | None = setting(
        None, "channels of one group of the 3x3 convolutions, for each stage", at_least=1, at_most=65536
    )
    expansion: tuple[float, ...] | None = setting(
        None, "bottleneck width / block output width, for each stage", above=0
    )
    se_ratio: float | None = setting(None, "squeeze-excite hidden width / channels", above=0)
    alpha: float | None = setting(None, "scale of the residual branch", above=0)
    activation: str | None = setting(None, "name of the activation, such as gelu or silu")

    def chosen(self) -> dict[str, Any]:
        """The knobs that are turned: {name: value} of those that are not None."""
        return {name: value for name, value in self.to_values().items() if value is not None}


@dataclass(frozen=True)
class ModelRecipe(Section):
    """Which network, what it starts from, and its regularisation. None stands for the variant's published value."""

    name: str = setting("nfnet_f0", "a name from nfnet_ray.models.list_models()")
    weights: str | None = setting(
        None,
        "a file of weights to start from (published, timm's, or our own), a study puts @sha256:… behind its name; "
        "none: weights drawn anew",
    )
    classifier: Literal["new", "loaded"] = setting(
        "new", "whether `weights` give the classifier too, which takes the same classes"
    )
    trained: Literal["all", "classifier"] = setting(
        "all", "what is trained; classifier: all else stays as it is, in evaluation mode"
    )
    dropout: float | None = setting(None, "drop rate before the classifier", at_least=0, below=1)
    stochastic_depth: float | None = setting(
        None, "largest drop rate of a residual branch", at_least=0, below=1
    )
    overrides: Overrides = Overrides()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier == "loaded" and self.weights is None:
            raise RecipeError(
                "model.classifier = 'loaded' is not allowed without model.weights, where it comes from: it takes new"
            )


@dataclass(frozen=True)
class MixingRecipe(Section):
    """MixUp and CutMix. With both, half of the images get the one and half the other (official dataset.py)."""

    mixup_alpha: float | None = setting(
        0.2, "MixUp's ratio is drawn from Beta(alpha, alpha); none: no MixUp", above=0
    )
    cutmix_alpha: float | None = setting(
        1.0, "CutMix's share of the area is drawn from Beta(alpha, alpha); none: no CutMix", above=0
    )
    partners: Literal["separate", "batch"] = setting(
        "separate", "what is mixed in: further images, read and cut for it (official), or the batch's own"
    )


@dataclass(frozen=True)
class RandAugmentRecipe(Section):
    """RandAugment with the official code's 16 operations."""

    layers: int = setting(
        4, "operations for each image, one after the other; 0: none", at_least=0, at_most=64
    )
    magnitude: float | None = setting(
        None,
        "strength of each operation, nominally 0 to 10; none: the variant's published one",
        at_least=0,
        at_most=100,
    )


@dataclass(frozen=True)
class ProgressiveRecipe(Section):
    """Training images that grow by epoch (docs/methods/progressive_size.md); `data.image_size` is the last size."""

    start_size: int | None = setting(
        None,
        "side of a training image in the first epoch, in pixels; none: always data.image_size",
        at_least=8,
        at_most=LARGEST_SIDE,
    )
    start_epoch: int = setting(0, "epochs that are done when images begin to grow", at_least=0)
    end_epoch: int | None = setting(
        None,
        "epochs that are done when they have data.image_size; none: all but the last, or all but the last stage",
        at_least=1,
    )
    stages: int | None = setting(
        None,
        "so many sizes, each for as many epochs as the others; none: a new size in each epoch",
        at_least=2,
    )
    step: int = setting(32, "sizes in between are rounded to a multiple of so many pixels", at_least=1)
    start_magnitude: float | None = setting(
        None,
        "RandAugment's magnitude at start_size, which grows with the size; none: always the same",
        at_least=0,
        at_most=100,
    )
    mixing_grows: bool = setting(False, "MixUp's and CutMix's alpha grow with the size, from 0 at start_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_epoch is not None and self.end_epoch <= self.start_epoch:
            raise RecipeError(
                f"data.progressive.end_epoch = {self.end_epoch} is not allowed: images grow from "
                f"data.progressive.start_epoch = {self.start_epoch} on, so it takes more than that"
            )

    def full_size_epoch(self, epochs: int) -> int:
        """The first of ``epochs`` epochs, counted from 0, whose images have the full size."""
        if self.end_epoch is not None:
            return self.end_epoch
        if self.stages is not None:
            return self.start_epoch + (epochs - self.start_epoch) * (self.stages - 1) // self.stages
        return epochs - 1


@dataclass(frozen=True)
class DataRecipe(Section):
    """Which images, and what is done to them. None stands for the variant's published value."""

    path: str = setting("", "a data set converted by data_prep (where it lies does not change the result)")
    image_size: int | None = setting(
        None, "side of a training image in pixels", at_least=8, at_most=LARGEST_SIDE
    )
    progressive: ProgressiveRecipe = ProgressiveRecipe()
    eval_size: int | None = setting(
        None, "side of a validation image in pixels", at_least=8, at_most=LARGEST_SIDE
    )
    crop: Literal["random_resized", "padded", "whole"] = setting(
        "random_resized", "how a training image is cut: Inception crop, shift by crop_padding, or whole"
    )
    crop_padding: int = setting(
        4, "largest shift of the padded crop in pixels", at_least=0, at_most=LARGEST_SIDE - 1
    )
    flip: bool = setting(True, "mirror half of the training images left to right")
    mixing: MixingRecipe = MixingRecipe()
    randaugment: RandAugmentRecipe = RandAugmentRecipe()
    autoaugment: bool = setting(False, "AutoAugment's ImageNet policy, in place of RandAugment")
    eval_crop: Literal["squash", "central"] = setting(
        "squash",
        "how a validation image is cut: both sides to eval_size + 32 and the centre of that (official NFNet), "
        "or the central square of the shorter side (the usual way)",
    )
    resident: Literal["auto", "always", "never"] = setting(
        "auto", "decode once and keep in memory, or decode in every epoch"
    )
    on_damaged: Literal["stop", "skip"] = setting(
        "stop",
        "what a damaged image comes to: an error with its name, or it is counted and the next sound one stands in "
        "(in evaluation it is left out)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        start_size = self.progressive.start_size
        if start_size is not None and self.image_size is not None and start_size > self.image_size:
            raise RecipeError(
                f"data.progressive.start_size = {start_size} is not allowed: images grow to "
                f"data.image_size = {self.image_size}, so it takes at most that"
            )
        if self.crop == "padded" and self.image_size is not None and self.crop_padding >= self.image_size:
            raise RecipeError(
                f"data.crop_padding = {self.crop_padding} is not allowed: it would shift images of "
                f"data.image_size = {self.image_size} out of sight, so it takes less than that"
            )


@dataclass(frozen=True)
class AGCRecipe(Section):
    """Adaptive gradient clipping (paper section 4)."""

    clip_factor: float | None = setting(
        0.01, "largest allowed gradient norm / parameter norm of a unit; none does not clip", above=0
    )
    eps: float = setting(1e-3, "lower bound on the parameter norm (official optim.py)", above=0)
    exclude: tuple[str, ...] = setting(
        ("classifier.weight",), "parameters that are never clipped, by name (paper section 4.1)"
    )


@dataclass(frozen=True)
class SAMRecipe(Section):
    """Sharpness-aware minimisation (Foret et al. 2021; NFNet paper appendix A.4) and its relatives."""

    rho: float | None = setting(
        None, "length of the ascent step in the space of the weights; none: no SAM", above=0
    )
    method: Literal["sam", "asam", "looksam", "esam"] = setting("sam", "which form of SAM")
    ascent_share: float = setting(
        1.0, "share of the batch, its first images, that the ascent gradient is taken on", above=0, at_most=1
    )
    perturbation: Literal["replica", "global", "micro_batch"] | None = setting(
        None,
        "what has an ascent step of its own: each worker, the whole batch (synchronised), or each micro-batch; "
        "none: each worker, and for looksam the whole batch",
    )
    share_masks: bool = setting(
        True, "the same dropout and stochastic depth in the ascent and the descent pass"
    )
    asam_eta: float = setting(0.01, "asam: added to the weights' sizes (Kwon et al. 2021)", at_least=0)
    looksam_interval: int = setting(
        5, "looksam: steps from one ascent to the next (Liu et al. 2022)", at_least=1
    )
    looksam_alpha: float = setting(
        0.7, "looksam: weight of the kept direction in the steps between (Liu et al. 2022)", at_least=0
    )
    esam_weight_share: float = setting(
        0.6, "esam: share of the weights that one ascent step moves (Du et al. 2022)", above=0, at_most=1
    )
    esam_data_share: float = setting(
        0.5,
        "esam: share of the images, the sharpest, that the descent sees (Du et al. 2022)",
        above=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "looksam" and self.perturbation not in (None, "global"):
            raise RecipeError(
                f"optimizer.sam.perturbation = {self.perturbation!r} is not allowed with looksam, whose direction "
                "is kept for all workers: it takes global, or none"
            )
        if self.method == "esam" and self.ascent_share != 1:
            raise RecipeError(
                f"optimizer.sam.ascent_share = {self.ascent_share!r} is not allowed with esam, which compares the "
                "losses of all images: it takes 1"
            )


@dataclass(frozen=True)
class EMARecipe(Section):
    """The running mean of the weights that is evaluated (official utils.py, experiment_nfnets.py)."""

    decay: float | None = setting(
        0.99999,
        "decay of the moving average; none: no average, the weights are evaluated",
        at_least=0,
        below=1,
    )
    warmup: bool = setting(True, "at most (1 + t) / (10 + t) at step t, so that the mean forgets the start")


@dataclass(frozen=True)
class OptimizerRecipe(Section):
    """SGD with Nesterov momentum and coupled weight decay (official optim.py), or TensorFlow's RMSProp."""

    name: Literal["sgd", "rmsprop"] = setting(
        "sgd", "SGD for NFNets, RMSProp as TensorFlow's for EfficientNets"
    )
    momentum: float = setting(0.9, "momentum", at_least=0, below=1)
    nesterov: bool = setting(True, "sgd: look ahead along the momentum")
    rmsprop_decay: float = setting(0.9, "rmsprop: decay of the moving mean square", at_least=0, below=1)
    rmsprop_eps: float = setting(1e-3, "rmsprop: added to the mean square, inside the root", above=0)
    weight_decay: float = setting(2e-5, "decay of the parameters named by `decayed`", at_least=0)
    decayed: Literal["weights", "all_but_norm"] = setting(
        "weights",
        "what weight decay acts on: conv and linear weights (NFNets), or all but the normalisation's (EfficientNets)",
    )
    agc: AGCRecipe = AGCRecipe()
    sam: SAMRecipe = SAMRecipe()
    ema: EMARecipe = EMARecipe()


@dataclass(frozen=True)
class ScheduleRecipe(Section):
    """Linear warm-up from 0, then a cosine to 0 (paper appendix A.1) or stairs (EfficientNet, ResNet)."""

    epochs: int = setting(360, "passes over the training images", at_least=1, at_most=100_000)
    warmup_epochs: float = setting(5.0, "epochs of linear warm-up; fractions count", at_least=0)
    base_learning_rate: float = setting(0.1, "peak learning rate for each 256 images of the batch", above=0)
    shape: Literal["cosine", "staircase"] = setting("cosine", "how the learning rate falls after the warm-up")
    decay_factor: float = setting(
        0.97, "staircase: the learning rate after a stair / before it", above=0, at_most=1
    )
    decay_epochs: float = setting(2.4, "staircase: epochs of one stair, counted from the start", above=0)


@dataclass(frozen=True)
class LossRecipe(Section):
    """Softmax cross-entropy."""

    label_smoothing: float = setting(0.1, "share of the target spread over all classes", at_least=0, below=1)


@dataclass(frozen=True)
class Recipe(Section):
    """Everything that decides one training run.

    >>> recipe = Recipe().with_values({"optimizer.agc.clip_factor": 0.04, "batch_size": 1024})
    >>> recipe.optimizer.agc.clip_factor, recipe.peak_learning_rate
    (0.04, 0.4)
    """

    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    loss: LossRecipe = LossRecipe()
    batch_size: int = setting(4096, "images of one optimiser step, over all workers", at_least=1)
    micro_batches: int = setting(
        1, "parts of a worker's share of a batch, one after the other (gradient accumulation)", at_least=1
    )
    precision: Literal["float32", "bfloat16", "float64"] = setting(
        "float32", "type of the arithmetic of a step; weights are float32 (float64 with float64, for checks)"
    )
    memory_format: Literal["contiguous", "channels_last", "auto"] = setting(
        "contiguous",
        "layout of activations; auto: the one that is faster in a few steps before the first one",
    )
    compile: bool = setting(False, "translate the network by torch.compile before the first step")
    seed: int = setting(0, "seed of weights, order, augmentation and dropout", at_least=0)
    signal_epochs: int = setting(
        0,
        "epochs from one measurement of the activations' variance, block by block, to the next; 0: none",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        growth, epochs = self.data.progressive, self.schedule.epochs
        full_size_epoch = growth.full_size_epoch(epochs)
        if growth.start_size is not None and not growth.start_epoch < full_size_epoch < epochs:
            raise RecipeError(
                f"data.progressive: images that grow from epoch {growth.start_epoch} to {full_size_epoch} do not "
                f"reach data.image_size within schedule.epochs = {epochs}: take more epochs, an earlier end_epoch, "
                "or start_size none"
            )

    @property
    def peak_learning_rate(self) -> float:
        """The largest learning rate: ``base_learning_rate * batch_size / 256`` (paper appendix A.1)."""
        return self.schedule.base_learning_rate * self.batch_size / 256

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> Recipe:
        """The Recipe whose :meth:`to_values`, possibly through JSON, gave ``values``.

        Raises RecipeError where a field is missing: another version wrote the values, and a default in its
        place would be another run.
        """
        missing = [name for name in Recipe().to_values() if name not in values]
        if missing:
            raise RecipeError(
                f"{', '.join(missing)}: not in this Recipe, which another version of nfnet_ray wrote; start anew"
            )
        return Recipe().with_values(values)

    def fingerprint(self) -> str:
        """12 hex digits that are equal for two Recipes that train the same network on the same bytes.

        Where the data lies on this machine is left out; which data it is, the data set's own
        fingerprint says. Of a file of weights the content counts, if the Recipe says it (see
        :func:`split_weights`), and not where it lies.
        """
        values = decisive_values(self.to_values())
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


WEIGHTS_DIGEST_MARK = "@sha256:"


def split_weights(weights: str) -> tuple[str, str | None]:
    """``model.weights`` as (path, SHA-256 of the content in hex), None where the content is left open.

    >>> split_weights("weights/F0_haiku.npz@sha256:a1b2")
    ('weights/F0_haiku.npz', 'a1b2')
    """
    path, mark, digest = weights.rpartition(WEIGHTS_DIGEST_MARK)
    return (path, digest) if mark else (weights, None)


def decisive_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the ``values`` of a Recipe those that decide its result.

    Without the place of the data, which have a fingerprint of their own, and of a file of weights its content
    alone, where that is said.
    """
    decisive = {name: value for name, value in values.items() if name != "data.path"}
    if decisive.get("model.weights") is not None:
        path, digest = split_weights(decisive["model.weights"])
        decisive["model.weights"] = f"sha256:{digest}" if digest else path
    return decisive


def field_meanings() -> dict[str, str]:
    """{dotted name: what it means and what it takes} of every Recipe field, for help texts."""
    return settings.field_meanings(Recipe)


def parse_setting(text: str) -> tuple[str, Any]:
    """``"optimizer.agc.clip_factor=0.02"`` as (dotted name, value); ``none`` is None.

    Raises RecipeError if there is no ``=``, nothing behind it, or no such field. The value is checked when a Recipe is
    built with it.
    """
    return settings.parse_setting(Recipe, text)
