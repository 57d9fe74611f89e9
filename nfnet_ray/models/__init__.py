"""NFNets by name. Importing this needs no torch; `create_model` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nfnet_ray.errors import UserError
from nfnet_ray.models.variants import get_variant, list_models

if TYPE_CHECKING:
    from nfnet_ray.models.nfnet import NFNet

__all__ = ["create_model", "list_models"]


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> NFNet:
    """A new network: normalised images (N, 3, H, W) -> logits (N, num_classes).

    `dropout` (on the pooled vector) and `stochastic_depth` (the drop rate that the last block approaches)
    are the variant's published values when None. `overrides` changes the architecture, see
    `nfnet_ray.models.variants.OVERRIDES`. Initial weights come from torch's global generator.

    Raises `UserError` for an unknown name or setting and for a value that is not allowed.

    Example: `create_model("nfnet_f0", num_classes=10, overrides={"depth": [1, 1, 2, 1]})`.
    """
    variant = get_variant(name, overrides)
    if dropout is not None:
        variant = replace(variant, dropout=dropout)
    if stochastic_depth is not None:
        variant = replace(variant, stochastic_depth=stochastic_depth)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(
            f"model {name}: num_classes={num_classes!r} is not allowed; use a whole number above 0"
        )

    from nfnet_ray.models.nfnet import NFNet

    return NFNet(variant, num_classes)
