"""Deletes a study's runs in MLflow, which are found by the study's id in their tags.

MLflow marks a run as deleted; ``mlflow gc`` removes it for good, and until then it can be restored.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from nfnet_ray.tracking.destination.database import client_uri
from nfnet_ray.tracking.destination.server import (
    MLFLOW_ENVIRONMENT,
    cannot_carry_out,
    check_server,
    go_past_proxies_to_this_machine,
)
from nfnet_ray.tracking.destination.uri import sqlite_path, with_credentials_aside
from nfnet_ray.tracking.runs.view import TAG_PREFIX, RunKind, view_key

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class TrackedRuns:
    """The runs of one study in MLflow that are not deleted.

    Attributes:
        views: {id of an experiment: keys of its tags with saved comparisons}.
    """

    tracking_uri: str
    run_ids: tuple[str, ...] = ()
    views: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find_runs(tracking_uri: str, study_id: str) -> TrackedRuns:
    """Finds the runs of a study in all experiments. A database that does not exist has none, and is not created.

    Raises:
        UserError: MLflow cannot be reached, or refuses us.
    """
    uri = with_credentials_aside(tracking_uri)
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        return TrackedRuns(uri)
    if database is None:
        check_server(uri)
    try:
        return _find(_client(uri), uri, study_id)
    except Exception as error:  # MLflow, SQLAlchemy and requests may raise anything
        raise cannot_carry_out(uri, error) from error


def delete_runs(found: TrackedRuns) -> None:
    """Deletes runs. Runs that are already deleted are skipped, so the call can be repeated.

    Raises:
        UserError: MLflow cannot be reached, or refuses. Runs that were deleted before stay deleted.
    """
    if not found.run_ids and not found.views:
        return
    try:
        client = _client(found.tracking_uri)
        for run_id in found.run_ids:
            client.delete_run(run_id)
        for experiment, keys in found.views.items():
            for key in keys:
                client.delete_experiment_tag(experiment, key)
    except Exception as error:
        raise cannot_carry_out(found.tracking_uri, error) from error


def _client(uri: str) -> MlflowClient:
    os.environ.update(MLFLOW_ENVIRONMENT)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    go_past_proxies_to_this_machine(uri)
    for name in (
        "mlflow",
        "alembic",
    ):  # they print stack traces, which our message summarises
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=client_uri(uri))


def _find(client: MlflowClient, uri: str, study_id: str) -> TrackedRuns:
    run_ids: list[str] = []
    views: dict[str, tuple[str, ...]] = {}
    quoted = study_id.replace("\\", "\\\\").replace("'", "\\'")
    page = None
    experiments = []
    while True:
        found = client.search_experiments(page_token=page)
        experiments += list(found)
        page = found.token
        if not page:
            break
    of_study = [f"{TAG_PREFIX}{view_key(study_id, kind)}" for kind in get_args(RunKind)]
    for experiment in experiments:
        while True:
            runs = client.search_runs(
                [experiment.experiment_id], f"tags.study_id = '{quoted}'", page_token=page
            )
            run_ids += [run.info.run_id for run in runs]
            page = runs.token
            if not page:
                break
        if keys := tuple(key for key in of_study if key in experiment.tags):
            views[experiment.experiment_id] = keys
    return TrackedRuns(uri, tuple(run_ids), views)
