"""Checks, without training it, that a user's own network can be trained as a Recipe says."""

from __future__ import annotations

import torch

from nfnet_ray.errors import UserError
from nfnet_ray.models import model_of
from nfnet_ray.models.weights.pretrained import freeze
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.step import clipped_parameters


def check_own_network(recipe: ResolvedRecipe, num_classes: int) -> None:
    """Raises UserError if a user's own network does not fit the Recipe.

    That is the case if its builder does not take the Recipe's rates, or if it lacks a layer that the Recipe names in
    ``optimizer.agc.exclude`` or, as the classifier, in ``model.trained``.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # without memory
                network = model_of(recipe.model, num_classes)
        except UserError:  # the builder may place tensors on a certain device
            network = model_of(recipe.model, num_classes)
    freeze(network, recipe.model)
    clipped_parameters(network, recipe)
