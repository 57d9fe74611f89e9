"""The Recipe's optimiser over its two groups of parameters: with weight decay, and without."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import OptimizerRecipe

UNDECAYED_NAMES = ("gain", "skip_gain", "bias")
"""Last parts of parameter names without weight decay (official ``experiment_nfnets.py``)."""

# Batch normalisation in all its forms, timm's included, and its relatives: they have no name in common.
_NORMALISATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


class EagerSGD(SGD):
    """torch's SGD, less the wrappers that keep torch.compile out of these methods.

    The wrappers import ``torch._dynamo``, which takes a new process 1.3 s of a core, and here no optimiser is
    compiled. The arithmetic and the saved state are those of SGD.
    """

    step = torch.no_grad()(inspect.unwrap(SGD.step))  # one of the wrappers is no_grad
    zero_grad = inspect.unwrap(SGD.zero_grad)
    add_param_group = inspect.unwrap(SGD.add_param_group)
    state_dict = inspect.unwrap(SGD.state_dict)
    load_state_dict = inspect.unwrap(SGD.load_state_dict)


def decayed_names(model: nn.Module, recipe: OptimizerRecipe) -> list[str]:
    """Names of the parameters with weight decay, in the model's order.

    ``weights``: convolution and linear weights; no gains, skip gains, biases, nothing of a normalisation
    (official ``experiment_nfnets.py``). ``all_but_norm``: all parameters but those of normalisation modules,
    biases included (tensorflow/tpu ``models/official/efficientnet/main.py``).
    """
    of_norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMALISATIONS)
        for parameter in module.parameters(recurse=False)
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in of_norms
        and (recipe.decayed == "all_but_norm" or name.rsplit(".", 1)[-1] not in UNDECAYED_NAMES)
    ]


def create_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> Optimizer:
    r"""SGD or RMSProp in two groups, decayed and not; the learning rate is set before each step.

    SGD, torch's own, with weight decay :math:`w`, momentum :math:`\mu` and buffer :math:`b` from 0:

    .. math::  g \leftarrow g + w p, \quad b \leftarrow \mu b + g, \quad
               p \leftarrow p - \eta \, (g + \mu b)

    and :math:`p - \eta b` without Nesterov (official ``optim.py``).

    RMSProp, TensorFlow's form, with the mean square :math:`s` from 1 and :math:`b` from 0:

    .. math::  g \leftarrow g + w p, \quad s \leftarrow \rho s + (1 - \rho) g^2, \quad
               b \leftarrow \mu b + \eta \frac{g}{\sqrt{s + \epsilon}}, \quad p \leftarrow p - b

    The decay is coupled, as the loss's term :math:`\frac{w}{2} \lVert p \rVert^2` is in TensorFlow's
    EfficientNets (tensorflow/tpu ``models/official/efficientnet``: ``main.py``, ``utils.py``). The arithmetic
    is timm's ``RMSpropTF``.

    Parameters that are not trained are in neither group: they have no momentum and do not decay.

    Raises UserError for RMSProp where timm is not installed.
    """
    decayed = set(decayed_names(model, recipe))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for n, p in named if n in decayed], "weight_decay": recipe.weight_decay},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]
    if recipe.name == "sgd":
        return EagerSGD(
            groups,
            lr=0.0,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            foreach=True,
        )
    try:
        from timm.optim import RMSpropTF  # 2 s, and a machine that trains with SGD does not need it
    except ModuleNotFoundError as missing:
        raise UserError(
            f"optimizer.name = rmsprop needs timm, which is not here ({missing}); install timm"
        ) from missing
    return RMSpropTF(
        groups,
        lr=0.0,
        alpha=recipe.rmsprop_decay,
        eps=recipe.rmsprop_eps,
        momentum=recipe.momentum,
        foreach=True,
    )
