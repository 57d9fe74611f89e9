"""A study from Python: in a notebook or a script, in any thread, on the path that the command lines take."""

from __future__ import annotations

import inspect
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, overload

from dashboards.study_results import StudyResults, load_study
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, interruptible
from nfnet_ray.command_line.python_arguments import (
    a_dict,
    a_flag,
    a_list,
    a_number,
    a_path,
    a_text,
    a_whole_number,
    one_of,
    refusal,
)
from nfnet_ray.command_line.terminal import new_console
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.study.annotations import note_text, tag_pair
from nfnet_ray.study.halving import SCHEDULES, Halving, Schedule
from nfnet_ray.study.space import Domain
from nfnet_ray.study.space.sweep_text import parse_domain
from nfnet_ray.study.study import MOST_SETTINGS, Study
from nfnet_ray.tracking.destination.uri import without_password
from studies.running import run as one_path
from studies.running.names import MOST_SEEDS, seeds_text, study_name
from studies.running.planning.study_plan import StudyPlan
from studies.running.program import StudyFactory, StudyProgram
from studies.running.request import CAPS, DEFAULT_STORAGE, Request
from studies.running.trials import StudyRequest


@overload
def run(
    study: Study | StudyFactory | StudyProgram | None = None, *, plan: Literal[True], **arguments: Any
) -> StudyPlan: ...
@overload
def run(
    study: Study | StudyFactory | StudyProgram | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    trials: int | None = None,
    seeds: int | str | None = None,
    search: str | None = None,
    earlier: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Domain | Sequence[Any] | str] | None = None,
    early_stopping: Halving | str | None = None,
    schedule: Literal["truncated", "stretched"] | None = None,
    equal_within: float | None = None,
    holdout: float | None = None,
    confirm: int | None = None,
    storage: str | os.PathLike[str] = DEFAULT_STORAGE,
    name: str | None = None,
    may_continue: bool = False,
    resume: str | None = None,
    extend: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    workers_per_trial: int | Sequence[int] | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float | None = None,
    trials_at_once: int | None = None,
    cohorts: int | None = None,
    verify: Literal["quick", "full"] = "quick",
    notes: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    notify: str | None = None,
    max_hours: float | None = None,
    max_gpu_hours: float | None = None,
    max_cost: float | None = None,
    price_per_hour: float | None = None,
    plan: Literal[False] = False,
    **own: Any,
) -> StudyResults: ...
def run(
    study: Study | StudyFactory | StudyProgram | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    trials: int | None = None,
    seeds: int | str | None = None,
    search: str | None = None,
    earlier: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Domain | Sequence[Any] | str] | None = None,
    early_stopping: Halving | str | None = None,
    schedule: Literal["truncated", "stretched"] | None = None,
    equal_within: float | None = None,
    holdout: float | None = None,
    confirm: int | None = None,
    storage: str | os.PathLike[str] = DEFAULT_STORAGE,
    name: str | None = None,
    may_continue: bool = False,
    resume: str | None = None,
    extend: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    workers_per_trial: int | Sequence[int] | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float | None = None,
    trials_at_once: int | None = None,
    cohorts: int | None = None,
    verify: Literal["quick", "full"] = "quick",
    notes: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    notify: str | None = None,
    max_hours: float | None = None,
    max_gpu_hours: float | None = None,
    max_cost: float | None = None,
    price_per_hour: float | None = None,
    plan: bool = False,
    **own: Any,
) -> StudyResults | StudyPlan:
    """Runs a study as its command line does, and returns its results.

    The arguments mean what the flags of ``python studies/agc_sweep.py --help`` mean, and messages name the flags.
    Progress is printed; the journal, the report and MLflow are written, so the study can also be resumed from the
    command line.

    Args:
        study: a :class:`nfnet_ray.Study`, or a function that builds one for a data set, such as
            ``studies.agc_sweep.agc_sweep``. Leave it out with ``resume``: the journal has it.
        data: a data set written by data_prep; by default the ``data.path`` of a Study's Recipe, or else the handwritten
            digits, which are created on first use.
        epochs: epochs of each trial.
        trials: run only this number of settings, the first ones, each with all seeds.
        seeds: each setting is trained with one seed, and those that may be the best then with this number of seeds in
            all; ``"3,all"`` trains each setting with three seeds. By default a Study's own.
        search: how the points of the space are found: ``grid``, ``sobol``, ``random``, ``tpe`` or ``gp``; by default
            the study's own.
        earlier: the name or folder of an earlier study whose best settings are tried first.
        settings: {dotted name of a Recipe field: value}. A swept field that is set is fixed for all trials.
        sweep: {dotted name of a Recipe field: domain}, in place of the study's own domain of the field. A domain is a
            list of values, an :class:`nfnet_ray.Range`, :class:`~nfnet_ray.When` or :class:`~nfnet_ray.SameAs`, or a
            text such as ``"log:0.002..0.3"``, as ``--sweep`` takes it.
        early_stopping: which trials end early: an :class:`nfnet_ray.Halving`, or a text as for ``--early-stopping``,
            such as ``synchronous:eta=4`` or ``none``; by default the study's own.
        schedule: ``stretched`` trains to each rung with a complete learning-rate schedule; by default the study's own.
        equal_within: settings whose accuracies differ by less, in points, are equal in practice; by default 0.2.
        holdout: quote the best setting on this share of the validation images, and choose it on the others.
        confirm: when all settings have been compared, train the best one again with this number of fresh seeds, and
            quote the accuracy of these reruns.
        storage: the folder of all results.
        name: the name of the study's folder; by default the study's name and the time.
        may_continue: continue the study if one with this ``name`` and the same settings exists.
        resume: the name of a study that was stopped.
        extend: the name of a study that has ended, finished or not, and becomes ``study``, with other values, seeds,
            epochs or settings. What it has trained is kept. Without ``study`` only the other arguments change it.
        address: a running Ray cluster, ``auto`` or HOST:PORT; by default Ray is started on this machine.
        tracking_uri: where MLflow records the study; ``"none"``: nowhere.
        workers_per_trial: more than one train data-parallel through Ray Train; with (2, 8) a trial continues with as
            few as two while machines are missing.
        cpus_per_worker: cores of each worker.
        gpus_per_worker: GPUs of each worker; 0.25 packs four workers on a GPU.
        trials_at_once: the number of trials that run at once.
        cohorts: experimental: train up to this number of trials as one program, if they share the batches, the shapes
            and the passes (docs/cohorts.md).
        verify: ``full`` also checks each image's bytes against its hash.
        notes: texts about the study, which are kept in the journal and shown in the report and in MLflow.
        tags: {key: value}, by which ``python -m studies list`` and MLflow find it.
        notify: a webhook, to which a JSON document is posted when the study ends, fails or reaches a limit on its cost.
        max_hours: a cap on the hours for which drivers are at work. A study that reaches a cap keeps checkpoints and
            returns what it has; ``resume`` with a higher cap continues it, and infinity removes a cap.
        max_gpu_hours: a cap on the GPU-hours (without GPUs, worker-hours) of all trials.
        max_cost: a cap on GPU-hours times ``price_per_hour``.
        price_per_hour: the price of one GPU for an hour; without GPUs, of one worker.
        plan: print what would run and what it would cost, as ``--plan`` does, and return that; nothing is started. A
            trial may be measured for up to two minutes.
        own: further arguments of the function that builds the study, such as ``weights`` of the transfer study.

    Returns:
        The study's record, which :func:`nfnet_ray.load_study` reads as well. A trial that failed has the state
        ``failed`` in its table ``trials``. With ``plan``, a :class:`nfnet_ray.StudyPlan`.

    Raises:
        UserError: something is wrong that a person can fix; the message says what to do. If Ray's head ends, or its
            node while this waits for it, the process ends, too, with that message and exit code 2: Ray would end it
            later, without a word.
        KeyboardInterrupt: the study was stopped; what was finished is kept, and the command that resumes it is printed.
            In the main thread the first Ctrl-C (or SIGTERM) lets the trials keep a checkpoint. In other threads no
            signal is handled.
    """
    number, for_all = _seeds(seeds)
    fields = a_dict(
        "settings", {} if settings is None else settings, "a dict {dotted name of a field: value}"
    )
    domains = a_dict("sweep", {} if sweep is None else sweep, "a dict {dotted name of a field: its values}")
    said = a_dict("tags", {} if tags is None else tags, "a dict {key: value}")
    request = StudyRequest(
        program=_program(study, resume, extend, own),
        own=own,
        data=_data(study, data) if data is not None or "data.path" not in fields else None,
        epochs=_whole("epochs", epochs),
        trials=_whole("trials", trials, MOST_SETTINGS),
        seeds=number,
        are_seeds_for_all=for_all,
        search=_text("search", search),
        earlier=None if earlier is None else str(a_path("earlier", earlier)),
        settings=fields,
        sweep={field: _domain(field, domain) for field, domain in domains.items()},
        early_stopping=early_stopping
        if isinstance(early_stopping, Halving)
        else _text(
            "early_stopping", early_stopping, "a Halving, or a text such as 'synchronous:eta=4' or 'none'"
        ),
        schedule=None if schedule is None else cast(Schedule, one_of("schedule", schedule, SCHEDULES)),
        equal_within=_above_zero("equal_within", equal_within),
        holdout=_share("holdout", holdout),
        confirm=_whole("confirm", confirm, MOST_SEEDS),
        storage=a_path("storage", storage),
        name=_name("name", name),
        may_continue=a_flag("may_continue", may_continue),
        resume=_name("resume", resume),
        extend=_name("extend", extend),
        address=_text("address", address),
        tracking_uri=_text("tracking_uri", tracking_uri),
        workers_per_trial=_least_and_most("workers_per_trial", workers_per_trial),
        cpus_per_worker=_whole("cpus_per_worker", cpus_per_worker),
        gpus_per_worker=_at_least_zero("gpus_per_worker", gpus_per_worker),
        trials_at_once=_whole("trials_at_once", trials_at_once),
        cohorts=_whole("cohorts", cohorts),
        verify=one_of("verify", verify, ("quick", "full")),
        notes=_notes(notes),
        tags=dict(tag_pair(f"{key}={value}") for key, value in said.items()),
        notify=_text("notify", notify, "the address of a webhook"),
        max_hours=_cap("max_hours", max_hours),
        max_gpu_hours=_cap("max_gpu_hours", max_gpu_hours),
        max_cost=_cap("max_cost", max_cost),
        price_per_hour=_above_zero("price_per_hour", price_per_hour),
        plan=a_flag("plan", plan),
    )
    console = new_console()
    console.record = request.plan
    with _environment_kept(), interruptible():
        finished = one_path.run(request, _resume_command, console)
    if finished.exit_code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if finished.plan is not None:
        return replace(finished.plan, text=console.export_text())
    return load_study(finished.directory)


