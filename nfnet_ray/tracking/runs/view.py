"""Creates a saved view of the MLflow UI that opens on accuracy against training time.

MLflow's charts can have a metric as X axis, but only after some clicks in each browser. The UI can also read its whole
state from a tag of the experiment, ``mlflow.sharedViewState.<key>``, if its address names the key. The format of that
state is internal to the UI and not documented. This module was written against MLflow 3.17, and
``tests/tracking/test_server.py`` checks the resulting page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any, Literal

from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.runs.texts import DIFFERS_TAG
from nfnet_ray.tracking.swept import possible_values, swept_fields, swept_range

TAG_PREFIX = "mlflow.sharedViewState."
EXPERIMENT_KIND_TAG, EXPERIMENT_KIND = "mlflow.experimentKind", "custom_model_development"
"""The tag of an experiment, and its value, with which the UI shows runs instead of traces."""


# The sections in which the UI puts a chart of each other metric. They are folded, because many metrics are constant.
_OTHERS = ("Model metrics", "System metrics")
RunKind = Literal["trial", "setting"]


def view_key(study_id: str, kind: RunKind = "trial") -> str:
    """Returns the key of a study's view of its trials or settings: short, reproducible, and safe in an address."""
    text = study_id if kind == "trial" else f"{study_id} {kind}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def comparison_url(server_url: str, experiment_id: str, key: str) -> str:
    """Returns the address that opens the comparison on an MLflow server such as ``http://127.0.0.1:5000``."""
    return (
        f"{server_url.rstrip('/')}/#/experiments/{experiment_id}/runs"
        f"?viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    )


def comparison_view(
    study: StudyDescription,
    study_id: str,
    now: float,
    kind: RunKind = "trial",
    accuracies: Sequence[str] = (),
) -> str:
    """Returns the value of the tag: the state of the UI, compressed (a tag has at most 20,000 characters).

    There is a chart of the accuracy for each condition, or one for all, as wide as the page. Below are the last
    accuracies and, if several fields are swept, parallel coordinates. These draw only numbers and would silently leave
    out a ``clip_factor`` of none, so they are only included if all values are numbers. The last accuracies are also
    drawn against each field with a range. The charts that the UI would add for all other metrics are folded.

    Args:
        study: the description in the journal, with extensions.
        study_id: the tag by which the list of runs is filtered.
        now: Unix seconds.
        kind: the kind of runs that are shown.
        accuracies: the metrics that have a chart each, by default only the study's metric.
    """
    metric = study["metric"]
    space = {name: possible_values(study, name) for name in swept_fields(study)}
    ranges = [name for name in space if swept_range(study, name) is not None]
    curves = [_curves(name) for name in accuracies or [metric]]
    last: dict[str, Any] = {
        "type": "BAR",
        "uuid": "last-accuracy",
        "metricSectionId": "settings",
        "metricKey": metric,
        "displayName": f"last {metric}",
    }
    parallel: dict[str, Any] = {
        "type": "PARALLEL",
        "uuid": "swept-fields",
        "metricSectionId": "settings",
        "selectedParams": list(space),
        "selectedMetrics": [metric],
        "showAllRuns": True,
        "displayName": "swept fields",
    }
    against: list[dict[str, Any]] = [
        {
            "type": "SCATTER",
            "uuid": f"accuracy-against-{name}",
            "metricSectionId": "settings",
            "xaxis": {"key": name, "type": "PARAM"},
            "yaxis": {"key": metric, "type": "METRIC"},
            "displayName": f"last {metric} against {name}",
        }
        for name in ranges
        if _all_numbers(space[name])
    ]
    numeric = all(map(_all_numbers, space.values()))
    settings = [*against, last, *([parallel] if len(space) > 1 and numeric else [])]
    charts = [*curves, *settings]
    sections: list[dict[str, Any]] = [
        {
            "uuid": "curves",
            "name": "Accuracy against training time",
            "columns": 1 if len(curves) <= 3 else 2,
            "cardHeight": 460,
        },
        {"uuid": "settings", "name": "Last accuracy", "columns": min(len(settings), 2), "cardHeight": 420},
    ]
    columns = [metric, f"{metric}_low", f"{metric}_high"] if kind == "setting" else [metric]
    state = {
        "searchFilter": f"tags.kind = '{kind}' AND tags.study_id = '{study_id}'"
        # Runs of earlier versions lack this tag.
        + (" AND tags.left_out = 'false'" if "outside" in study or kind == "setting" else ""),
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": False,
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in columns),
            *(f"params.`{name}`" for name in space),
            # Empty if a run may be compared with the others.
            *([f"tags.`{DIFFERS_TAG}`"] if kind == "trial" else []),
        ],
        # The default would show ten runs and hide the rest.
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [
            *({**section, "display": True, "isReordered": True} for section in sections),
            *({"uuid": name, "name": name, "display": False, "isReordered": False} for name in _OTHERS),
        ],
        "compareRunCharts": [
            {**chart, "isGenerated": False, "deleted": False, "runsCountToCompare": 100} for chart in charts
        ],
        "globalLineChartConfig": {
            "xAxisKey": "metric",
            "selectedXAxisMetricKey": "train_seconds",
            "lineSmoothness": 0,
        },
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    milliseconds = round(now * 1000)
    return json.dumps(
        {
            "name": f"{study['name']}: accuracy against training time"
            + (", mean over seeds" if kind == "setting" else ""),
            "createdAt": milliseconds,
            "updatedAt": milliseconds,
            "state": f"deflate;{packed}",
        }
    )


def _curves(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"{metric} against train_seconds",
        "metricSectionId": "curves",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": f"{metric} against train_seconds",
        "useGlobalXaxisKey": False,
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": "train_seconds",
        "useGlobalLineSmoothing": False,
        "lineSmoothness": 0,
    }


def _all_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
