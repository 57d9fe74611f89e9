"""The networks that NFNets are compared with: EfficientNet-B0 to B7, EfficientNetV2-S and M, and ResNet-50.

test_efficientnet and test_resnet are the smallest members of their families in timm, for images of CIFAR's size. Like
nfnet_pico they are trained at 32 pixels without regularisation. No Recipe was published for them.

The networks are timm's, under timm's names; a user's own network has a `builder`. Their values and costs are plain data
here, so this module needs neither torch nor timm; `create_baseline` imports both.

Sources: sizes, dropout and stochastic depth of EfficientNet from tensorflow/tpu `models/official/efficientnet/`
(`efficientnet_builder.py`), of EfficientNetV2 from google/automl `efficientnetv2/effnetv2_configs.py` and
`hparams.py`. Parameters, features and multiply-adds are those of timm's modules (`tests/parity/test_baselines.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nfnet_ray.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# TensorFlow's 0.99 is the weight of the old running mean; torch's momentum is the weight of the new one.
# timm keeps torch's 0.1 and TensorFlow's epsilon of 1e-3.
TENSORFLOW_BATCH_NORM_MOMENTUM = 1 - 0.99


@dataclass(frozen=True)
class Baseline:
    """The published values of a network, and its cost.

    Raises UserError, naming the field, the value and what is allowed, when a rate is wrong.
    """

    name: str  # timm's name, or that of a network with a `builder`
    train_size: int  # pixels per side in training ...
    test_size: int  # ... and in evaluation
    dropout: float  # drop probability on the pooled vector
    stochastic_depth: (
        float  # the drop rate that the last block approaches; only where a shortcut is the identity
    )
    parameters: int  # learnable scalars at 1000 classes
    features: int  # length of the vector that is classified
    multiply_adds: int  # convolutions and classifier, one image of `train_size`, at 1000 classes
    classifier_weight: str = "classifier.weight"  # its name among the parameters
    builder: str | None = None
    """The function that builds the network instead of timm, as `package.module:function`. It is called as
    `function(num_classes, dropout=..., stochastic_depth=...)`."""

    def __post_init__(self) -> None:
        for field in ("dropout", "stochastic_depth"):
            rate = getattr(self, field)
            is_number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
            if not is_number or not 0 <= rate < 1:
                raise UserError(
                    f"model {self.name}: {field}={rate!r} is not allowed; use a number from 0 to below 1"
                )

    @property
    def has_tensorflow_form(self) -> bool:
        """'SAME' padding, TensorFlow's initialisation and batch normalisation."""
        return self.name.startswith("tf_")


_TABLE = (
    Baseline("tf_efficientnet_b0", 224, 224, 0.2, 0.2, 5_288_548, 1280, 385_814_752),
    Baseline("tf_efficientnet_b1", 240, 240, 0.2, 0.2, 7_794_184, 1280, 686_802_832),
    Baseline("tf_efficientnet_b2", 260, 260, 0.3, 0.2, 9_109_994, 1408, 993_561_872),
    Baseline("tf_efficientnet_b3", 300, 300, 0.3, 0.2, 12_233_232, 1536, 1_827_141_392),
    Baseline("tf_efficientnet_b4", 380, 380, 0.4, 0.2, 19_341_616, 1792, 4_393_771_024),
    Baseline("tf_efficientnet_b5", 456, 456, 0.4, 0.2, 30_389_784, 2048, 10_266_384_752),
    Baseline("tf_efficientnet_b6", 528, 528, 0.5, 0.2, 43_040_704, 2304, 19_067_593_536),
    Baseline("tf_efficientnet_b7", 600, 600, 0.5, 0.2, 66_347_960, 2560, 37_745_884_192),
    Baseline("tf_efficientnetv2_s", 300, 384, 0.2, 0.2, 21_458_488, 1280, 5_307_561_248),
    Baseline("tf_efficientnetv2_m", 384, 480, 0.3, 0.2, 54_139_356, 1280, 15_736_775_680),
    Baseline("test_efficientnet", 32, 32, 0.0, 0.0, 356_196, 256, 2_544_320),
    Baseline("test_resnet", 32, 32, 0.0, 0.0, 469_688, 96, 4_194_048, "fc.weight"),
    Baseline("resnet50", 224, 224, 0.0, 0.0, 25_557_032, 2048, 4_089_184_256, "fc.weight"),
)

BASELINES: Mapping[str, Baseline] = {baseline.name: baseline for baseline in _TABLE}


def count_parameters(baseline: Baseline, num_classes: int) -> int:
    """Learnable scalars of the network: weights, biases, and batch normalisation's gains and shifts."""
    return baseline.parameters + (num_classes - 1000) * (baseline.features + 1)


def count_multiply_adds(baseline: Baseline, image_size: int, num_classes: int) -> int:
    """Multiply-adds of one forward pass of one square image of `image_size` pixels per side.

    The number is exact at `train_size`. At other sizes everything except the classifier is scaled by the number of
    pixels. From 64 to 600 pixels this is within 13% of timm's modules, since 'SAME' padding rounds every stage up.
    """
    convolutions = baseline.multiply_adds - 1000 * baseline.features
    scaled = round(convolutions * (image_size / baseline.train_size) ** 2)
    return scaled + num_classes * baseline.features


def create_baseline(baseline: Baseline, num_classes: int) -> nn.Module:
    """Builds the network with timm or its `builder`: normalised images (N, 3, H, W) -> logits (N, num_classes).

    Initial weights come from torch's global generator; nothing is downloaded. Raises UserError if timm is needed and
    not installed.
    """
    if baseline.builder is not None:
        module, _, function = baseline.builder.partition(":")
        network: nn.Module = getattr(import_module(module), function)(
            num_classes, dropout=baseline.dropout, stochastic_depth=baseline.stochastic_depth
        )
        return network
    try:
        import timm
    except ModuleNotFoundError as missing:
        raise UserError(
            f"model {baseline.name} needs timm, which cannot be imported ({missing}); install timm, or choose an NFNet"
        ) from missing
    more: dict[str, Any] = {}
    if baseline.has_tensorflow_form:
        more["bn_momentum"] = TENSORFLOW_BATCH_NORM_MOMENTUM
    return timm.create_model(
        baseline.name,
        pretrained=False,
        num_classes=num_classes,
        drop_rate=baseline.dropout,
        drop_path_rate=baseline.stochastic_depth,
        **more,
    )