def _program(
    study: Study | StudyFactory | StudyProgram | None,
    resume: str | None,
    extend: str | None,
    own: Mapping[str, Any],
) -> StudyProgram:
    if resume is not None and isinstance(study, Study):
        raise UserError(f"resume={resume!r} takes the study from its journal: leave the study out")
    if study is None and resume is None and extend is None:
        raise UserError("there is nothing to run: give a study, resume=NAME or extend=NAME")
    if study is not None and not isinstance(study, Study | StudyProgram) and not callable(study):
        raise refusal(
            "study", study, "a Study, or a function that builds one, such as agc_sweep of studies.agc_sweep"
        )
    is_whole = isinstance(study, Study)
    program = (
        study
        if isinstance(study, StudyProgram)
        else StudyProgram(_builder(study), is_open=study is None, is_whole=is_whole)
    )
    known = inspect.signature(program.build).parameters if own else {}
    unknown = [name for name in own if name not in known]
    if unknown:
        raise TypeError(f"run() got an unexpected keyword argument {unknown[0]!r}")
    return program


def _builder(study: Study | StudyFactory | None) -> StudyFactory:
    """The function that builds a study, or one that gives a study data and epochs."""
    if study is not None and not isinstance(study, Study):
        return study

    def build(data: DatasetSummary, epochs: int | None = None) -> Study:
        assert study is not None
        values = {"data.path": str(data.path)} | ({"schedule.epochs": epochs} if epochs else {})
        return replace(study, recipe=study.recipe.with_values(values))

    return build


