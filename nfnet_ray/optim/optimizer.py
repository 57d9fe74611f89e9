"""Creates the Recipe's optimiser, with one group of parameters that decay and one that do not, and applies it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from nfnet_ray.errors import UserError
from nfnet_ray.optim.foreach import add_to_all_
from nfnet_ray.optim.rates import Rates
from nfnet_ray.recipe import OptimizerRecipe

UNDECAYED_NAMES = ("gain", "skip_gain", "bias")
"""Parameters whose name ends in one of these have no weight decay (official ``experiment_nfnets.py``)."""

VALUES_OF_A_PART = 1 << 16
"""A CPU updates at most this number of values at a time: their weights, gradients and momentum, of 4 bytes each, fill
three quarters of a core's 1 MB cache."""

# Batch normalisation in all its forms, timm's included, and other normalisation layers. They share no base class.
_NORMALISATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


class EagerSGD(SGD):
    """torch's SGD without the decorators that hide its methods from torch.compile.

    The decorators import ``torch._dynamo``, which costs a new process 1.3 s of CPU time, and no optimiser is compiled
    here. The arithmetic and the saved state are those of SGD, to the bit. On a CPU, :meth:`step` updates a few tensors
    at a time, so that each operation finds the values that the previous one wrote in the cache. It overwrites the
    gradients.
    """

    _step_of_torch = torch.no_grad()(inspect.unwrap(SGD.step))  # one of the wrappers is no_grad

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates all parameters that have a gradient."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if closure is not None or any(parameter.device.type != "cpu" for parameter in parameters):
            return self._step_of_torch(closure)
        for group in self.param_groups:
            for part in _parts([one for one in group["params"] if one.grad is not None]):
                self._update(group, part)
        return None

    def _update(self, group: Mapping[str, Any], parameters: list[Tensor]) -> None:
        steps = [cast(Tensor, parameter.grad) for parameter in parameters]
        if group["weight_decay"] != 0:
            torch._foreach_add_(steps, parameters, alpha=group["weight_decay"])
        if group["momentum"] != 0:
            buffers = self._buffers(parameters, steps, group["momentum"])
            if group["nesterov"]:
                torch._foreach_add_(steps, buffers, alpha=group["momentum"])
            else:
                steps = buffers
        torch._foreach_add_(parameters, steps, alpha=-group["lr"])

    def _buffers(self, parameters: list[Tensor], steps: list[Tensor], momentum: float) -> list[Tensor]:
        states = [self.state[parameter] for parameter in parameters]
        buffers = [state.get("momentum_buffer") for state in states]
        if all(buffer is not None for buffer in buffers):
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, steps)
            return buffers
        for state, step in zip(states, steps, strict=True):
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = step.clone()
            else:
                state["momentum_buffer"].mul_(momentum).add_(step)
        return [state["momentum_buffer"] for state in states]

    zero_grad = inspect.unwrap(SGD.zero_grad)
    add_param_group = inspect.unwrap(SGD.add_param_group)
    state_dict = inspect.unwrap(SGD.state_dict)
    load_state_dict = inspect.unwrap(SGD.load_state_dict)


