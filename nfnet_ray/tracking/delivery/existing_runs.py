"""Finds the runs that a study already has in MLflow, and the experiment that contains them."""

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

_CLOCK = "train_seconds"  # grows with each epoch
_ROUNDED = 1 - 1e-6  # a database may store fewer digits of a number than a journal


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
        """Whether a run lacks some of what MLflow has ``confirmed``, e.g. after an older backup was restored.

        Runs that MLflow does not have at all are ignored, and so are runs that are ``held``.
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
    """Finds the runs of a study in the first of these experiments with any: a known one, its own, the default one.

    Without any runs, the experiment named ``experiment`` is returned, if it exists.
    """
    by_name = client.get_experiment_by_name(experiment)
    candidates = [known_experiment_id, by_name.experiment_id if by_name else ""]
    if experiment != DEFAULT_EXPERIMENT:  # earlier versions put all studies into the default experiment
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
            order_by=["attributes.start_time DESC"],  # so that the oldest of several runs is kept
            page_token=page,
        )
        for run in found:
            # If a run's tags have been deleted in MLflow, the run is not recognised, and a new one takes its place.
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
    # Without a server, MLflow would put artifacts into ./mlruns of the process that creates the experiment.
    if database := sqlite_path(tracking_uri):
        folder = artifact_folder(database, name)
        folder.mkdir(parents=True, exist_ok=True)  # so that copies of the database have their own
        location = folder.as_uri()
    return client.create_experiment(name, artifact_location=location, tags=dict(tags))
