"""Compiles a network with torch.compile and inductor, in the layout of the Recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from nfnet_ray.recipe import Recipe

MOST_COMPILED = 4096  # compilations of one process, one for each network and shape: no process needs as many


def compiled(network: nn.Module, recipe: Recipe) -> nn.Module:
    """Compiles the network. The process keeps the code for later trials of the same shapes and settings.

    The Recipe's ``memory_format`` is the layout, ``compile`` says how thoroughly to optimise, and
    ``activation_memory_budget`` how much memory to use between forward and backward pass. None of them may be ``auto``.
    """
    # The number of compilations of one function in a process. Beyond it (8 by default) torch continues without
    # compiling, and only logs this: the ninth network would be slower than in a new process, and round differently.
    torch._dynamo.config.recompile_limit = MOST_COMPILED
    torch._dynamo.config.accumulated_recompile_limit = MOST_COMPILED
    # Kernels for dynamic shapes would be slower, and there are few sizes.
    return cast(nn.Module, torch.compile(network, backend=backend_of(recipe), dynamic=False))


def backend_of(recipe: Recipe) -> Inductor:
    """The compiler for a Recipe, with its options."""
    is_channels_last = recipe.memory_format == "channels_last"
    # The layout is set explicitly. By default, inductor ignores the layout of input and weights: on a GPU it uses
    # contiguous for networks with grouped convolutions, and channels_last everywhere else (torch/_inductor/graph.py,
    # decide_layout_opt).
    switches: dict[str, Any] = {
        "layout_optimization": is_channels_last,
        "force_layout_optimization": is_channels_last,
    }
    if isinstance(recipe.compile, str):
        from torch._inductor import list_mode_options

        switches |= list_mode_options(recipe.compile)
        # 1x1 convolutions become matrix products, which are tuned. The others use cuDNN, because Triton's kernels are
        # no faster on an H100 (a comment in torch/_inductor/kernel/conv.py) and take minutes to compile.
        switches["max_autotune_conv_backends"] = "ATEN"
    return Inductor(tuple(sorted(switches.items())), recipe.activation_memory_budget)


@dataclass(frozen=True)
class Inductor:
    """Inductor with options, as a backend of torch.compile.

    A process reuses compiled code only for an equal backend. torch's own wrapper has no option
    ``activation_memory_budget``. If it were set for the whole process, compilations with different budgets would be
    taken for equal.
    """

    switches: tuple[tuple[str, Any], ...]
    activation_memory_budget: float

    def __call__(self, graph: Any, inputs: Any) -> Any:
        """Compiles a graph, after dividing it into forward and backward pass."""
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        with config.patch(activation_memory_budget=self.activation_memory_budget):
            return compile_fx(graph, inputs, config_patches=dict(self.switches))
