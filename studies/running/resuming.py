"""Resuming a study: is it the one that was asked for, is its data the same, and which command resumes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nfnet_ray.cluster.connection.job import submission_id
from nfnet_ray.data.files.dataset import DatasetSummary, check_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.printable import display_path, interpreter, shell_command
from nfnet_ray.study.differences import differing_fields
from nfnet_ray.study.extension import Extension, extension
from nfnet_ray.study.study import TRIALS_FOLDER, Study
from nfnet_ray.tracking.destination.uri import without_password
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE, newer_version, not_understood, read_events
from nfnet_ray.tracking.running_lock import is_running, wait_until_free
from nfnet_ray.tracking.state import StudyState
from studies.running.request import CAPS, DEFAULT_STORAGE, Request
from studies.running.runner import WorkerDemand
from studies.running.started_event import command_line, without_secrets

# For the driver of an attempt before this one. KubeRay begins a new attempt while pods of the last one still end
# (kuberay#5211); there a driver that was asked to stop has 60 s to keep its checkpoints; and a file server keeps the
# lock of a machine that is gone for 90 s (the lease of NFS 4 on Linux).
SECONDS_FOR_AN_EARLIER_ATTEMPT = 120.0
# More epochs of a training that has finished: its learning rate has fallen to zero, so there is nothing to resume.
FROM_ITS_WEIGHTS = "--name NEW --set model.weights=CHECKPOINT --set model.classifier=loaded"
CHECKPOINTS_FOLDER = "checkpoints"  # in the folder of a trial (nfnet_ray/cluster/messages/configs.py)


# What a study may be extended by.
_ADDS = ("--sweep", "--set", "--seeds", "--epochs", "--trials", "--early-stopping", "--confirm")
# What --extend takes: these as well, as long as they are what the study has.
_EXTENDS = (*_ADDS, "--search", "--data")


def refuse_with_begun(request: Request) -> None:
    """Raises UserError if something was given that a study which has begun has in its journal, or another name."""
    flag = "--resume" if request.resume else "--extend"
    if request.resume and request.extend:
        raise UserError(
            "--resume and --extend exclude each other: --extend resumes what it extends, so give it alone"
        )
    if request.may_continue:
        raise UserError(
            f"--continue is for a study that may not have begun, and {flag} {request.begun} needs one that has: leave "
            "one of them out"
        )
    asked = request.fixed() | {"--name": request.name}
    if request.extend:
        asked = {name: value for name, value in asked.items() if name not in _EXTENDS}
    given = [name for name, value in asked.items() if value is not None]
    if given:
        instead = ""
        if request.can_extend and given[0] in _ADDS:
            instead = (
                f"extend the study by it with --extend {request.begun} in place of {flag} {request.begun}, "
            )
        elif given[0] == "--epochs":  # of a training
            instead = f"train on from its weights with {FROM_ITS_WEIGHTS}, "
        raise UserError(
            f"{given[0]} cannot be changed with {flag} {request.begun}: leave it out, {instead}or start a new one "
            f"without {flag}"
        )


def check_can_continue(request: Request) -> None:
    """Raises UserError if ``--continue`` could not find the study again, as it would have another name each time."""
    if request.may_continue and not (request.begun or request.name or submission_id()):
        raise UserError(
            "--continue needs --name NAME: without it each run is a new study, called by the time"
        )


def check_not_newer(directory: Path, progress: StudyState) -> None:
    """Raises UserError if a newer version has written to the journal: what this one leaves out might be decisive."""
    if newer_version(progress.versions) is not None:
        raise not_understood(f"{directory.name}", progress.versions, "")


def demand_before(progress: StudyState, started: StudyStarted) -> WorkerDemand:
    """The resources of the workers in a journal. Raises UserError for values that this version does not know."""
    try:
        return WorkerDemand(**started["study"]["worker"])
    except (KeyError, TypeError) as error:
        what = f"the worker of {started['study']['name']}"
        raise not_understood(what, progress.versions, repr(error)) from error


def check_can_be_extended(directory: Path, started: StudyStarted) -> None:
    """Raises UserError if a study is running, or is a training."""
    name = started["study"]["name"]
    if "checkpoints" in started["study"]:
        raise UserError(f"{name} is a training run, which has nothing to extend: start a new one")
    if is_running(directory):
        raise UserError(f"{name} is running: wait until it has ended, or stop it with Ctrl-C, then extend it")


def has_begun(directory: Path) -> bool:
    """Whether a study or a training has begun in this directory.

    A journal without a whole line is that of a driver that was killed while it wrote the first one.
    """
    return any(read_events(directory / JOURNAL_FILE))


def continued(
    study: Study,
    data: DatasetSummary,
    demand: WorkerDemand,
    directory: Path,
    request: Request,
    say: Callable[[str], object],
) -> tuple[StudyState, WorkerDemand]:
    """The progress of the study that has begun in ``directory``, and what its workers were given.

    What ``demand`` leaves to the cluster stays as it was. If another process still runs the study, waits for it to end,
    and says so. Raises UserError if nobody asked to continue a study, or if it is another one than ``study``.
    """
    if not request.may_continue and (request.name or submission_id() is None):
        raise UserError(
            f"{directory} already holds a study: resume it with --resume {study.name} or --continue, "
            "or take another --name"
        )
    wait_until_free(directory, SECONDS_FOR_AN_EARLIER_ATTEMPT, say)
    progress, started = StudyState.read(directory)
    check_not_newer(directory, progress)
    before = demand_before(progress, started)
    earlier = Study.from_event(started)
    # Fields that were changed with --force are part of it.
    differences = differing_fields(
        study, replace(earlier, recipe=earlier.recipe.with_values(progress.changed))
    )
    for name, now, then in (
        ("workers per trial", demand.workers, before.workers),
        ("least workers per trial", demand.min_workers, before.min_workers),
        ("cpus per worker", demand.cpus, before.cpus),
        ("gpus per worker", demand.gpus, before.gpus),
    ):
        if now is not None and now != then:
            differences.append(f"{name} is {now}, was {then}")
    if data.fingerprint != started["study"]["data"]["fingerprint"]:
        before_it = started["study"]["data"]["fingerprint"]
        differences.append(f"its data has the fingerprint {data.fingerprint}, that one's {before_it}")
    if differences:
        raise UserError(
            f"{directory} holds another study ({'; '.join(differences)}): give this one another --name, "
            f"or resume that one with --resume {study.name}"
        )
    return progress, replace(before, trials_at_once=demand.trials_at_once)


def extension_of(
    request: Request,
    asked: Study,
    earlier: Study,
    progress: StudyState,
    data: DatasetSummary,
    directory: Path,
) -> Extension | None:
    """The extension of a study to what is asked; None if it is that already. Raises UserError if it cannot be."""

    def has_checkpoint(trial: str) -> bool:
        checkpoints = directory / TRIALS_FOLDER / trial / CHECKPOINTS_FOLDER
        return checkpoints.is_dir() and any(checkpoints.iterdir())

    command = command_line(lambda word: without_secrets(word, request.notify))
    return extension(asked, earlier, progress, command, data.validation_images, has_checkpoint)


def with_data_here(study: Study, started: StudyStarted, home: Path) -> Study:
    """The study with the path of its data below ``home``, if the same data is there under the end of its old path.

    So a checkout that was moved or copied uses its own data.
    """
    noted = Path(study.recipe.data.path)
    if noted.is_relative_to(home):
        return study
    for first in range(1, len(noted.parts)):
        here = home.joinpath(*noted.parts[first:])
        if here.is_dir():
            with suppress(UserError):  # something else of that name
                if check_dataset(here).fingerprint == started["study"]["data"]["fingerprint"]:
                    return replace(study, recipe=study.recipe.with_values({"data.path": str(here)}))
    return study


def check_same_data(data: DatasetSummary, started: StudyStarted) -> None:
    """Raises UserError if this is not the data with which the study began."""
    before = started["study"]["data"]["fingerprint"]
    if data.fingerprint != before:
        raise UserError(
            f"{data.path} is not the data with which the study began (fingerprint {data.fingerprint}, then {before}): "
            "restore that data, or start a new study"
        )


def resume_command(file: Path, request: Request, name: str) -> str:
    """The command that resumes the study, or training, called ``name``."""
    parts = [interpreter(), display_path(file), "--resume", name]
    flags = (
        "address",
        "tracking_uri",
        "trials_at_once",
        "cohorts",
        "checkpoint_minutes",
        "hang_seconds",
        *CAPS,
    )
    for flag in flags:
        value = getattr(request, flag, None)
        if value:
            shown = f"{value:.10g}" if isinstance(value, float) else str(value)
            parts += [f"--{flag.replace('_', '-')}", without_password(shown)]
    if request.storage != DEFAULT_STORAGE:
        parts += ["--storage", str(request.storage)]
    return shell_command(parts)
