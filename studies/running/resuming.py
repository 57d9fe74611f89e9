"""Resuming a study: which one is meant, that it is the same, and the command that does it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nfnet_ray.cluster.connection.job import submission_id
from nfnet_ray.data.files.dataset import DatasetSummary, check_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.printable import interpreter, shell_command, shown
from nfnet_ray.study.state import StudyProgress
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import JOURNAL_FILE, StudyStarted, read_events
from nfnet_ray.tracking.uri import without_password
from studies.running.run import WorkerDemand

DEFAULT_STORAGE = Path("runs")


def refuse_with_resume(options: argparse.Namespace, fixed: Sequence[str]) -> None:
    """Raises UserError if one of the ``fixed`` flags, or a name, was given."""
    given = [name for name in fixed if getattr(options, name) not in (None, [])]
    given += [name for name in ("name", "may_continue") if getattr(options, name)]
    if given:
        flag = "--continue" if given[0] == "may_continue" else "--" + given[0].replace("_", "-")
        raise UserError(
            f"{flag} cannot be changed with --resume {options.resume}: leave it out, or start anew without --resume"
        )


def has_begun(directory: Path) -> bool:
    """Whether a study or training is kept there.

    A journal without one whole line is of a driver that was killed as it wrote the first: nothing has begun.
    """
    return any(read_events(directory / JOURNAL_FILE))


def go_on(
    study: Study,
    data: DatasetSummary,
    demand: WorkerDemand,
    directory: Path,
    options: argparse.Namespace,
) -> tuple[StudyProgress, WorkerDemand]:
    """How far the study in ``directory`` is and what its workers were given, if it is the one that was asked for.

    What ``demand`` leaves to the cluster stays as it was. Raises UserError where the study must not go on
    unasked, or differs.
    """
    if not options.may_continue and (options.name or submission_id() is None):
        raise UserError(
            f"{directory} holds a study already: resume it with --resume {study.name} or --continue, "
            "or take another --name"
        )
    progress, started = StudyProgress.read(directory)
    before = started["study"]["worker"]
    earlier = Study.from_event(started)
    differences = study.differences(
        replace(earlier, recipe=earlier.recipe.with_values(progress.changed))  # by --force
    )
    for name, now, then in (
        ("workers per trial", demand.workers, before["workers"]),
        ("cpus per worker", demand.cpus, before["cpus"]),
        ("gpus per worker", demand.gpus, before["gpus"]),
    ):
        if now is not None and now != then:
            differences.append(f"{name} is {now}, was {then}")
    if data.fingerprint != started["study"]["data"]["fingerprint"]:
        differences.append(f"data is {data.fingerprint}, was {started['study']['data']['fingerprint']}")
    if differences:
        raise UserError(
            f"{directory} holds another study ({'; '.join(differences)}): start this one under another --name, "
            f"or resume that one with --resume {study.name}"
        )
    return progress, WorkerDemand(**before, trials_at_once=demand.trials_at_once)


def with_data_here(study: Study, started: StudyStarted, home: Path) -> Study:
    """The study with its data's place below ``home``, if it lay elsewhere and the same data is here under that name.

    So a checkout that was moved or copied uses its own.
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
    """Raises UserError if it is not what the study began with."""
    before = started["study"]["data"]["fingerprint"]
    if data.fingerprint != before:
        raise UserError(
            f"{data.path} is not the data that the study began with (fingerprint {data.fingerprint}, then {before}): "
            "put that back, or start a new study"
        )


def resume_command(file: Path, options: argparse.Namespace, name: str) -> str:
    """The command that goes on with what is called ``name``."""
    parts = [interpreter(), shown(file), "--resume", name]
    for flag in ("address", "tracking_uri", "trials_at_once", "checkpoint_minutes", "hang_seconds"):
        if getattr(options, flag, None):
            parts += [f"--{flag.replace('_', '-')}", without_password(str(getattr(options, flag)))]
    if options.storage != DEFAULT_STORAGE:
        parts += ["--storage", str(options.storage)]
    return shell_command(parts)
