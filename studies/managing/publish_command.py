"""``python -m studies publish NAME``: the best network of a study as a model in MLflow's registry."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from dashboards.study_results import load_study
from nfnet_ray.command_line.terminal import say, say_whole, waiting
from nfnet_ray.data.files.beton import RAW
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.models.own.source import source_of
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.serving import classifier
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.destination.experiment import experiment_of
from nfnet_ray.tracking.destination.uri_check import check_tracking_uri
from nfnet_ray.tracking.events import study_id
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.runs.files import REQUIREMENTS_FILE
from nfnet_ray.tracking.runs.inputs import dataset_digest, dataset_name
from nfnet_ray.tracking.runs.model_flavor import ALIAS, PublishedModel, model_name, publish
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import TrialProgress


def publish_best(directory: Path, console: Console) -> None:
    """Publishes the finished trial with the highest accuracy in its last epoch, with the weights of that epoch.

    Raises:
        UserError: none has finished, its checkpoint or the data is gone, MLflow does not have the study, cannot be
            reached, or refuses.
    """
    state, started = StudyState.read(directory)
    study = started["study"]
    tracked = Spool(directory / JOURNAL_FILE, directory / SPOOL_FILE).tracked
    trial = _best(state, study["metric"], directory)
    if not (run_id := tracked.trial_run_ids.get(trial.name)):
        raise UserError(
            f"MLflow does not have {trial.name} yet; first: python -m nfnet_ray.tracking replay {directory}"
        )
    check_tracking_uri(tracked.tracking_uri, experiment_of(started))
    accuracy = trial.last(study["metric"])
    assert accuracy is not None
    plans = {**state.plans, **state.further}
    plan = plans[trial.name]
    recipe = resolve(Recipe.from_values({**study["recipe"], **plan["recipe"], **plan["point"]}))
    with waiting(console, "Publishing …"):
        dataset = open_dataset(study["data"]["path"], study["data"]["fingerprint"])
        network = load_study(directory).load_model(trial.name)
        source = source_of(recipe.model.name) if recipe.model.is_own else None
        description = classifier.Description.of(dataset, recipe.data)
        name = model_name(experiment_of(started))
        version, is_best = publish(
            tracked.tracking_uri,
            run_id,
            name,
            PublishedModel(
                network=network,
                write_files=description.write,
                loader=classifier.__name__,
                column=classifier.IMAGE_COLUMN,
                example=image_file(dataset),
                requirements=[*_requirements(directory), *(source.requirements if source else ())],
                metric=(study["metric"], accuracy),
                step=trial.epoch,
                data=(dataset_name(study["data"], "validation"), dataset_digest(study["data"])),
                tags={"study_id": study_id(started), "trial": trial.name, "epoch": str(trial.epoch)},
                code=source.units if source else (),
            ),
        )
    say(
        console,
        f"{trial.name} (top-1 {accuracy:.1%} after epoch {trial.epoch}) is version {version} of the model {name}"
        f"{f', and has the alias {ALIAS}' if is_best else f'; another version is {ALIAS}'}. Load it with:",
    )
    say_whole(console, f"  mlflow.pyfunc.load_model('models:/{name}/{version}')")


def _best(state: StudyState, metric: str, directory: Path) -> TrialProgress:
    finished = [
        trial
        for trial in state.members
        if trial.outcome == "finished" and trial.name not in state.reruns and trial.last(metric) is not None
    ]
    if not finished:
        raise UserError(f"{directory}: no trial has finished, so there is no network to publish")
    return max(finished, key=lambda trial: trial.last(metric) or 0.0)


def _requirements(directory: Path) -> list[str]:
    """The requirements of the model, in the versions with which the study ran."""
    needed = ("torch", "numpy", "pandas", "pillow", "mlflow", "timm")
    path = directory / REQUIREMENTS_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [line for line in lines if line.partition("==")[0].lower() in needed]
    return found or ["torch", "numpy", "pandas", "pillow"]


def image_file(dataset: Dataset, index: int = 0) -> bytes:
    """A validation image as the bytes of a file: as it is stored, or as PNG."""
    beton = dataset.validation.beton
    stored = beton.image_bytes(index)
    if beton.modes[index] != RAW:
        return stored.tobytes()
    from PIL import Image

    pixels = np.asarray(stored).reshape(int(beton.heights[index]), int(beton.widths[index]), 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
