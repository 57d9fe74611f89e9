"""Replaces :mod:`nfnet_ray.tracking.delivery.sink` if a study is not recorded in MLflow."""

from __future__ import annotations


class NotRecorded:
    """Has the methods of the sink that a study calls while it runs, but imports and writes nothing.

    The journal has everything that MLflow would receive, and can deliver it later (``python -m nfnet_ray.tracking
    replay``).
    """

    backlog = 0
    status = "MLflow: not recorded"

    def start(self) -> None: ...

    def wake(self) -> None: ...

    def close(self, _deadline_seconds: float) -> int:
        """Returns 0, because no event is missing if none was to be delivered."""
        return 0
