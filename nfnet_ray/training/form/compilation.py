"""The network as torch.compile makes it: by inductor, in the layout that the Recipe asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from nfnet_ray.recipe import Recipe

MOST_COMPILED = 4096  # networks and shapes of one process: each is a compilation, so no process comes near


def compiled(network: nn.Module, recipe: Recipe) -> nn.Module:
    """The network as torch.compile makes it, which a process keeps for later trials of the same shapes and settings.

    ``recipe`` says in which layout (``memory_format``), how thoroughly (``compile``), and with how much memory between
    forward and backward pass (``activation_memory_budget``); ``auto`` must have been replaced by a choice.
    """
    # Of one piece of code in one process. Beyond it, 8 by default, torch runs on without compilation and only logs
    # that: the ninth network of a process would be slower than in a process of its own, with other last bits.
    torch._dynamo.config.recompile_limit = MOST_COMPILED
    torch._dynamo.config.accumulated_recompile_limit = MOST_COMPILED
    # Dynamic shapes would be slower kernels; there are few sizes.
    return cast(nn.Module, torch.compile(network, backend=backend_of(recipe), dynamic=False))


def backend_of(recipe: Recipe) -> Inductor:
    """The compiler of a Recipe, with its switches."""
    is_channels_last = recipe.memory_format == "channels_last"
    # Inductor's own rule looks at neither input nor weights: it keeps networks with grouped convolutions contiguous on
    # a GPU, and makes all others, and everything on a CPU, channels_last (torch/_inductor/graph.py, decide_layout_opt).
    switches: dict[str, Any] = {
        "layout_optimization": is_channels_last,
        "force_layout_optimization": is_channels_last,
    }
    if isinstance(recipe.compile, str):
        from torch._inductor import list_mode_options

        switches |= list_mode_options(recipe.compile)
        # Convolutions of 1x1 become matrix products, which are tuned. The others stay cuDNN's: Triton's are no faster
        # on an H100 (a comment in torch/_inductor/kernel/conv.py), and take minutes to compile.
        switches["max_autotune_conv_backends"] = "ATEN"
    return Inductor(tuple(sorted(switches.items())), recipe.activation_memory_budget)


@dataclass(frozen=True)
class Inductor:
    """Inductor with some switches, as a backend of torch.compile.

    What a process has compiled is used again for an equal backend alone. torch's own wrapper takes no
    ``activation_memory_budget``: set for the whole process, that would not tell one compilation from another.
    """

    switches: tuple[tuple[str, Any], ...]
    activation_memory_budget: float

    def __call__(self, graph: Any, inputs: Any) -> Any:
        """Compiles a graph; the partition into forward and backward pass is made here too."""
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        with config.patch(activation_memory_budget=self.activation_memory_budget):
            return compile_fx(graph, inputs, config_patches=dict(self.switches))