def _parts(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Splits the parameters into lists of at most VALUES_OF_A_PART values; a larger tensor gets a list of its own."""
    part: list[Tensor] = []
    values = 0
    for parameter in parameters:
        values += parameter.numel()
        if part and values > VALUES_OF_A_PART:
            yield part
            part, values = [], parameter.numel()
        part.append(parameter)
    if part:
        yield part


def decayed_names(model: nn.Module, recipe: OptimizerRecipe) -> list[str]:
    """Names of the parameters with weight decay, in the model's order.

    With ``decayed="weights"`` convolution and linear weights decay, but no gains, skip gains or biases, and no
    parameters of normalisation layers (official ``experiment_nfnets.py``). As in the official code, parameters are
    excluded by the names in ``UNDECAYED_NAMES``, so a parameter of another network, such as a position embedding,
    decays too. With ``"all_but_norm"`` all parameters decay except those of normalisation layers; biases decay
    (tensorflow/tpu ``models/official/efficientnet/main.py``).
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
    r"""Creates SGD or RMSProp with two groups of parameters, which decay or not. The caller sets the learning rate.

    SGD is torch's own, with weight decay :math:`w`, momentum :math:`\mu` and buffer :math:`b` from 0:

    .. math::  g \leftarrow g + w p, \quad b \leftarrow \mu b + g, \quad
               p \leftarrow p - \eta \, (g + \mu b)

    and :math:`p - \eta b` without Nesterov (official ``optim.py``).

    RMSProp has TensorFlow's form, with the mean square :math:`s` from 1 and :math:`b` from 0:

    .. math::  g \leftarrow g + w p, \quad s \leftarrow \rho s + (1 - \rho) g^2, \quad
               b \leftarrow \mu b + \eta \frac{g}{\sqrt{s + \epsilon}}, \quad p \leftarrow p - b

    The decay is coupled, as the loss's term :math:`\frac{w}{2} \lVert p \rVert^2` is in TensorFlow's
    EfficientNets (tensorflow/tpu ``models/official/efficientnet``: ``main.py``, ``utils.py``). The arithmetic
    is timm's ``RMSpropTF``.

    Parameters that are not trained are in neither group: they have no momentum and do not decay. On a CPU a step of SGD
    overwrites the gradients, so read them before it.

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
        from timm.optim import RMSpropTF  # takes 2 s, and SGD does not need it
    except ModuleNotFoundError as missing:
        raise UserError(
            f"optimizer.name = rmsprop needs timm, which cannot be imported ({missing}); install timm"
        ) from missing
    return RMSpropTF(
        groups,
        lr=0.0,
        alpha=recipe.rmsprop_decay,
        eps=recipe.rmsprop_eps,
        momentum=recipe.momentum,
        foreach=True,
    )


def fill_state(optimizer: Optimizer) -> None:
    """Creates the state that a parameter has before its first step, for each parameter that has none.

    Torch's optimisers create it in their first step. A step that is captured as a CUDA graph has to find it there.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if group["momentum"] > 0 and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            if not isinstance(optimizer, SGD) and "square_avg" not in state:
                state["step"] = torch.zeros(())  # timm's counter, on the host; no arithmetic of ours reads it
                state["square_avg"] = torch.ones_like(parameter)


def load_in_place(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Does what ``optimizer.load_state_dict(saved)`` does, but copies into the existing tensors of the state.

    A CUDA graph may hold the addresses of these tensors. A parameter that has a state now and none in ``saved`` gets
    the one of :func:`fill_state`.
    """
    before = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    optimizer.load_state_dict(dict(saved))
    if before:
        fill_state(optimizer)
    for parameter, kept in before.items():
        state = optimizer.state[parameter]
        for name, tensor in kept.items():
            if isinstance(tensor, Tensor) and isinstance(state.get(name), Tensor):
                tensor.copy_(state[name])
                state[name] = tensor


@torch.no_grad()
def update_weights(optimizer: Optimizer, rates: Rates) -> None:
    """Updates the weights as ``optimizer.step()`` does, with rates that are scalars on the device.

    The equations are those of :func:`create_optimizer`, but the rounding differs: ``step`` multiplies and adds in one
    operation, by numbers of the host, which a CUDA graph would repeat in every replay. Call :func:`fill_state` before
    the first update.
    """
    for group in optimizer.param_groups:
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not trained:
            continue
        gradients = [parameter.grad for parameter in trained]
        if group["weight_decay"] != 0:
            decay = torch._foreach_mul(trained, rates.weight_decay)
            torch._foreach_add_(decay, gradients)
            gradients = list(decay)
        states = [optimizer.state[parameter] for parameter in trained]
        if isinstance(optimizer, SGD):
            steps = _sgd(group, gradients, states, rates)
        else:
            steps = _rmsprop(group, gradients, states, rates)
        torch._foreach_sub_(trained, steps)


def _sgd(
    group: Mapping[str, Any], gradients: list[Tensor], states: list[dict[str, Tensor]], rates: Rates
) -> list[Tensor]:
    """Updates the momentum, and returns the steps that are subtracted from the weights."""
    if group["momentum"] == 0:
        return list(torch._foreach_mul(gradients, rates.learning_rate))
    buffers = [state["momentum_buffer"] for state in states]
    torch._foreach_mul_(buffers, rates.momentum)
    torch._foreach_add_(buffers, gradients)
    if not group["nesterov"]:
        return list(torch._foreach_mul(buffers, rates.learning_rate))
    ahead = torch._foreach_mul(buffers, rates.momentum)
    torch._foreach_add_(ahead, gradients)
    torch._foreach_mul_(ahead, rates.learning_rate)
    return list(ahead)


def _rmsprop(
    group: Mapping[str, Any], gradients: list[Tensor], states: list[dict[str, Tensor]], rates: Rates
) -> list[Tensor]:
    """Updates the mean squares and the momentum, and returns the steps that are subtracted from the weights."""
    squares = [state["square_avg"] for state in states]
    changes = torch._foreach_mul(gradients, gradients)
    torch._foreach_sub_(changes, squares)
    torch._foreach_mul_(changes, rates.rmsprop_new)
    torch._foreach_add_(squares, changes)
    roots = [square.clone() for square in squares]
    add_to_all_(roots, rates.rmsprop_eps)
    torch._foreach_sqrt_(roots)
    scaled = torch._foreach_div(gradients, roots)
    torch._foreach_mul_(scaled, rates.learning_rate)
    if group["momentum"] == 0:
        return list(scaled)
    buffers = [state["momentum_buffer"] for state in states]
    torch._foreach_mul_(buffers, rates.momentum)
    torch._foreach_add_(buffers, scaled)
    return buffers
