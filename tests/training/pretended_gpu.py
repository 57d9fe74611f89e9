"""A GPU that is pretended, on the CPU: its tensors say that they are on ``cuda:0``, and torch.cuda answers for it.

What they hold is computed by the CPU, so a training on it can be compared with one on the CPU, number by number. It is
for what only happens on a GPU: branches for its device, tensors of the host beside its own, copies through pinned
memory, streams and events, the capture of a graph, reading results back. It knows nothing of the real kernels, of their
speed and rounding, nor of the order in which several streams work.

    with pretended_gpu() as gpu:
        train(recipe, PlainContext(device=gpu.device))
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # before torch.cuda is patched: it takes stock of all functions
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from tests.training.tape import Tape

DEVICE = torch.device("cuda", 0)
NAME, MEMORY_BYTES = "NVIDIA H100 80GB HBM3", 80 * 2**30
_COPIES = ("aten::copy_", "aten::_to_copy")
"""The operators that may be given tensors of the host and of the device."""
_INDEXED_WRITE = "aten::index_put_"
"""Of a number of the host: torch brings it to the device, for which the host waits. Older versions than 2.15 do so for
``tensor[rows] = 1`` as well."""


class GpuTensor(Tensor):
    """A tensor that says that it is on the GPU; ``held`` is the tensor of the CPU that it is made of."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> GpuTensor:
        made: GpuTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            # To torch's own code it is on the CPU: the backward pass would look for a GPU's streams.
            device="cpu",
        )
        made.held = held
        return made

    device = property(lambda _self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda _self: True)  # type: ignore[assignment]
    is_cpu = property(lambda _self: False)  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, other: GpuTensor) -> None:
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held = other.held

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> GpuTensor:
        made = GpuTensor(self.detach().held.clone())
        memo[id(self)] = made = nn.Parameter(made) if isinstance(self, nn.Parameter) else made
        return made.requires_grad_(self.requires_grad)

    def get_device(self) -> int:
        return 0

    def is_pinned(self, *_: Any) -> bool:
        return False

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self) -> Any:
        _PRESENT[-1].reads += 1
        return self.detach().held.tolist()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def cpu(self, *_: Any) -> Tensor:
        return self.to("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop("copy", False)
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        to_host = device is not None and device.type != "cuda"
        here = _ToHost.apply(self) if to_host else self.clone() if copy else self  # type: ignore[no-untyped-call]
        made: Tensor = here if dtype is None else here.type(dtype)
        return made if memory_format is None else made.contiguous(memory_format=memory_format)

    def type(self, dtype: Any = None, *_: Any, **__: Any) -> Any:
        return super().to(dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, tensor: GpuTensor) -> Tensor:
        _PRESENT[-1].reads += 1
        return tensor.held.clone()

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> GpuTensor:  # type: ignore[override]
        return GpuTensor(gradient)


class _OnGpu(TorchDispatchMode):
    """Makes the tensors for which the GPU is asked."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled within it; torch would look for its compiler's settings at each operator."""
        return False

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Operator:
    """What matters of one, which torch would look up in its schema each time."""

    def __init__(self, func: Any) -> None:
        schema = func._schema
        self.name: str = schema.name
        self.returns_what_it_is_given = any(returned.alias_info for returned in schema.returns)
        self.is_copy = self.name in _COPIES


_operator = functools.cache(_Operator)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    operator, on_gpu, on_host = _operator(func), list[GpuTensor](), list[Tensor]()
    held = [_held(value, on_gpu, on_host) for value in args]
    options = {name: _held(value, on_gpu, on_host) for name, value in kwargs.items()}
    has_gpu = bool(on_gpu)
    if has_gpu and on_host and not operator.is_copy and any(tensor.ndim for tensor in on_host):
        raise RuntimeError(f"{operator.name} was given tensors of cuda:0 and of the CPU")
    if has_gpu and operator.name == _INDEXED_WRITE and not isinstance(args[2], GpuTensor):
        _PRESENT[-1].reads += 1
    wanted = kwargs.get("device")
    if wanted is not None:
        options["device"] = torch.device("cpu")
    if options.get("pin_memory"):
        options["pin_memory"] = False
    result = func(*held, **options)
    if operator.name == "aten::_local_scalar_dense":
        _PRESENT[-1].reads += has_gpu
        return result
    if operator.name == "aten::copy_" and not isinstance(args[0], GpuTensor):
        _PRESENT[-1].reads += has_gpu
        return args[0]
    asked_for = wanted is not None and torch.device(wanted).type == "cuda"
    if not (has_gpu or asked_for or _is_for_backward_on_gpu(bool(on_host))):
        return result
    if has_gpu and operator.returns_what_it_is_given:
        if result is held[0]:  # written in place
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, _on_gpu(result))
    return _on_gpu(result)


