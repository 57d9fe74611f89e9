"""Takes the place of :mod:`nfnet_ray.tracking.delivery.sink` if a study is not recorded in MLflow."""

from __future__ import annotations


class NotRecorded:
    """Has the methods of the sink that a study calls while it runs; imports and writes nothing.

    The journal has all that MLflow would be told, and delivers it later (``python -m nfnet_ray.tracking replay``).
    """

    backlog = 0
    status = "MLflow: not recorded"

    def start(self) -> None: ...

    def wake(self) -> None: ...

    def close(self, _deadline_seconds: float) -> int:
        """No event is missing where none was to be delivered."""
        return 0
