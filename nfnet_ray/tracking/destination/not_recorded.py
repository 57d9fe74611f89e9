"""In the place of MLflow's sink if a study is not recorded in MLflow (``--tracking-uri none``)."""

from __future__ import annotations


class NotRecorded:
    """What a study asks of :class:`nfnet_ray.tracking.sink.MLflowSink` while it runs; imports and writes nothing.

    The journal has all that MLflow would be told, and delivers it later (``python -m nfnet_ray.tracking replay``).
    """

    backlog = 0
    status = "MLflow: not recorded"

    def start(self) -> None: ...

    def wake(self) -> None: ...

    def close(self, _deadline_seconds: float) -> int:
        """No event is missing where none was to be delivered."""
        return 0