def _held(value: Any, on_gpu: list[GpuTensor], on_host: list[Tensor]) -> Any:
    """An argument as the CPU takes it. Its tensors are added to the two lists."""
    if isinstance(value, GpuTensor):
        on_gpu.append(value)
        return value.held
    if isinstance(value, Tensor):
        on_host.append(value)
        return value
    if isinstance(value, list | tuple):
        return type(value)([_held(part, on_gpu, on_host) for part in value])
    return value


def _on_gpu(result: Any) -> Any:
    if isinstance(result, Tensor):
        return GpuTensor(result)
    if isinstance(result, list | tuple):
        return type(result)([_on_gpu(part) for part in result])
    return result


def _is_for_backward_on_gpu(is_given_some: bool) -> bool:
    """Whether an operator makes a tensor of no other one for a backward pass on the GPU, and not for one on the CPU.

    It is asked of those that were given no tensor of the GPU.
    """
    gpu, task = _PRESENT[-1], torch._C._current_graph_task_id()
    if task == -1:
        return False
    if is_given_some:
        gpu.backward_on_host = task
    return gpu.backward_on_host != task


class Stream:
    """Does nothing: all work is done at once."""

    device, device_index, cuda_stream = DEVICE, 0, 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _other: Any) -> None:
        """Nothing is under way."""

    wait_event = wait_stream

    def synchronize(self) -> None:
        """The same."""


class Event:
    """The host's clock."""

    def __init__(self, **_: Any) -> None:
        self._seconds = 0.0

    def record(self, _stream: Any = None) -> None:
        """Of now."""
        self._seconds = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """In milliseconds."""
        return 1e3 * (end._seconds - self._seconds)

    def synchronize(self) -> None:
        """It has happened."""


class Graph:
    """A tape."""

    def __init__(self) -> None:
        self.tape = Tape()

    def replay(self) -> None:
        """Runs its operators again."""
        self.tape.replay()
        _PRESENT[-1].replays += 1


@contextlib.contextmanager
def _capturing(graph: Graph, **_: Any) -> Generator[None]:
    """What is done meanwhile is done, too, where a GPU would not: the capture puts back what it changes."""
    gpu = _PRESENT[-1]
    reads = gpu.reads
    with graph.tape:
        yield
    if gpu.reads > reads:
        raise RuntimeError("operation not permitted when stream is capturing")
    gpu.captures += 1


class PretendedGpu:
    """What happened on it.

    Attributes:
        reads: how often the host has asked for what a tensor holds, or has brought the GPU a number in a way for which
            it waits as well; each time it would wait for a real GPU.
        captures, replays: of graphs.
        backward_on_host: the number of the last backward pass of tensors of the host.
    """

    device = DEVICE

    def __init__(self) -> None:
        self.reads = self.captures = self.replays = 0
        self.backward_on_host = -1


_PRESENT: list[PretendedGpu] = []


@contextlib.contextmanager
def pretended_gpu() -> Generator[PretendedGpu]:
    """A machine with one GPU, for this process and as long as it is entered."""
    gpu = PretendedGpu()
    torch._C._ensureCUDADeviceGuardSet()
    autocast, tensor_of, generator = torch.autocast, torch.tensor, torch.Generator

    class Autocast(autocast):  # type: ignore[misc, valid-type]
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def tensor(data: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
        made = tensor_of(data, dtype=dtype)
        return made if device is None else made.to(device)

    def nothing(*_: Any, **__: Any) -> None:
        pass

    def answers(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    cuda: dict[str, Any] = {
        "_lazy_init": nothing,
        "is_available": answers(True),
        "is_initialized": answers(True),
        "is_bf16_supported": answers(True),
        "device_count": answers(1),
        "current_device": answers(0),
        "get_device_name": answers(NAME),
        "get_device_properties": answers(
            SimpleNamespace(total_memory=MEMORY_BYTES, uuid="pretended", major=9, minor=0)
        ),
        "mem_get_info": answers((MEMORY_BYTES, MEMORY_BYTES)),
        "memory_allocated": answers(2**20),
        "memory_reserved": answers(2**20),
        "max_memory_allocated": answers(2**20),
        "reset_peak_memory_stats": nothing,
        "set_per_process_memory_fraction": nothing,
        "empty_cache": nothing,
        "synchronize": nothing,
        "manual_seed_all": nothing,
        # One generator serves the host and the device, so that draws are those of a training on the CPU.
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": _capturing,
        "graph_pool_handle": answers((0, 1)),
        "current_stream": lambda *_: Stream(),
        "stream": lambda _stream: contextlib.nullcontext(),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        replaced = {"autocast": Autocast, "tensor": tensor, "Generator": lambda *_, **__: generator()}
        stack.enter_context(mock.patch.multiple(torch, **replaced))
        of_tensors = {
            "pin_memory": lambda self, *_: self,
            "is_pinned": answers(True),
            "record_stream": nothing,
        }
        stack.enter_context(mock.patch.multiple(Tensor, **of_tensors))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        # Parameters are replaced and not filled: a tensor of the CPU cannot become another kind.
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(_OnGpu())
        _PRESENT.append(gpu)
        stack.callback(_PRESENT.pop)
        yield gpu
