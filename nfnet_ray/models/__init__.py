"""NFNets and the networks they are compared with, by name. Importing this needs no torch; `create_model` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from nfnet_ray.errors import UserError
from nfnet_ray.models.baselines import Baseline, create_baseline
from nfnet_ray.models.catalogue import get_model, list_models, refuse_overrides
from nfnet_ray.recipe import is_import_path, split_weights

if TYPE_CHECKING:
    from torch import nn

    from nfnet_ray.recipe import ModelRecipe

__all__ = ["create_model", "import_code_of", "list_models", "model_of"]


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A new network: normalised images (N, 3, H, W) -> logits (N, num_classes).

    `dropout` (on the pooled vector) and `stochastic_depth` (the drop rate that the last block approaches)
    default to the model's published values. `overrides` changes the architecture of a normaliser-free network (see
    `nfnet_ray.models.variants.OVERRIDES`). Initial weights come from torch's global generator; nothing is downloaded.

    `name` may be the import path of a user's own network, such as `my_net:build`. The function `build` of the module
    `my_net` is then called with `num_classes`, and with `dropout` and `stochastic_depth` (0 when None) if it has
    parameters of these names. The code is imported again when its file has changed.

    Raises `UserError` for an unknown name or setting, for a value that is not allowed, and for a baseline where
    timm is not installed.

    Example: `create_model("nfnet_f0", num_classes=10, overrides={"depth": [1, 1, 2, 1]})`.
    """
    if isinstance(name, str) and is_import_path(name):
        _check_classes(split_weights(name)[0], num_classes)
        refuse_overrides(name, overrides)
        from nfnet_ray.models.own.build import build_own

        return build_own(name, int(num_classes), dropout or 0.0, stochastic_depth or 0.0)
    model = get_model(name, overrides)
    if dropout is not None:
        model = replace(model, dropout=dropout)
    if stochastic_depth is not None:
        model = replace(model, stochastic_depth=stochastic_depth)
    _check_classes(name, num_classes)
    num_classes = int(num_classes)
    if isinstance(model, Baseline):
        return create_baseline(model, num_classes)

    from nfnet_ray.models.nfnet import NFNet

    return NFNet(model, num_classes)


def _check_classes(name: str, num_classes: int) -> None:
    # NumPy's integers are allowed, as in a Recipe: `labels.max() + 1` is one.
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < 1:
        raise UserError(
            f"model {name}: num_classes={num_classes!r} is not allowed; use a whole number above 0"
        )


def import_code_of(recipe: ModelRecipe) -> None:
    """Imports the code of a user's own network, as :func:`model_of` would. It may set torch's switches and generators.

    Raises `UserError` if the import fails.
    """
    if recipe.is_own:
        from nfnet_ray.models.own.build import import_own

        import_own(recipe.name)


def model_of(recipe: ModelRecipe, num_classes: int) -> nn.Module:
    """A new network as the section `model` of a Recipe describes it, with random initial weights.

    A field that is None has the model's published value. Raises what :func:`create_model` raises.
    """
    return create_model(
        recipe.name,
        num_classes,
        dropout=recipe.dropout,
        stochastic_depth=recipe.stochastic_depth,
        overrides=recipe.overrides.chosen(),
    )
