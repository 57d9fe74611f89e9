"""The runs that a study has in MLflow already, and the experiment that they are in."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nfnet_ray.tracking.delivery.calls import RUN_STATUS
from nfnet_ray.tracking.delivery.spool import STUDY_RUN
from nfnet_ray.tracking.destination.database import artifact_folder
from nfnet_ray.tracking.destination.experiment import DEFAULT_EXPERIMENT
from nfnet_ray.tracking.destination.uri import sqlite_path
from nfnet_ray.tracking.state import StudyState

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CLOCK = "train_seconds"  # it grows with each epoch
_ROUNDED = 1 - 1e-6  # a database may keep fewer digits of a number than a journal


class _RunFound(NamedTuple):
    """A run as it was found: its status, and the training seconds of its latest epoch."""

    status: str
    train_seconds: float


@dataclass
class ExistingRuns:
    """The runs of a study that were found in one experiment.

    Attributes:
        experiment_id: empty if the experiment does not exist yet.
        study_run_id: the study's own run; empty if there is none.
        trial_run_ids: {trial: its run}.
        setting_runs: {key of a setting: (its run, its trials)}, see :mod:`nfnet_ray.tracking.runs.setting_runs`.
    """

    experiment_id: str
    study_run_id: str = ""
    trial_run_ids: dict[str, str] = field(default_factory=dict)
    setting_runs: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    _found: dict[str, _RunFound] = field(default_factory=dict)

    def lack(self, confirmed: StudyState, held: Container[str]) -> bool:
        """Whether a run lacks some of what MLflow has ``confirmed``, as it does after an older backup was restored.

        Runs that MLflow does not have at all are not looked at, nor are those that are ``held``.
        """
        expected = {STUDY_RUN: (confirmed.ended is not None, 0.0)} | {
            trial.name: (trial.state in RUN_STATUS, trial.last(_CLOCK) or 0.0)
            for trial in confirmed.trials.values()
        }
        for run, found in self._found.items():
            has_ended, seconds = expected.get(run, (False, 0.0))
            if run not in held and (
                found.train_seconds < seconds * _ROUNDED or (has_ended and found.status == "RUNNING")
            ):
                return True
        return False


def find_runs(
    client: MlflowClient, study_id: str, experiment: str, known_experiment_id: str = ""
) -> ExistingRuns:
    """The runs of a study, in the first of these experiments that has any: a known one, its own, the default one.

    Without any runs it is the experiment named ``experiment``, if that exists.
    """
    by_name = client.get_experiment_by_name(experiment)
    candidates = [known_experiment_id, by_name.experiment_id if by_name else ""]
    if experiment != DEFAULT_EXPERIMENT:  # where earlier versions put all studies
        default = client.get_experiment_by_name(DEFAULT_EXPERIMENT)
        candidates.append(default.experiment_id if default else "")
    for experiment_id in dict.fromkeys(filter(None, candidates)):
        runs = _runs_in(client, study_id, experiment_id)
        if runs.study_run_id or runs.trial_run_ids:
            return runs
    return ExistingRuns(by_name.experiment_id if by_name else "")


def _runs_in(client: MlflowClient, study_id: str, experiment_id: str) -> ExistingRuns:
    from mlflow.entities import ViewType

    runs, page = ExistingRuns(experiment_id), None
    while True:
        found = client.search_runs(
            [experiment_id],
            f"tags.study_id = '{study_id}'",
            run_view_type=ViewType.ALL,
            order_by=["attributes.start_time DESC"],  # of two, the older one overwrites, and is kept
            page_token=page,
        )
        for run in found:
            # If somebody has deleted a run's tags in MLflow, it is not recognised, and another takes its place.
            tags, run_id = run.data.tags, run.info.run_id
            as_found = _RunFound(run.info.status, run.data.metrics.get(_CLOCK, 0.0))
            if tags.get("kind") == "study":
                runs.study_run_id = run_id
                runs._found[STUDY_RUN] = as_found
            elif "setting" in tags and "trials" in tags:
                runs.setting_runs[tags["setting"]] = run_id, tuple(tags["trials"].split(", "))
            elif "trial" in tags:
                runs.trial_run_ids[tags["trial"]] = run_id
                runs._found[tags["trial"]] = as_found
        page = found.token
        if not page:
            return runs


def create_experiment(client: MlflowClient, tracking_uri: str, name: str, tags: Mapping[str, str]) -> str:
    """Creates an experiment and returns its id. Artifacts of a local database are stored beside it."""
    location = None
    # Without a server, MLflow would put artifacts into ./mlruns of whoever creates the experiment.
    if database := sqlite_path(tracking_uri):
        folder = artifact_folder(database, name)
        folder.mkdir(parents=True, exist_ok=True)  # so that a copy of the database is known by its own
        location = folder.as_uri()
    return client.create_experiment(name, artifact_location=location, tags=dict(tags))
