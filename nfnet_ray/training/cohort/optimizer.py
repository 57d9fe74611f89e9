"""SGD and RMSProp over the rows of all lanes, each with its own learning rate, momentum and weight decay.

The arithmetic is that of :func:`nfnet_ray.optim.optimizer.create_optimizer`. The state of the lanes' own optimisers is
kept up to date, because its tensors become views of the rows here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from nfnet_ray.recipe import OptimizerRecipe
from nfnet_ray.training.cohort.weights import Layout

_MOMENTUM, _SQUARES, _STEP = "momentum_buffer", "square_avg", "step"  # torch's and timm's names


class LaneOptimizer:
    """Updates the weights of all lanes, given as rows (L, columns).

    Args:
        layout: the columns of each parameter.
        recipes: the optimiser of each lane. They differ at most in learning rate, momentum and weight decay.
        optimizers: the lanes' own optimisers, which are not stepped. Their state is what a checkpoint saves.
        named: {name: parameter} of each lane.
        like: the rows of weights, whose shape, dtype and device the state has.
    """

    def __init__(
        self,
        layout: Layout,
        recipes: Sequence[OptimizerRecipe],
        optimizers: Sequence[Optimizer],
        named: Sequence[Mapping[str, Tensor]],
        like: Tensor,
    ) -> None:
        self._recipe, self._layout = recipes[0], layout
        self._optimizers, self._named = optimizers, named
        self._momenta = [recipe.momentum for recipe in recipes]
        self._momentum_L1 = like.new_tensor(self._momenta)[:, None]
        self._decay_L1 = like.new_tensor([recipe.weight_decay for recipe in recipes])[:, None]
        self._momentum_LP = self._gathered(_MOMENTUM, torch.zeros_like(like))
        self._squares_LP = None
        if self._recipe.name == "rmsprop":
            self._squares_LP = self._gathered(_SQUARES, torch.ones_like(like))
        self._shares_state = False

    def _gathered(self, key: str, rows_LP: Tensor) -> Tensor:
        """Returns ``rows_LP``, after copying into them the state ``key`` that the lanes' optimisers already have."""
        for optimizer, named, row_P in zip(self._optimizers, self._named, rows_LP, strict=True):
            for name, view in self._layout.parts(row_P):
                state = optimizer.state.get(named[name], {})
                if state.get(key) is not None:
                    view.copy_(state[key])
        return rows_LP

    @torch.no_grad()
    def step(self, weights_LP: Tensor, gradients_LP: Tensor, rates_L1: Tensor) -> None:
        """Updates the weights with the learning rates (L, 1). Overwrites the gradients."""
        decayed = slice(0, self._layout.decayed)
        gradients_LP[:, decayed].addcmul_(weights_LP[:, decayed], self._decay_L1)
        if self._squares_LP is None:
            self._momentum_LP.mul_(self._momentum_L1).add_(gradients_LP)
            update_LP = self._momentum_LP
            if self._recipe.nesterov:
                update_LP = torch.addcmul(gradients_LP, self._momentum_LP, self._momentum_L1)
            weights_LP.addcmul_(update_LP, rates_L1, value=-1)
        else:
            difference_LP = gradients_LP.square().sub_(self._squares_LP)
            self._squares_LP.add_(difference_LP, alpha=1 - self._recipe.rmsprop_decay)
            root_LP = self._squares_LP.add(self._recipe.rmsprop_eps).sqrt_()
            update_LP = gradients_LP.div_(root_LP).mul_(rates_L1)
            self._momentum_LP.mul_(self._momentum_L1).add_(update_LP)
            weights_LP.sub_(self._momentum_LP)

    def begin_step(self, number: int) -> None:
        """Writes step ``number``, counted from 0, into the lanes' optimisers. The first call creates their state."""
        if not self._shares_state:
            self._share_state()
        for optimizer in self._optimizers if self._squares_LP is not None else ():
            for state in optimizer.state.values():
                state[_STEP].fill_(number + 1)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that :meth:`step` changes besides the weights. They stay the same objects."""
        yield self._momentum_LP
        if self._squares_LP is not None:
            yield self._squares_LP

    def _share_state(self) -> None:
        """Creates the state that each lane's optimiser would have alone, as views of the rows."""
        self._shares_state = True
        for lane, (optimizer, named) in enumerate(zip(self._optimizers, self._named, strict=True)):
            if self._momenta[lane]:
                for name, view in self._layout.parts(self._momentum_LP[lane]):
                    optimizer.state[named[name]][_MOMENTUM] = view
            if self._squares_LP is not None:
                for name, view in self._layout.parts(self._squares_LP[lane]):
                    optimizer.state[named[name]][_SQUARES] = view
                    optimizer.state[named[name]].setdefault(_STEP, torch.zeros(()))
