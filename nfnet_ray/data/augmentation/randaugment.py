"""RandAugment (Cubuk et al. 2020) and AutoAugment's ImageNet policy (Cubuk et al. 2019), in the official form.

The operations of an image are drawn in NumPy from (seed, epoch, sample index). Then all images of a batch that have the
same operation are processed together. The host never waits for the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfnet_ray.data.augmentation.image_operations import OPERATIONS, cutout
from nfnet_ray.data.batch import check_images, on_device
from nfnet_ray.data.draws import Purpose, uniforms

Indices = NDArray[np.int64]

MAX_LEVEL = 10.0  # official _MAX_LEVEL: the magnitude at which an operation has its nominal strength
RANDAUGMENT_TRANSLATE_PIXELS = 100.0  # at MAX_LEVEL; official translate_const
AUTOAUGMENT_TRANSLATE_PIXELS = 250.0  # the same for AutoAugment
CUTOUT_HALF_SIDE = 40  # at MAX_LEVEL, pixels; official cutout_const
NOTHING = -1  # instead of the code of an operation

# Official policy_v0: 25 sub-policies of two (operation, probability, magnitude), one after the other.
IMAGENET_POLICY = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)

SIGNED = frozenset({"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"})


@dataclass(frozen=True)
class Distortion:
    """An operation with its argument; None if it takes none."""

    operation: str
    argument: float | int | None

    def __call__(self, images_NHWC: Tensor, centres_N2: Tensor) -> Tensor:
        """Applies it to uint8 (N, H, W, 3). ``centres_N2`` are for Cutout: (row, column) in pixels, int64."""
        if self.operation == "Cutout":
            assert isinstance(self.argument, int)
            return cutout(images_NHWC, self.argument, centres_N2)
        arguments = () if self.argument is None else (self.argument,)
        return OPERATIONS[self.operation](images_NHWC, *arguments)


def distortion(
    operation: str, magnitude: float, sign: int = 1, translate_pixels: float = RANDAUGMENT_TRANSLATE_PIXELS
) -> Distortion:
    """An operation at a magnitude of nominally 0 to 10 (official ``level_to_arg``); ``sign`` is -1 or 1."""
    level = magnitude / MAX_LEVEL
    match operation:
        case "AutoContrast" | "Equalize" | "Invert":
            argument: float | int | None = None
        case "Rotate":
            argument = level * 30.0  # degrees
        case "ShearX" | "ShearY":
            argument = level * 0.3
        case "TranslateX" | "TranslateY":
            argument = level * translate_pixels
        case "Posterize":
            argument = int(level * 4)  # bits, so a larger magnitude takes away less
        case "Solarize":
            argument = int(level * 256)
        case "SolarizeAdd":
            argument = int(level * 110)
        case "Cutout":
            argument = int(level * CUTOUT_HALF_SIDE)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            argument = level * 1.8 + 0.1
        case _:
            raise ValueError(f"no operation is called {operation}")
    if operation in SIGNED:
        assert argument is not None
        argument *= sign
    return Distortion(operation, argument)


def randaugment(
    images_NHWC: Tensor, indices: Indices, seed: int, epoch: int, *, layers: int, magnitude: float
) -> Tensor:
    """Applies ``layers`` operations to each image, each of the 16 with equal probability; uint8 (N, H, W, 3)."""
    check_images(images_NHWC, indices)
    names, signs, centres = randaugment_choices(indices, seed, epoch, layers, images_NHWC.shape[1:3])
    distortions = [distortion(name, magnitude, sign) for name in OPERATIONS for sign in (1, -1)]
    return apply(images_NHWC, 2 * names + (signs < 0), distortions, centres)


def randaugment_choices(
    indices: Indices, seed: int, epoch: int, layers: int, size: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For N images and L layers: indices of ``OPERATIONS`` (N, L), signs (N, L), centres for Cutout (N, L, 2)."""
    draws = uniforms(seed, epoch, Purpose.RANDAUGMENT, indices, 4 * layers).reshape(-1, layers, 4)
    names = (draws[..., 0] * len(OPERATIONS)).astype(np.int64)
    signs = np.where(draws[..., 1] < 0.5, -1, 1)
    centres = (draws[..., 2:] * np.asarray(size[:2])).astype(np.int64)
    return names, signs, centres


def autoaugment(images_NHWC: Tensor, indices: Indices, seed: int, epoch: int) -> Tensor:
    """Applies one of the 25 sub-policies to each image, whose operations have a probability; uint8 (N, H, W, 3)."""
    check_images(images_NHWC, indices)
    distortions = [
        distortion(name, magnitude, sign, AUTOAUGMENT_TRANSLATE_PIXELS)
        for policy in IMAGENET_POLICY
        for name, _, magnitude in policy
        for sign in (1, -1)
    ]
    codes = autoaugment_choices(indices, seed, epoch)
    return apply(images_NHWC, codes, distortions, np.zeros((*codes.shape, 2), np.int64))


def autoaugment_choices(indices: Indices, seed: int, epoch: int) -> NDArray[np.int64]:
    """(N, 2) int64: ``4 * sub-policy + 2 * layer + (sign is -1)``, or NOTHING."""
    draws = uniforms(seed, epoch, Purpose.AUTOAUGMENT, indices, 5)
    policies = (draws[:, 0] * len(IMAGENET_POLICY)).astype(np.int64)
    probabilities = np.array([[probability for _, probability, _ in policy] for policy in IMAGENET_POLICY])
    codes = 4 * policies[:, None] + 2 * np.arange(2) + (draws[:, 3:] < 0.5)
    return np.where(draws[:, 1:3] < probabilities[policies], codes, NOTHING)


def apply(
    images_NHWC: Tensor,
    codes_NL: NDArray[np.int64],
    distortions: Sequence[Distortion],
    centres_NL2: NDArray[np.int64],
) -> Tensor:
    """Applies to each image the distortions of its codes, layer after layer. NOTHING leaves an image as it is.

    In each layer the images are sorted by code, so that the images of a distortion are adjacent.
    """
    device, (count, layers) = images_NHWC.device, codes_NL.shape
    orders = [np.argsort(codes_NL[:, layer], kind="stable") for layer in range(layers)]
    places = [
        np.arange(count),
        *orders,
        np.arange(count),
    ]  # where each image is: at first, in layers, at last
    moves = np.stack([np.argsort(old)[new] for old, new in itertools.pairwise(places)])
    moves_on_device, centres = on_device(moves, device), on_device(centres_NL2, device)
    for layer, order in enumerate(orders):
        images_NHWC = images_NHWC[moves_on_device[layer]]
        codes, sizes = np.unique(codes_NL[order, layer], return_counts=True)
        layer_centres = centres[:, layer][on_device(order, device)].split(sizes.tolist())
        parts = images_NHWC.split(sizes.tolist())
        images_NHWC = torch.cat(
            [
                part if code == NOTHING else distortions[code](part, centre)
                for code, part, centre in zip(codes.tolist(), parts, layer_centres, strict=True)
            ]
        )
    return images_NHWC[moves_on_device[-1]]
