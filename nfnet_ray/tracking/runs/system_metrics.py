"""How busy a trial's nodes were, under the names by which MLflow's UI shows it in the tab "System metrics"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nfnet_ray.tracking.events import EpochEnded

# mlflow/system_metrics/system_metrics_monitor.py; the UI's tab has the metrics that begin with it.
_PREFIX = "system/"


def system_metrics(event: EpochEnded) -> dict[str, float]:
    """``system/cpu_utilization_percentage`` and so on; of a trial on several nodes ``system/HOST/cpu_…`` for each.

    Empty for an epoch without a record, as in journals of earlier versions.
    """
    nodes = event.get("system", {})
    return {
        f"{_PREFIX}{f'{_in_name(host)}/' if len(nodes) > 1 else ''}{name}": value
        for host, metrics in nodes.items()
        for name, value in metrics.items()
    }


def node_tags(events: Sequence[EpochEnded]) -> dict[str, str]:
    """The tag ``nodes``: the hosts of the last record."""
    hosts = [list(event["system"]) for event in events if event.get("system")]
    return {"nodes": ", ".join(hosts[-1])} if hosts else {}


def _in_name(host: str) -> str:
    """A host in letters that MLflow takes in the name of a metric."""
    return re.sub(r"[^\w.-]", "_", host)
