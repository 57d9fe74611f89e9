"""Defines the conditions that decide whether accuracies or times of trials are comparable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Touched = Literal["accuracy", "time"]
Weight = Literal["apart", "marked", "quiet"]
"""``apart``: values on one axis would mean different things, so trials are drawn on separate axes. ``marked``: they
share an axis, and each series is labelled with its value. ``quiet``: a remark is enough."""


@dataclass(frozen=True)
class ConditionField:
    """One condition of trials.

    Attributes:
        name: the key of the condition in :data:`Conditions`.
        label: the name of the condition for people.
        touches: the quantities that cannot be compared if the condition differs.
        weight: the importance of a difference that is not part of a study's question.
        recipe: dotted name of the Recipe field that determines the condition; None if no field does.
    """

    name: str
    label: str
    touches: tuple[Touched, ...]
    weight: Weight
    recipe: str | None = None


@dataclass(frozen=True)
class Fact:
    """The value of a condition, and its text. The value is None if the journal does not contain it."""

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
    # In a cohort another program is trained, and a lane's seconds are a share of the seconds of all lanes. Accuracies
    # differ as between two versions of torch, by another order of additions.
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
    # Apart from the few lines between two steps, train_seconds contains no time spent in Ray and in Python.
    ConditionField("ray", "Ray", _TIME, "quiet"),
    ConditionField("python", "Python", _TIME, "quiet"),
    # A setting like the batch size: it determines what is learned, and does not change how anything is measured.
    ConditionField("image_size", "training size", _BOTH, "quiet", "data.image_size"),
)
"""The conditions in the order in which they are reported."""

VERSIONS = ("torch", "cuda", "timm", "nfnet_ray", "commit", "ray", "python")
"""The names of the conditions that are versions."""