def _data(study: object, data: str | os.PathLike[str] | None) -> Path | None:
    if data is not None:
        return a_path("data", data)
    return Path(study.recipe.data.path) if isinstance(study, Study) and study.recipe.data.path else None


def _domain(name: str, domain: Domain | Sequence[Any] | str) -> Domain:
    if isinstance(domain, str):
        return parse_domain(name, domain)
    return tuple(domain) if isinstance(domain, list) else domain  # pyrefly: ignore[bad-return]  # a Study checks it


def _whole(name: str, value: int | None, most: int | None = None) -> int | None:
    return None if value is None else a_whole_number(name, value, 1, most)


def _seeds(value: int | str | None) -> tuple[int | None, bool]:
    """The number of seeds, and whether they are for all settings."""
    if not isinstance(value, str):
        return _whole("seeds", value, MOST_SEEDS), False
    try:
        return seeds_text(value)
    except UserError:
        allowed = f"a whole number from 1 to {MOST_SEEDS:,}, or a text such as '3,all'"
        raise refusal("seeds", value, allowed) from None


def _least_and_most(name: str, value: int | Sequence[int] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        least, most = [
            a_whole_number(name, bound)
            for bound in (value if isinstance(value, tuple | list) else (value, value))
        ]
        if least <= most:
            return least, most
    except (UserError, ValueError):
        pass
    raise refusal(name, value, "a whole number above 0, or two of them, the smaller one first")


def _notes(notes: Sequence[str]) -> list[str]:
    given = a_list("notes", [notes] if isinstance(notes, str) else notes, "a list of texts")
    return [note_text(a_text("notes", note, "a list of texts")) for note in given]


def _text(name: str, value: str | None, allowed: str = "a text") -> str | None:
    return None if value is None else a_text(name, value, allowed)


def _name(name: str, value: str | None) -> str | None:
    return None if value is None else study_name(a_text(name, value, "the name of a study"))


def _above_zero(name: str, value: float | None) -> float | None:
    return None if value is None else a_number(name, value, "a number above 0", above=0)


def _cap(name: str, value: float | None) -> float | None:
    allowed = "a number above 0, or infinity for no cap"
    return None if value is None else a_number(name, value, allowed, above=0, or_infinity=True)


def _at_least_zero(name: str, value: float | None) -> float | None:
    return None if value is None else a_number(name, value, "a number of at least 0", at_least=0)


def _share(name: str, value: float | None) -> float | None:
    return None if value is None else a_number(name, value, "a number above 0 and below 1", above=0, below=1)


def _resume_command(request: Request, name: str) -> str:
    """The call that resumes a study."""
    arguments = {"resume": name}
    for flag in ("address", "tracking_uri", "trials_at_once", "cohorts", *CAPS):
        value = getattr(request, flag)
        if value:
            arguments[flag] = without_password(value) if isinstance(value, str) else value
    if request.storage != DEFAULT_STORAGE:
        arguments["storage"] = str(request.storage)
    return f"nfnet_ray.run({', '.join(f'{flag}={value!r}' for flag, value in arguments.items())})"


@contextmanager
def _environment_kept() -> Generator[None]:
    """Puts back what a run changes in the environment, where Ray's processes find what they need."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in {*before, *os.environ}:
            if name not in before:
                os.environ.pop(name, None)
            elif os.environ.get(name) != before[name]:
                os.environ[name] = before[name]
