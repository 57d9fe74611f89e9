"""The conditions that make accuracies or times of trials comparable, or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Touched = Literal["accuracy", "time"]
Weight = Literal["apart", "marked", "quiet"]
"""``apart``: values on one axis would mean different things, so trials get axes of their own. ``marked``: they share an
axis, and each series says its value. ``quiet``: a remark is enough."""


@dataclass(frozen=True)
class ConditionField:
    """One condition.

    Attributes:
        name: its key in :data:`Conditions`.
        label: what people call it.
        touches: what is not comparable where it differs.
        weight: how much is made of a difference that no study asks about.
        recipe: dotted name of the Recipe field that decides it; None where no field does.
    """

    name: str
    label: str
    touches: tuple[Touched, ...]
    weight: Weight
    recipe: str | None = None


@dataclass(frozen=True)
class Fact:
    """The value of a condition, and how it is shown; None is the value of one that the journal does not have."""

    value: Any
    text: str = field(compare=False)

    @property
    def is_known(self) -> bool:
        return self.value is not None


UNKNOWN = Fact(None, "unknown")

Conditions = dict[str, Fact]
"""{name of a :class:`ConditionField`: its value in a trial}."""

_BOTH: tuple[Touched, ...] = ("accuracy", "time")
_ACCURACY: tuple[Touched, ...] = ("accuracy",)
_TIME: tuple[Touched, ...] = ("time",)

CONDITION_FIELDS = (
    ConditionField("data", "data", _BOTH, "apart"),
    ConditionField("metric", "metric", _ACCURACY, "apart"),
    ConditionField("validation_part", "validation part", _ACCURACY, "marked"),
    ConditionField("train_share", "training share", _BOTH, "marked", "data.train_share"),
    ConditionField("damaged_images", "skipped images", _BOTH, "marked"),
    ConditionField("eval_size", "evaluation size", _ACCURACY, "marked", "data.eval_size"),
    ConditionField("eval_crop", "evaluation crop", _ACCURACY, "marked", "data.eval_crop"),
    ConditionField("averaging", "averaging", _ACCURACY, "marked", "optimizer.ema.decay"),
    ConditionField("test_time_augmentation", "test-time augmentation", _ACCURACY, "marked"),
    ConditionField("weights", "initial weights", _BOTH, "marked", "model.weights"),
    ConditionField("trained", "trained part", _BOTH, "marked", "model.trained"),
    ConditionField("network_code", "code of the network", _BOTH, "marked", "model.name"),
    ConditionField("hardware", "hardware", _TIME, "apart"),
    ConditionField("device", "device", _TIME, "apart"),
    # SAM and batch normalisation work on the images of one worker.
    ConditionField("workers", "workers of a trial", _BOTH, "apart"),
    ConditionField("threads", "cores of a worker", _TIME, "apart"),
    # Another program, and a lane's seconds are a share of those of all. Accuracies differ as between two versions of
    # torch: by another order of additions.
    ConditionField("training", "training", _TIME, "marked"),
    ConditionField("gpu_share", "GPUs of a worker", _TIME, "apart"),
    ConditionField("places", "trials at once on shared hardware", _TIME, "marked"),
    ConditionField("mps", "MPS", _TIME, "marked"),
    ConditionField("precision", "precision", _BOTH, "marked", "precision"),
    ConditionField("memory_format", "memory format", _TIME, "marked", "memory_format"),
    ConditionField("compile", "torch.compile", _TIME, "marked", "compile"),
    ConditionField("grouped_convolutions", "grouped convolutions", _TIME, "marked", "grouped_convolutions"),
    ConditionField(
        "activation_memory_budget",
        "activation memory budget",
        _TIME,
        "marked",
        "activation_memory_budget",
    ),
    ConditionField("step", "step on the GPU", _TIME, "marked", "capture"),
    ConditionField("micro_batches", "micro-batches", _TIME, "marked", "micro_batches"),
    ConditionField("torch", "torch", _BOTH, "marked"),
    ConditionField("cuda", "CUDA", _BOTH, "marked"),
    ConditionField("timm", "timm", _BOTH, "marked"),
    ConditionField("nfnet_ray", "nfnet_ray", _BOTH, "marked"),
    ConditionField("commit", "commit", _BOTH, "marked"),
    # Time in Ray and in Python is not in train_seconds but for the few lines between two steps.
    ConditionField("ray", "Ray", _TIME, "quiet"),
    ConditionField("python", "Python", _TIME, "quiet"),
    # A setting like the batch size: it decides what is learned, and no measure changes with it.
    ConditionField("image_size", "training size", _BOTH, "quiet", "data.image_size"),
)
"""In the order in which they are told."""

VERSIONS = ("torch", "cuda", "timm", "nfnet_ray", "commit", "ray", "python")
"""Those that are versions."""
