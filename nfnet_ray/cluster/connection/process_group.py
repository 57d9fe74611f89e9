"""How the workers of a group join each other: as those of Ray's ``TorchTrainer``, but torch is imported in them alone.

``TorchTrainer`` and its ``TorchConfig`` import it wherever they are unpickled. That takes the driver and the controller
1.5 s of a core and 150 MB each, and neither computes anything. A :class:`ProcessGroup` goes to the class that
``TorchTrainer`` derives from, and has Ray Train do in the workers what ``TorchConfig`` has it do there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from nfnet_ray.cluster.connection import ray_internals

SECONDS_TO_LEAVE = 30.0
"""As in ``TorchConfig``."""


@dataclass(frozen=True)
class ProcessGroup(BackendConfig):
    """``backend`` is ``nccl`` or ``gloo``; a collective may take ``timeout_seconds``."""

    backend: str
    timeout_seconds: int

    @property
    def backend_cls(self) -> type[Backend]:
        return _Joining

    @property
    def train_func_context(self) -> Any:
        return _on_own_device

    @property
    def framework(self) -> Any:
        return ray_internals.torch_framework()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _on_own_device() -> AbstractContextManager[Any]:
    """In a worker: torch's current GPU is that worker's."""
    from ray.train.torch.config import TorchConfigContextManager

    context: AbstractContextManager[Any] = TorchConfigContextManager()
    return context


class _Joining(Backend):
    """Called in the controller."""

    share_cuda_visible_devices = True
    """NCCL copies directly between two GPUs if both processes see both."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, ray_internals.address_and_port)
        workers = len(worker_group)
        where_and_how = (address, port, workers, backend_config.backend, backend_config.timeout_seconds)
        join = ray_internals.join_process_group
        ray.get(
            [worker_group.execute_single_async(rank, join, rank, *where_and_how) for rank in range(workers)]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        del backend_config
        left = worker_group.execute_async(ray_internals.leave_process_group, len(worker_group) > 1)
        with suppress(ray.exceptions.GetTimeoutError):
            ray.get(left, timeout=SECONDS_TO_LEAVE)
