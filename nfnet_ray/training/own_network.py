"""Whether a network of one's own can be trained as a Recipe says, found out without training it."""

from __future__ import annotations

import torch

from nfnet_ray.errors import UserError
from nfnet_ray.models import model_of
from nfnet_ray.models.weights.pretrained import freeze
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.step import clipped_parameters


def check_own_network(recipe: ResolvedRecipe, num_classes: int) -> None:
    """Raises UserError for rates that the builder does not take, and for layers that the Recipe names in vain.

    The latter are those of ``optimizer.agc.exclude``, and the classifier of ``model.trained``.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # without memory
                network = model_of(recipe.model, num_classes)
        except UserError:  # it may make tensors on a device of its own
            network = model_of(recipe.model, num_classes)
    freeze(network, recipe.model)
    clipped_parameters(network, recipe)
