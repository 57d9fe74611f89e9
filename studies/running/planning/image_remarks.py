"""Warnings of a plan about a Recipe for large images that is used with small ones."""

from __future__ import annotations

from collections.abc import Iterable

from nfnet_ray.data.augmentation.crop import EVAL_MARGIN_PIXELS
from nfnet_ray.data.augmentation.randaugment import MAX_LEVEL, RANDAUGMENT_TRANSLATE_PIXELS
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe, ResolvedData

LEAST_EVALUATED_PART = 0.5
"""Of an image's area; the official 256 of 288 pixels are 0.79 of it."""
LARGEST_MOVE = 0.6
"""As a share of an image's side; of the published Recipes EfficientNetV2-M has the most, 200 of 384 pixels."""


def image_remarks(recipes: Iterable[Recipe], stored_size: tuple[int, int] | None) -> list[str]:
    """A sentence for each kind of problem, of the first Recipe that has it.

    ``stored_size`` is the (height, width) in pixels that all images of the data set have; None where they differ.
    """
    found: dict[str, str] = {}
    # Of a thousand trials nearly all are alike in this, and to resolve a Recipe takes a millisecond.
    for recipe in {(recipe.model.name, recipe.data): recipe for recipe in recipes}.values():
        data = resolve(recipe).data
        of_kind = {
            "crop": _cropped_away(data, stored_size),
            "move": _moved_away(data),
            "size": _of_two_sizes(data),
        }
        for kind, sentence in of_kind.items():
            if sentence:
                found.setdefault(kind, sentence)
    return list(found.values())


def _cropped_away(data: ResolvedData, stored_size: tuple[int, int] | None) -> str:
    size, scaled = data.eval_size, data.eval_size + EVAL_MARGIN_PIXELS
    seen = (size / scaled) ** 2
    if data.eval_crop == "whole" or stored_size == (size, size) or seen >= LEAST_EVALUATED_PART:
        return ""
    return (
        f"Evaluation sees {seen:.0%} of each image: data.eval_crop={data.eval_crop} takes the central {size} of "
        f"{scaled} pixels of a side. For all of it: --set data.eval_crop=whole"
    )


def _moved_away(data: ResolvedData) -> str:
    pixels = data.randaugment.magnitude / MAX_LEVEL * RANDAUGMENT_TRANSLATE_PIXELS
    if data.autoaugment or not data.randaugment.layers or pixels <= LARGEST_MOVE * data.image_size:
        return ""
    return (
        f"RandAugment moves images of {data.image_size} pixels by up to {pixels:.0f} and fills the gap with grey: its "
        "constants are pixels of large images. Without it: --set data.randaugment.layers=0"
    )


def _of_two_sizes(data: ResolvedData) -> str:
    """Where training crops nothing away, what is shown has the same scale only at the same size."""
    if data.crop == "random_resized" or data.image_size == data.eval_size:
        return ""
    return (
        f"Images are trained at {data.image_size} pixels and evaluated at {data.eval_size}. For the same size: "
        f"--set data.eval_size={data.image_size}"
    )
