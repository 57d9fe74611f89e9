"""A Recipe's open places filled with what was published for its network."""

from __future__ import annotations

from nfnet_ray.models.variants import get_variant
from nfnet_ray.recipe import Recipe


def with_published_values(recipe: Recipe) -> Recipe:
    """The Recipe with sizes, dropout and stochastic depth of its variant where it says None.

    Raises UserError for a model that does not exist or overrides that it does not take.
    """
    variant = get_variant(recipe.model.name, recipe.model.overrides.chosen())
    published = {
        "model.dropout": variant.dropout,
        "model.stochastic_depth": variant.stochastic_depth,
        "data.image_size": variant.train_size,
        "data.eval_size": variant.test_size,
    }
    values = recipe.to_values()
    return recipe.with_values({name: value for name, value in published.items() if values[name] is None})
