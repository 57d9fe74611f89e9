"""Names the load of a trial's nodes as MLflow's UI expects it in the tab "System metrics"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nfnet_ray.tracking.events import EpochEnded

# mlflow/system_metrics/system_metrics_monitor.py; the UI's tab shows the metrics with this prefix.
_PREFIX = "system/"


def system_metrics(event: EpochEnded) -> dict[str, float]:
    """Returns ``system/cpu_utilization_percentage`` and so on; with several nodes ``system/HOST/cpu_…`` for each.

    Empty for an epoch without a record, as in journals of earlier versions.
    """
    nodes = event.get("system", {})
    return {
        f"{_PREFIX}{f'{_in_name(host)}/' if len(nodes) > 1 else ''}{name}": value
        for host, metrics in nodes.items()
        for name, value in metrics.items()
    }


def node_tags(events: Sequence[EpochEnded]) -> dict[str, str]:
    """Returns the tag ``nodes`` with the hosts of the last record."""
    hosts = [list(event["system"]) for event in events if event.get("system")]
    return {"nodes": ", ".join(hosts[-1])} if hosts else {}


def _in_name(host: str) -> str:
    """Replaces the characters of a host name that MLflow does not accept in the name of a metric."""
    return re.sub(r"[^\w.-]", "_", host)
