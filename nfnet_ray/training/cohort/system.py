"""The system metrics of a cohort, which are measured once and recorded for each lane."""

from __future__ import annotations

from nfnet_ray.training.context import Context
from nfnet_ray.training.measurement.system import SystemMeter


class SharedSystemMeter(SystemMeter):
    """The SystemMeter of all lanes. The first :meth:`record` of an epoch measures, and the others return the same."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._of_epoch: dict[str, str] | None = None

    def start(self) -> None:
        super().start()
        self._of_epoch = None

    def record(self, is_last: bool) -> dict[str, str]:
        if self._of_epoch is None:
            self._of_epoch = super().record(is_last)
        return self._of_epoch
