"""The Recipe: everything that decides one training run.

A Recipe is a tree of frozen dataclasses (:mod:`nfnet_ray.settings` checks them). Every leaf has one dotted name
(``optimizer.agc.clip_factor``) that is the same in a study's space, in ``--set`` on a command line,
in MLflow's params and as a column of a table. A wrong value fails when the Recipe is built, with the
field, the value and what is allowed.

This module needs only the standard library. A driver that has not imported torch reads the same Recipe as a worker on a
machine that has nothing but torch.

The defaults are the published ImageNet recipe of NFNet-F0 (Brock et al. 2021, appendix A.1 and the
official ``experiment_nfnets.py``). Studies replace the values that their question concerns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nfnet_ray import settings
from nfnet_ray.settings import LARGEST_SIDE, RecipeError, Section, required, setting


@dataclass(frozen=True)
class Overrides(Section):
    """Changes to the network's shape, by the arguments of the official class. None keeps the named model's value."""

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
    weight_standardisation: bool | None = setting(
        None, "standardise the convolutions' weights; false: use them as they are"
    )
    squeeze_excite: bool | None = setting(None, "false: leave squeeze-excite out")
    skip_gain: bool | None = setting(
        None, "multiply each residual branch by a trained scalar that starts at 0; false: by 1"
    )
    batch_norm: bool | None = setting(
        None, "true: batch normalisation after each convolution, in place of scaled weight standardisation"
    )

    def chosen(self) -> dict[str, Any]:
        """{name: value} of the overrides that are not None."""
        return {name: value for name, value in self.to_values().items() if value is not None}


@dataclass(frozen=True)
class ModelRecipe(Section):
    """The network, its initial weights and its regularisation. None is replaced by the model's published value."""

    name: str = setting(
        "nfnet_f0",
        "a name from nfnet_ray.models.list_models(), or module:function of a network of your own; a study appends "
        "@sha256:… of its code",
    )
    weights: str | None = setting(
        None,
        "file of weights to start from (published, timm's or nfnet_ray's); a study appends @sha256:… to its name; "
        "none: random initial weights",
    )
    classifier: Literal["new", "loaded"] = setting(
        "new", "a new classifier, or the one loaded from `weights`, which needs the same classes"
    )
    trained: Literal["all", "classifier"] = setting(
        "all", "all: train the whole network; classifier: everything else is frozen, in evaluation mode"
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

    @property
    def label(self) -> str:
        """The name of the model for people, without the hash of a user's own code."""
        return split_weights(self.name)[0]

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own network, named by an import path (:mod:`nfnet_ray.models.own`)."""
        return is_import_path(self.name)


@dataclass(frozen=True)
class MixingRecipe(Section):
    """MixUp and CutMix. With both, each is applied to half of the images (official dataset.py)."""

    mixup_alpha: float | None = setting(
        0.2, "MixUp's ratio is drawn from Beta(alpha, alpha); none: no MixUp", above=0
    )
    cutmix_alpha: float | None = setting(
        1.0, "CutMix's share of the area is drawn from Beta(alpha, alpha); none: no CutMix", above=0
    )
    partners: Literal["separate", "batch"] = setting(
        "separate", "the images to mix with: additional ones (official), or others of the same batch"
    )


@dataclass(frozen=True)
class RandAugmentRecipe(Section):
    """RandAugment with the official code's 16 operations."""

    layers: int = setting(
        4, "operations for each image, one after the other; 0: none", at_least=0, at_most=64
    )
    magnitude: float | None = setting(
        None,
        "strength of each operation, nominally 0 to 10; none: the model's published one",
        at_least=0,
        at_most=100,
    )


@dataclass(frozen=True)
class ProgressiveRecipe(Section):
    """Training images whose size grows by epoch, up to `data.image_size` (docs/methods/progressive_size.md)."""

    start_size: int | None = setting(
        None,
        "side of a training image in the first epoch, in pixels; none: always data.image_size",
        at_least=8,
        at_most=LARGEST_SIDE,
    )
    start_epoch: int = setting(0, "number of epochs before images begin to grow", at_least=0)
    end_epoch: int | None = setting(
        None,
        "number of epochs before they reach data.image_size; none: all but the last, or all but the last stage",
        at_least=1,
    )
    stages: int | None = setting(
        None,
        "number of sizes, each used for the same number of epochs; none: a new size every epoch",
        at_least=2,
    )
    step: int = setting(32, "sizes in between are rounded to a multiple of this many pixels", at_least=1)
    start_magnitude: float | None = setting(
        None,
        "RandAugment's magnitude at start_size, growing with the size; none: the same at all sizes",
        at_least=0,
        at_most=100,
    )
    mixing_grows: bool = setting(
        False, "let MixUp's and CutMix's alpha grow with the size, from 0 at start_size"
    )

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
    """The images, and how they are cropped and augmented. None is replaced by the model's published value."""

    path: str = setting("", "a data set converted by data_prep (its location does not affect the result)")
    train_share: float = setting(
        1.0,
        "share of the training images that is used: the same images in every epoch and trial, drawn by their hashes "
        "within each class; a larger share contains those of a smaller one",
        above=0,
        at_most=1,
    )
    image_size: int | None = setting(
        None, "side of a training image in pixels", at_least=8, at_most=LARGEST_SIDE
    )
    progressive: ProgressiveRecipe = ProgressiveRecipe()
    eval_size: int | None = setting(
        None, "side of a validation image in pixels", at_least=8, at_most=LARGEST_SIDE
    )
    crop: Literal["random_resized", "padded", "whole"] = setting(
        "random_resized", "crop of a training image: Inception crop, shift by up to crop_padding, or none"
    )
    crop_padding: int = setting(
        4, "largest shift of the padded crop in pixels", at_least=0, at_most=LARGEST_SIDE - 1
    )
    flip: bool = setting(True, "mirror half of the training images left to right")
    mixing: MixingRecipe = MixingRecipe()
    randaugment: RandAugmentRecipe = RandAugmentRecipe()
    autoaugment: bool = setting(False, "AutoAugment's ImageNet policy, in place of RandAugment")
    eval_crop: Literal["squash", "central", "whole"] = setting(
        "squash",
        "crop of a validation image: resize both sides to eval_size + 32 and take the centre (official NFNet), "
        "take the central square of the shorter side (the usual way), or none, for small images",
    )
    resident: Literal["auto", "always", "never"] = setting(
        "auto", "decode images once and keep them in memory, or decode them in every epoch"
    )
    on_damaged: Literal["stop", "skip"] = setting(
        "stop",
        "what to do with a damaged image: stop and name it, or skip it (count it and use the next good image instead; "
        "evaluation leaves it out)",
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
        0.01, "largest allowed gradient norm / parameter norm of a unit; none: no clipping", above=0
    )
    eps: float = setting(1e-3, "lower bound on the parameter norm (official optim.py)", above=0)
    exclude: tuple[str, ...] = setting(
        ("classifier.weight",),
        "parameters that are never clipped, by name or by a pattern such as stem.* (paper section 4.1)",
    )


@dataclass(frozen=True)
class SAMRecipe(Section):
    """Sharpness-aware minimisation (Foret et al. 2021; NFNet paper appendix A.4) and its relatives."""

    rho: float | None = setting(
        None, "length of the ascent step in the space of the weights; none: no SAM", above=0
    )
    method: Literal["sam", "asam", "looksam", "esam"] = setting("sam", "which form of SAM")
    ascent_share: float = setting(
        1.0, "share of the batch, its first images, used for the ascent gradient", above=0, at_most=1
    )
    perturbation: Literal["replica", "global", "micro_batch"] | None = setting(
        None,
        "what has its own ascent step: each worker, the whole batch (synchronised), or each micro-batch; "
        "none: each worker, or for looksam the whole batch",
    )
    share_masks: bool = setting(
        True, "use the same dropout and stochastic depth in the ascent and the descent pass"
    )
    asam_eta: float = setting(0.01, "asam: added to the weights' magnitudes (Kwon et al. 2021)", at_least=0)
    looksam_interval: int = setting(
        5, "looksam: steps from one ascent to the next (Liu et al. 2022)", at_least=1
    )
    looksam_alpha: float = setting(
        0.7, "looksam: weight of the stored direction in the steps in between (Liu et al. 2022)", at_least=0
    )
    esam_weight_share: float = setting(
        0.6, "esam: share of the weights moved by one ascent step (Du et al. 2022)", above=0, at_most=1
    )
    esam_data_share: float = setting(
        0.5,
        "esam: share of the images, the sharpest, used for the descent (Du et al. 2022)",
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
    """The moving average of the weights, which is evaluated (official utils.py, experiment_nfnets.py)."""

    decay: float | None = setting(
        0.99999,
        "decay of the moving average; none: no average, the weights are evaluated",
        at_least=0,
        below=1,
    )
    warmup: bool = setting(
        True, "limit the decay to (1 + t) / (10 + t) at step t, to forget the initial weights"
    )


@dataclass(frozen=True)
class OptimizerRecipe(Section):
    """SGD with Nesterov momentum and coupled weight decay (official optim.py), or TensorFlow's RMSProp."""

    name: Literal["sgd", "rmsprop"] = setting(
        "sgd", "SGD (NFNets), or RMSProp in TensorFlow's form (EfficientNets)"
    )
    momentum: float = setting(0.9, "momentum", at_least=0, below=1)
    nesterov: bool = setting(True, "sgd: Nesterov momentum")
    rmsprop_decay: float = setting(0.9, "rmsprop: decay of the moving mean square", at_least=0, below=1)
    rmsprop_eps: float = setting(1e-3, "rmsprop: added to the mean square, inside the root", above=0)
    weight_decay: float = setting(2e-5, "weight decay of the parameters chosen by `decayed`", at_least=0)
    decayed: Literal["weights", "all_but_norm"] = setting(
        "weights",
        "parameters with weight decay: conv and linear weights (NFNets), or all but normalisation's (EfficientNets)",
    )
    agc: AGCRecipe = AGCRecipe()
    sam: SAMRecipe = SAMRecipe()
    ema: EMARecipe = EMARecipe()


@dataclass(frozen=True)
class ScheduleRecipe(Section):
    """Linear warm-up from 0, then a cosine to 0 (paper appendix A.1) or stairs (EfficientNet, ResNet)."""

    epochs: int = setting(360, "passes over the training images", at_least=1, at_most=100_000)
    warmup_epochs: float = setting(5.0, "epochs of linear warm-up; may be a fraction", at_least=0)
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
        1, "parts into which a worker's share of a batch is split (gradient accumulation)", at_least=1
    )
    precision: Literal["float32", "bfloat16", "float64"] = setting(
        "float32", "dtype of a step's arithmetic; weights are float32 (float64 with float64, for checks)"
    )
    memory_format: Literal["contiguous", "channels_last", "auto"] = setting(
        "contiguous",
        "memory layout of activations; auto: on a CPU channels_last, but contiguous in bfloat16; on a GPU the faster "
        "one, timed before training",
    )
    compile: Literal["max-autotune-no-cudagraphs", "auto"] | bool = setting(
        False,
        "compile the network with torch.compile before the first step; max-autotune-no-cudagraphs: choose among more "
        "kernels by timing them; auto: whatever is faster, timed before training if the run is long enough",
    )
    grouped_convolutions: Literal["whole", "sliced_weight_gradient", "sliced_gradients", "sliced", "auto"] = (
        setting(
            "whole",
            "an NFNet's grouped convolutions: whole; sliced: one dense convolution for each group, in all passes or in "
            "those of the gradients; auto: on a CPU whole, on a GPU the fastest, timed before training",
        )
    )
    activation_memory_budget: float = setting(
        1.0,
        "with compile: share of the usual activations that is kept for the backward pass; the others are recomputed",
        above=0,
        at_most=1,
    )
    capture: Literal["auto", "never"] = setting(
        "auto",
        "on a GPU, capture the whole step as one CUDA graph, with the same bits; auto: if possible; never: launch each "
        "kernel",
    )
    seed: int = setting(0, "seed of weights, order, augmentation and dropout", at_least=0)
    signal_epochs: int = setting(
        0,
        "number of epochs between measurements of each block's activation variance; 0: none",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation_memory_budget < 1 and self.compile in (False, "auto"):
            raise RecipeError(
                f"activation_memory_budget = {self.activation_memory_budget:g} is not allowed with "
                f"compile = {str(self.compile).lower()}: the compiler keeps to it, so it takes compile = true"
            )
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
        """The Recipe with these values, which are those of :meth:`to_values`, possibly read from JSON.

        Raises RecipeError if a field is missing or unknown. The values are then from another version, and a default
        might make it a different run.
        """
        known = Recipe().to_values()
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise RecipeError(
                f"{', '.join(unknown)}: unknown in this Recipe of a newer version of nfnet_ray; use that version"
            )
        missing = [name for name in known if name not in values]
        if missing:
            raise RecipeError(
                f"{', '.join(missing)}: missing in this Recipe of another version of nfnet_ray; start a new study"
            )
        return Recipe().with_values(values)

    @staticmethod
    def from_any_version(values: Mapping[str, Any]) -> Recipe:
        """Like :meth:`from_values`, for values of any version. The Recipe is for display and not for training.

        A missing field gets its default, and an unknown one is left out. Raises RecipeError for a value that is no
        longer allowed.
        """
        known = Recipe().to_values()
        return Recipe.from_values(known | {name: value for name, value in values.items() if name in known})

    def fingerprint(self) -> str:
        """A hash of 12 hex digits, which is equal for two Recipes that train the same network on the same bytes.

        The path of the data is left out, because the data set has its own fingerprint. A file of weights enters with
        its content, if the Recipe states that (see :func:`split_weights`), and not with its path.
        """
        values = decisive_values(self.to_values())
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ResolvedModel(ModelRecipe):
    """A ModelRecipe that leaves nothing to the published values."""

    dropout: float = required(ModelRecipe, "dropout")
    stochastic_depth: float = required(ModelRecipe, "stochastic_depth")


@dataclass(frozen=True)
class ResolvedRandAugment(RandAugmentRecipe):
    """A RandAugmentRecipe that leaves nothing to the published values."""

    magnitude: float = required(RandAugmentRecipe, "magnitude")


@dataclass(frozen=True)
class ResolvedData(DataRecipe):
    """A DataRecipe that leaves nothing to the published values."""

    image_size: int = required(DataRecipe, "image_size")
    eval_size: int = required(DataRecipe, "eval_size")
    randaugment: ResolvedRandAugment = required(DataRecipe, "randaugment")  # noqa: RUF009 (it makes a field)


@dataclass(frozen=True)
class ResolvedRecipe(Recipe):
    """A Recipe with the published values of its model filled in (:func:`nfnet_ray.models.published.resolve`).

    Its names, values and fingerprint equal those of a Recipe with the same values.
    """

    model: ResolvedModel = required(Recipe, "model")  # noqa: RUF009
    data: ResolvedData = required(Recipe, "data")  # noqa: RUF009


WEIGHTS_DIGEST_MARK = "@sha256:"


def split_weights(weights: str) -> tuple[str, str | None]:
    """``model.weights`` as (path, SHA-256 of the content in hex); None if the content is not stated.

    >>> split_weights("weights/F0_haiku.npz@sha256:a1b2")
    ('weights/F0_haiku.npz', 'a1b2')
    """
    path, mark, digest = weights.rpartition(WEIGHTS_DIGEST_MARK)
    return (path, digest) if mark else (weights, None)


def is_import_path(name: str) -> bool:
    """Whether ``model.name`` names a user's own network, as ``module:function`` with or without a hash.

    >>> is_import_path("my_net:build@sha256:0123456789ab"), is_import_path("nfnet_f0")
    (True, False)
    """
    return ":" in split_weights(name)[0]


def decisive_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a Recipe that decide the result of its run.

    The path of the data is left out, because the data set has its own fingerprint. A file of weights is represented by
    its content, if that is stated.
    """
    decisive = {name: value for name, value in values.items() if name != "data.path"}
    if decisive.get("model.weights") is not None:
        path, digest = split_weights(decisive["model.weights"])
        decisive["model.weights"] = f"sha256:{digest}" if digest else path
    return decisive


def field_meanings() -> dict[str, str]:
    """{dotted name: meaning and allowed values} of every Recipe field, for help texts."""
    return settings.field_meanings(Recipe)


def parse_setting(text: str) -> tuple[str, Any]:
    """``"optimizer.agc.clip_factor=0.02"`` as (dotted name, value); ``none`` is None.

    Raises RecipeError if there is no ``=``, nothing behind it, or no such field. The value is checked when a Recipe is
    built with it.
    """
    return settings.parse_setting(Recipe, text)
