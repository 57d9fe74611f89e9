"""A saved view of the MLflow UI that opens on accuracy against training time.

MLflow's charts have a metric as X axis, but only after some clicks in each browser. The UI can also
read its whole state from a tag of the experiment, ``mlflow.sharedViewState.<key>``, when its address
names the key. The format of that state is the UI's own and not documented; this module was written
against MLflow 3.17, and ``tests/tracking/test_server.py`` looks at the page that it gives.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

TAG_PREFIX = "mlflow.sharedViewState."
EXPERIMENT_KIND_TAG, EXPERIMENT_KIND = "mlflow.experimentKind", "custom_model_development"
"""The tag of an experiment, and its value, for which the UI shows runs and not traces."""


def view_key(study_id: str) -> str:
    """The key of a study's view: short, the same each time, and safe in an address."""
    return hashlib.sha256(study_id.encode()).hexdigest()[:16]


def comparison_url(server_url: str, experiment_id: str, key: str) -> str:
    """The address that opens the comparison on an MLflow server such as ``http://127.0.0.1:5000``."""
    return (
        f"{server_url.rstrip('/')}/#/experiments/{experiment_id}/runs"
        f"?viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    )


def comparison_view(
    study_name: str,
    study_id: str,
    metric: str,
    space: Mapping[str, Sequence[Any]],
    now: float,
    *,
    ranges: Sequence[str] = (),
    was_extended: bool = False,
) -> str:
    """The value of the tag: the state of the UI, compressed (a tag holds at most 20,000 characters).

    The accuracy curves get the width of the page. Below are the trials' last accuracies and, where several
    fields are swept, parallel coordinates; those draw numbers only and would silently leave out a
    ``clip_factor`` of none, so every value has to be one. The last accuracies are also drawn against each field with a
    range.

    Args:
        study_name: the title of the view.
        study_id: the trials' ``study_id`` tag, which the list of runs is filtered by.
        metric: what is on the Y axis, and the last axis of the parallel coordinates.
        space: {dotted name: values that it may have, or the ends of its range} of the swept Recipe fields, which are
            params of the runs.
        now: Unix seconds.
        ranges: those of the fields that have a range.
        was_extended: whether trials have the tag ``left_out``, by which those that are not in the study are hidden.
    """
    curves: dict[str, Any] = {
        "type": "LINE",
        "uuid": "accuracy-against-train-seconds",
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
    last = {
        "type": "BAR",
        "uuid": "last-accuracy",
        "metricSectionId": "settings",
        "metricKey": metric,
        "displayName": f"last {metric}",
    }
    parallel = {
        "type": "PARALLEL",
        "uuid": "swept-fields",
        "metricSectionId": "settings",
        "selectedParams": list(space),
        "selectedMetrics": [metric],
        "showAllRuns": True,
        "displayName": "swept fields",
    }
    against = [
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
    charts = [curves, *against, last, *([parallel] if len(space) > 1 and numeric else [])]
    sections: list[dict[str, Any]] = [
        {"uuid": "curves", "name": "Accuracy against training time", "columns": 1, "cardHeight": 460},
        {"uuid": "settings", "name": "Last accuracy", "columns": min(len(charts) - 1, 2), "cardHeight": 420},
    ]
    state = {
        "searchFilter": f"tags.kind = 'trial' AND tags.study_id = '{study_id}'"
        + (" AND tags.left_out = 'false'" if was_extended else ""),
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": False,
        "selectedColumns": [f"metrics.`{metric}`", *(f"params.`{name}`" for name in space)],
        # The default shows ten runs and hides the rest.
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [{**section, "display": True, "isReordered": True} for section in sections],
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
            "name": f"{study_name}: accuracy against training time",
            "createdAt": milliseconds,
            "updatedAt": milliseconds,
            "state": f"deflate;{packed}",
        }
    )


def _all_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
