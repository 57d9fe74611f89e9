"""The one path of every study and every training, from what was asked for to the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nfnet_ray.cluster.connection.address import find_head, where_to_run
from nfnet_ray.cluster.connection.job import home_folder, submission_id
from nfnet_ray.cluster.connection.resources import check_gpu_share
from nfnet_ray.command_line.terminal import say
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.annotations import Annotations
from nfnet_ray.study.cost.plan import check_trials
from nfnet_ray.study.cost.spending import Caps, merged
from nfnet_ray.study.decisions import check_schedules
from nfnet_ray.study.extension import Extension
from nfnet_ray.study.live.webhook import WEBHOOK_VARIABLE, check_webhook
from nfnet_ray.study.space.conditions import unswept_sentences
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.destination.choice import tracking_uri_of_run
from nfnet_ray.tracking.destination.experiment import experiment_name, experiment_of_journal
from nfnet_ray.tracking.destination.uri import NOT_RECORDED
from nfnet_ray.tracking.destination.uri_check import check_scheme
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.running_lock import check_not_running
from nfnet_ray.tracking.state import StudyState
from studies.running.checks import (
    check_networks,
    check_study_folder,
    check_tracking,
    check_weights,
    data_at,
    storage_folder,
    verify,
    with_networks,
    with_weights,
)
from studies.running.execution.execute import execute
from studies.running.execution.study_run import StudyRun
from studies.running.planning.plan_text import print_plan
from studies.running.planning.power_text import images_of_training, noise_of_earlier
from studies.running.planning.study_plan import StudyPlan
from studies.running.request import CAPS, Request
from studies.running.resuming import (
    check_can_be_extended,
    check_can_continue,
    check_not_newer,
    check_same_data,
    continued,
    demand_before,
    extension_of,
    has_begun,
    refuse_with_begun,
    with_data_here,
)
from studies.running.runner import WorkerDemand


@dataclass(frozen=True)
class Finished:
    """The result of a run: its exit code, and the directory of the study."""

    exit_code: int
    directory: Path
    plan: StudyPlan | None = None
    """The plan, if only a plan was asked for."""


@contextmanager
def _files_in_one_line() -> Generator[None]:
    """While this lasts a file that cannot be read or written is named in one line. Raises UserError."""
    try:
        yield
    except OSError as error:
        if error.filename is None:  # no file that somebody could put right
            raise
        raise UserError(f"{error.filename}: {in_words(error)}") from error


@dataclass(frozen=True)
class _Meant:
    """The study that a request means, its data and its folder, and how far it is.

    Attributes:
        demand: what its workers are to be given.
        has_given_data: whether its data is not the built-in one.
        progress: None if it has not begun.
        started: the first event of a study that is resumed or extended.
        grown: of a study that is to be extended, what it was before; ``study`` is then what it becomes.
        extended: how its journal says so.
    """

    study: Study
    data: DatasetSummary
    directory: Path
    demand: WorkerDemand
    has_given_data: bool
    progress: StudyState | None = None
    started: StudyStarted | None = None
    grown: Study | None = None
    extended: Extension | None = None


@_files_in_one_line()
def run(request: Request, resume_command: Callable[[Request, str], str], console: Console) -> Finished:
    """Checks everything that can be checked before Ray starts, then runs the study or only prints its plan.

    Args:
        request: what was asked for.
        resume_command: of (request, name of the study): how a person resumes it.
        console: where everything is printed.

    Raises:
        UserError: something is wrong that a person can put right. Unless the message says otherwise nothing was
            started.
    """
    home = home_folder()
    storage = storage_folder(home, request)
    request, tracking_uri = _with_addresses(request, home, storage)
    meant = _begun(request, home, storage) if request.begun else _new(request, home, storage)
    meant = _checked(meant, request, storage, console)
    if request.extend:
        meant = _extended(meant, request)
    elif not request.begun and not request.plan and has_begun(meant.directory):
        meant = _continued(meant, request, console)

    study, data, directory, demand = meant.study, meant.data, meant.directory, meant.demand
    caps = Caps.of(merged(meant.progress.caps if meant.progress else {}, request.caps))
    if study.halving is not None:
        study.halving.priced(caps.price_per_hour, 1.0)
    runner = request.runner(home, meant.started)
    runner.check(study, demand)
    if demand.gpus is not None:
        check_gpu_share(demand.gpus)
    check_study_folder(directory, study.trials())
    check_weights(study.trials(), len(data.class_names), console)
    for sentence in [] if request.resume else unswept_sentences(study.space, study.recipe):
        say(console, sentence)

    if request.plan:
        for sentence in meant.extended.sentences() if meant.extended else ():
            say(console, sentence)
        plan = print_plan(request, study, data, storage, demand, runner, caps, console, meant.progress)
        return Finished(0, directory, plan)

    def command(caps: Mapping[str, float]) -> str:
        shown: dict[str, Any] = dict.fromkeys(CAPS) | dict(caps)
        return resume_command(replace(request, **shown), study.name)

    progress = meant.progress or study.waiting_state()
    progress.forget_details()
    study_run = StudyRun(
        study,
        data,
        directory,
        tracking_uri,
        command({}),
        progress,
        runner,
        verifies=request.verify == "full",
        changed=request.values() if request.resume else {},
        extended=meant.extended,
        annotations=Annotations(request.notes, request.tags),
        notify_url=request.notify,
        caps=caps,
        given_caps=merged({}, request.caps),
        command_with=command,
        program_file=request.program_file,
    )
    return Finished(execute(study_run, request.address, demand, console), directory)


def _with_addresses(request: Request, home: Path, storage: Path) -> tuple[Request, str]:
    """The request with the webhook and the Ray that are meant, and the address of MLflow.

    Raises UserError if one of them is not there, and for flags that contradict each other.
    """
    tracking_uri = tracking_uri_of_run(request.tracking_uri, storage, home, request.begun or request.name)
    is_recorded = tracking_uri != NOT_RECORDED
    if is_recorded:
        check_scheme(tracking_uri)
    Recipe().with_values(request.values())
    request = replace(request, notify=request.notify or os.environ.get(WEBHOOK_VARIABLE) or None)
    if request.notify is not None:
        check_webhook(request.notify)
    request.check_flags()
    check_can_continue(request)
    request = replace(request, address=where_to_run(request.address))
    if request.address is not None:
        find_head(request.address)
    if is_recorded and not request.plan:
        check_tracking(
            tracking_uri,
            experiment_of_journal(storage / request.begun)
            if request.begun
            else experiment_name(request.program_file),
        )
    return request, tracking_uri


def _begun(request: Request, home: Path, storage: Path) -> _Meant:
    """The study that is resumed or extended, from its journal."""
    refuse_with_begun(request)
    directory = storage / str(request.begun)
    if not request.plan and request.resume:
        check_not_running(directory)
    progress, started = StudyState.read(directory)
    check_not_newer(directory, progress)
    if request.extend:
        check_can_be_extended(directory, started)
    study = with_data_here(Study.from_event(started).grown(progress), started, home)
    if request.resume:
        study = request.resumed(study, progress)
    path = request.data or study.recipe.data.path
    data = data_at(home, path, request.plan, request.digits)
    if not request.allows_other_data:
        check_same_data(data, started)
    grown = study if request.extend else None
    if request.extend:
        study = request.extended(study, data)
    demand = request.demand(demand_before(progress, started))
    return _Meant(study, data, directory, demand, bool(path), progress, started, grown)


def _new(request: Request, home: Path, storage: Path) -> _Meant:
    """The study that is asked for; whether it has begun already is not looked at."""
    values = request.values()
    path = values.pop("data.path", None) or request.data
    data = data_at(home, path, request.plan, request.digits)
    study = request.new_study(data, values, is_built_in=not path)
    directory = storage / study.name
    if not request.plan and not request.may_continue and submission_id() is None:  # they wait for it
        check_not_running(directory)
    return _Meant(study, data, directory, request.demand(None), bool(path))


def _checked(meant: _Meant, request: Request, storage: Path, console: Console) -> _Meant:
    """With the hashes of its code and its weights, and the noise of earlier studies.

    Raises UserError if its data is damaged or its trials cannot be trained.
    """
    study, data = with_networks(meant.study, meant.directory), meant.data
    if len(study.seeds) == 1 and study.seed_spread is None and not request.resume:
        study = replace(study, seed_spread=_seed_spread(study, data, storage))
    if request.verify == "full" and (meant.has_given_data or not request.plan):  # a plan writes no digits
        verify(data.path)
    every = [*study.trials(), *study.outermost_trials()]
    check_trials(every, data, meant.demand.workers)
    check_networks(every, len(data.class_names), console)
    check_schedules(study)
    return replace(meant, study=with_weights(study, request.made_weights, request.plan, console))


def _seed_spread(study: Study, data: DatasetSummary, storage: Path) -> float | None:
    """The spread between seeds of earlier studies, by which single seeds are compared; None: the assumed one."""
    return noise_of_earlier(study, data, storage).spread_to_journal(images_of_training(study, data))


def _extended(meant: _Meant, request: Request) -> _Meant:
    """The study as its extension makes it, or as it was if nothing is added. Raises UserError if it cannot be."""
    assert meant.grown is not None
    assert meant.progress is not None
    data, progress = meant.data, meant.progress
    extended = extension_of(request, meant.study, meant.grown, progress, data, meant.directory)
    study = extended.study if extended else meant.grown
    check_trials([*study.trials(), *study.outermost_trials()], data, meant.demand.workers)
    if extended:
        progress.apply(extended.event)
    return replace(meant, study=study, extended=extended)


def _continued(meant: _Meant, request: Request, console: Console) -> _Meant:
    """The study of that name that has begun. Raises UserError if it is another one, or is not to be continued."""
    progress, demand = continued(
        meant.study, meant.data, meant.demand, meant.directory, request, lambda text: say(console, text)
    )
    return replace(meant, study=meant.study.with_points_of(progress), progress=progress, demand=demand)
