"""How the workers of a group meet: torch's process group, which is made on the workers alone.

Ray Train's ``TorchConfig`` does the same on the workers, but whoever imports it imports torch: the driver and the
controller, which train nothing, and take 3 s of a core and hundreds of MB for it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

from nfnet_ray.cluster.connection import ray_internals

SECONDS_TO_LEAVE = 30.0
"""For workers that end: as long as Ray Train gives them (DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)."""


@dataclass
class ProcessGroupConfig(BackendConfig):
    """``timeout_seconds``: after which a collective operation fails."""

    timeout_seconds: int

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroup

    @property
    def train_func_context(self) -> Any:
        return ray_internals.worker_device

    def to_dict(self) -> dict[str, Any]:
        return {"timeout_seconds": self.timeout_seconds}


class ProcessGroup(Backend):
    """Called in the controller. NCCL connects workers that have GPUs, and gloo the others."""

    share_cuda_visible_devices = True  # NCCL needs to see the GPUs of all workers of its node

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, ray_internals.address_and_port)
        kind = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        size, seconds = len(worker_group), backend_config.timeout_seconds
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, ray_internals.join_process_group, address, port, kind, rank, size, seconds
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        del backend_config
        left = worker_group.execute_async(ray_internals.leave_process_group, len(worker_group) > 1)
        with suppress(GetTimeoutError):
            ray.get(left, timeout=SECONDS_TO_LEAVE)
