"""A tape of kernels: what a CUDA graph does, on a CPU.

A graph is a list of kernels with the addresses of their tensors and the numbers that Python had given them. To replay
it runs the same kernels on the same memory; no line of Python is run again. So does a :class:`Tape`, operator by
operator.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map


class Noted(NamedTuple):
    """An operator with what it was given, on the memory of the CPU that a pretended GPU's tensors are made of."""

    func: Any
    args: Any
    kwargs: dict[str, Any]
    made: list[tuple[int, Tensor]]
    """{which result: the tensor that is filled}: not those that are views, or were written in place."""


class Tape(TorchDispatchMode):
    """Notes every operator, those of backward passes included, while it is entered; :meth:`replay` runs them again."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: list[Noted] = []
        self._own: dict[int, torch.UntypedStorage] = {}
        """{address: the memory there} of what was made while the tape was entered."""
        self._others: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled within it; torch would look for its compiler's settings at each operator."""
        return False

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        self._others |= given - self._own.keys()
        results = func(*args, **kwargs)
        made = []
        for place, tensor in enumerate(_tensors(results)):
            address = _address(tensor)
            if address not in given:
                made.append((place, _held(tensor)))
            if tensor.numel() and address not in self._others:
                self._own[address] = _held(tensor).untyped_storage()
        if func.namespace != "profiler":
            self._noted.append(Noted(func, _on_cpu(args), _on_cpu(kwargs), made))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        """Runs all operators on the memory that they had.

        What is within a graph, other graphs have overwritten since. So first all bits there are set, which makes floats
        that are not numbers.
        """
        for address, storage in self._own.items():
            ctypes.memset(address, 255, storage.nbytes())
        with _disable_current_modes():
            for func, args, kwargs, made in self._noted:
                again = func(*args, **kwargs)
                if made:
                    new = _tensors(again)
                    for place, kept in made:
                        kept.copy_(new[place])

    def frozen(self) -> list[str]:
        """Every operator with all that is not a tensor: what a graph would repeat for ever."""
        return [f"{func} {tree_map(_shown, (args, kwargs))}" for func, args, kwargs, _ in self._noted]


class TapeRecorder:
    """Makes graphs as :class:`nfnet_ray.training.captured.CudaRecorder` does, which are tapes."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def rehearse(self, act: Callable[[], None]) -> None:
        """Does it."""
        act()

    def record(self, act: Callable[[], None]) -> Callable[[], None]:
        """Does it, too, where a GPU would not: what it changes has to be put back all the same."""
        tape = Tape()
        with tape:
            act()
        self.tapes.append(tape)
        return tape.replay

    def begin_anew(self) -> None:
        """Tapes share no memory."""

    def forget_peak(self) -> None:
        """Nothing is measured."""

    def peak_bytes(self) -> float:
        """Of each capture another one."""
        return 1000.0 * (1 + len(self.tapes))


def _tensors(tree: Any) -> list[Tensor]:
    """torch's own tree_leaves would take most of a replay's time."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return []
    return [tensor for part in tree for tensor in _tensors(part)]


def _on_cpu(tree: Any) -> Any:
    """Arguments of an operator, with the tensors and the device of the CPU."""
    if isinstance(tree, Tensor):
        return _held(tree)
    if isinstance(tree, torch.device):
        return torch.device("cpu")
    if isinstance(tree, list | tuple):
        return type(tree)([_on_cpu(part) for part in tree])
    if isinstance(tree, dict):
        return {name: _on_cpu(part) for name, part in tree.items()}
    return tree


def _address(tensor: Tensor) -> int:
    return _held(tensor).untyped_storage().data_ptr()


def _held(tensor: Tensor) -> Tensor:
    """Of a pretended GPU's tensor (pretended_gpu.py), that of the CPU."""
    held: Tensor = getattr(tensor, "held", tensor)
    return held


def _shown(leaf: Any) -> Any:
    return f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else leaf
