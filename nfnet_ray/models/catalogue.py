"""All models by name, NFNets and baselines alike. Only the cost of a user's own network needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nfnet_ray.errors import UserError
from nfnet_ray.models import baselines, costs, variants
from nfnet_ray.models.baselines import BASELINES, Baseline
from nfnet_ray.models.variants import Variant, get_variant
from nfnet_ray.printable import shown
from nfnet_ray.recipe import is_import_path, split_weights
from nfnet_ray.settings import did_you_mean

if TYPE_CHECKING:
    from nfnet_ray.models.own.cost import OwnCost


def list_models() -> list[str]:
    """Names that `create_model` takes: the normaliser-free families, then the baselines."""
    return [*variants.list_models(), *BASELINES]


def get_model(name: str, overrides: Mapping[str, Any] | None = None) -> Variant | Baseline:
    """A model's published values: `train_size`, `test_size`, `dropout`, `stochastic_depth`, and its costs.

    Raises UserError for an unknown name, for a user's own network, for which nothing was published, and for overrides
    that the model does not have.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise UserError(
            f"model {name}: overrides = {shown(overrides)} is not allowed; it takes a dict {{setting: value}}"
        )
    if isinstance(name, str) and name in BASELINES:
        if overrides:
            raise UserError(
                f"model {name}: overrides {', '.join(overrides)} are not possible; a baseline is what was published, "
                "choose an NFNet for them"
            )
        return BASELINES[name]
    if isinstance(name, str) and is_import_path(name):
        raise UserError(
            f"model {split_weights(name)[0]} is a network of your own, of which nothing was published"
        )
    if not isinstance(name, str) or name not in list_models():
        raise UserError(
            f"unknown model {name!r}; {did_you_mean(name, list_models())} (a network of your own is named by "
            "module:function)"
        )
    return get_variant(name, overrides)


def refuse_overrides(name: str, overrides: Mapping[str, Any] | None) -> None:
    """Raises UserError if there are overrides for a user's own network."""
    if overrides:
        raise UserError(
            f"model {split_weights(name)[0]}: overrides {', '.join(overrides)} are not possible: they change an NFNet; "
            "change the network's own code"
        )


def own_has_batch_norm(name: str) -> bool:
    """Whether a user's own network has batch normalisation. The network is built to find out."""
    return _own_cost(name, None, 2).has_batch_norm


def _own_cost(name: str, image_size: int | None, num_classes: int) -> OwnCost:
    from nfnet_ray.models.own.cost import (
        cost_of,
    )  # it imports torch, which the other networks do not need here

    return cost_of(name, image_size, num_classes)


def count_parameters(name: str, num_classes: int, overrides: Mapping[str, Any] | None = None) -> int:
    """The number of learnable scalars of the network that `create_model` makes from the same arguments.

    A user's own network is built to count them. Raises UserError if that fails.
    """
    if is_import_path(name):
        refuse_overrides(name, overrides)
        return _own_cost(name, None, num_classes).parameters
    model = get_model(name, overrides)
    if isinstance(model, Baseline):
        return baselines.count_parameters(model, num_classes)
    return costs.count_parameters(model, num_classes)


def count_multiply_adds(
    name: str, image_size: int, num_classes: int, overrides: Mapping[str, Any] | None = None
) -> int:
    """Multiply-adds of one forward pass of one square image of `image_size` pixels per side.

    Convolutions and linear layers count. For a baseline at another size than its `train_size` the number is an estimate
    (`baselines.count_multiply_adds`). A user's own network is built to count them. Raises UserError if that fails.
    """
    if is_import_path(name):
        refuse_overrides(name, overrides)
        return _own_cost(name, image_size, num_classes).multiply_adds
    model = get_model(name, overrides)
    if isinstance(model, Baseline):
        return baselines.count_multiply_adds(model, image_size, num_classes)
    return costs.count_multiply_adds(model, image_size, num_classes)
