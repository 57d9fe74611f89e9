"""Calls MLflow's client, and splits calls that exceed MLflow's limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nfnet_ray.tracking.events import StudyStarted, study_id
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.tracking.runs.texts import source_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# The limits of one log_batch call (mlflow/utils/validation.py, MAX_PARAMS_TAGS_PER_BATCH and MAX_METRICS_PER_BATCH).
_PARAMS_AND_TAGS_PER_CALL = 100
_METRICS_PER_CALL = 1000

RUN_STATUS = {
    "finished": "FINISHED",
    "stopped": "FINISHED",  # as planned; the tag ``state`` shows that it ended early
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}
"""{state in which a study or a trial ended: status of its run in MLflow}."""


def create_run(
    client: MlflowClient,
    experiment_id: str,
    started: StudyStarted,
    name: str,
    time: float,
    tags: Mapping[str, str],
) -> str:
    """Creates a run of the study that ``started``, at ``time`` (Unix seconds), and returns its id."""
    study = started["study"]
    return client.create_run(
        experiment_id,
        start_time=milliseconds(time),
        run_name=name,
        tags={
            **tags,
            "study": study["name"],
            "study_id": study_id(started),
            **{f"hardware.{name}": str(value) for name, value in study["hardware"].items()},
            **{f"versions.{name}": str(value) for name, value in study["versions"].items()},
            **source_tags(study),
        },
    ).info.run_id


def end_run(client: MlflowClient, run_id: str, state: str, time: float) -> None:
    """Ends a run of a study or a trial that has ended in ``state``, at ``time`` (Unix seconds)."""
    client.set_terminated(run_id, RUN_STATUS[state], end_time=milliseconds(time))


def log_texts(
    client: MlflowClient, run_id: str, tags: Mapping[str, str], params: Mapping[str, Any] | None = None
) -> None:
    """Logs tags and params in as few calls as possible."""
    from mlflow.entities import Param, RunTag

    run_params = [Param(name, _param(value)) for name, value in (params or {}).items()]
    run_tags = [RunTag(name, value) for name, value in tags.items()]
    room = _PARAMS_AND_TAGS_PER_CALL - len(run_tags)
    client.log_batch(run_id, params=run_params[:room], tags=run_tags)
    for first in range(room, len(run_params), _PARAMS_AND_TAGS_PER_CALL):
        client.log_batch(run_id, params=run_params[first : first + _PARAMS_AND_TAGS_PER_CALL])


def log_texts_unless_deleted(
    client: MlflowClient, run_id: str, tags: Mapping[str, str], params: Mapping[str, Any] | None = None
) -> bool:
    """Logs tags and params, and returns True, or False if the run has been deleted."""
    from mlflow.exceptions import MlflowException

    try:
        log_texts(client, run_id, tags, params)
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


def log_metrics(
    client: MlflowClient, run_id: str, metrics: Sequence[Metric], tags: Mapping[str, str] | None = None
) -> None:
    """Logs metrics, 1,000 per call, and the tags in the first call."""
    from mlflow.entities import RunTag

    run_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
    for first in range(0, len(metrics), _METRICS_PER_CALL):
        client.log_batch(
            run_id,
            metrics=metrics[first : first + _METRICS_PER_CALL],
            tags=() if first else run_tags,
        )


def milliseconds(seconds: float) -> int:
    """Converts Unix seconds to the milliseconds that MLflow expects."""
    return round(seconds * 1000)


def _param(value: Any) -> str:
    """Formats the value of a param. Texts are unchanged, floats keep all digits, and lists can be parsed again."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else value_label(value)
