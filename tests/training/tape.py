"""A tape of kernels: what a CUDA graph does, on a CPU.

A graph is a list of kernels with the addresses of their tensors and the numbers that Python had given them. To replay
it runs the same kernels on the same memory; no line of Python is run again. So does a :class:`Tape`, operator by
operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Tape(TorchDispatchMode):
    """Notes every operator, those of backward passes included, while it is entered; :meth:`replay` runs them again."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: list[tuple[Any, Any, Any, Any]] = []
        self._own: dict[int, torch.UntypedStorage] = {}
        """{address: the memory there} of what was made while the tape was entered."""
        self._others: set[int] = set()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._others |= {_address(tensor) for tensor in _tensors((args, kwargs))} - self._own.keys()
        results = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            self._noted.append((func, args, kwargs or {}, results))
        for tensor in _tensors(results):
            if tensor.numel() and _address(tensor) not in self._others:
                self._own[_address(tensor)] = _memory(tensor)
        return results

    @torch.no_grad()
    def replay(self) -> None:
        """Runs all operators on the memory that they had.

        What is within a graph, other graphs have overwritten since. So first all bits there are set, which makes floats
        that are not numbers.
        """
        for storage in self._own.values():
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(255)
        for func, args, kwargs, results in self._noted:
            given = {_address(tensor) for tensor in _tensors((args, kwargs))}
            again = func(*args, **kwargs)
            for kept, new in zip(_tensors(results), _tensors(again), strict=True):
                if _address(kept) not in given:  # else it is a view, or was written in place
                    kept.copy_(new)

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


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _address(tensor: Tensor) -> int:
    return _memory(tensor).data_ptr()


def _memory(tensor: Tensor) -> torch.UntypedStorage:
    held: Tensor = getattr(tensor, "held", tensor)  # that of a pretended GPU (pretended_gpu.py)
    return held.untyped_storage()


def _shown(leaf: Any) -> Any:
    return f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else leaf
