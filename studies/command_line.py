"""The command line that all studies share: flags, checks before anything starts, running, the last words."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from data_prep import digits
from nfnet_ray.cluster.job import HOME_VARIABLE, home_folder, submission_id
from nfnet_ray.cluster.journal import StudyProgress
from nfnet_ray.cluster.plan import check_trials, estimate_cost, training_multiply_adds
from nfnet_ray.cluster.progress import clock_time, reported_epochs, trial_table
from nfnet_ray.cluster.session import available_cpus, check_address
from nfnet_ray.cluster.study import Study, Trial
from nfnet_ray.data.dataset import DatasetSummary, check_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe, field_meanings, parse_setting
from nfnet_ray.tracking.events import JOURNAL_FILE, StudyStarted, read_events
from nfnet_ray.tracking.uri import check_tracking_uri, default_tracking_uri
from studies.run import EXIT_INTERRUPTED, StudyRun, WorkerDemand, interpreter, shown

StudyFactory = Callable[[DatasetSummary, int | None], Study]

BUILT_IN_DATA = Path("data") / "digits"
DEFAULT_STORAGE = Path("runs")
EXIT_USER_ERROR = 2
FIXED_BY_A_STUDY = (
    "data",
    "trials",
    "epochs",
    "seeds",
    "set",
    "workers_per_trial",
    "cpus_per_worker",
    "gpus_per_worker",
)


def main(factory: StudyFactory, file: Path, arguments: Sequence[str] | None = None) -> int:
    """Runs a study's command line; the exit code: 0, 2 for an error of use, 130 for Ctrl-C."""
    options = _parser(factory, file).parse_args(arguments)
    # A terminal is as wide as it is; a log file is given room for a whole row.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        return _run(factory, file, options, console)
    except UserError as error:
        print(f"{file.name}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{file.name}: stopped before the first trial", file=sys.stderr)
        return EXIT_INTERRUPTED


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all other errors of use are said."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"{Path(self.prog).name}: {message}; see --help\n")


def _parser(factory: StudyFactory, file: Path) -> argparse.ArgumentParser:
    meanings = field_meanings()
    width = max(map(len, meanings))
    fields = "\n".join(f"  {name:{width}}  {meaning}" for name, meaning in meanings.items())
    parser = _OneLineParser(
        prog=f"python {shown(file)}",
        description=sys.modules[factory.__module__].__doc__,
        epilog=f"fields for --set FIELD=VALUE:\n{fields}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("where it runs and where results go")
    where.add_argument(
        "--address", help="a Ray cluster that is up: auto, or HOST:PORT; without it, this machine"
    )
    where.add_argument(
        "--storage",
        type=Path,
        default=DEFAULT_STORAGE,
        metavar="DIR",
        help="folder of all studies' results, on a cluster a shared one (default: %(default)s); relative paths, this "
        f"and --data's, start in ${HOME_VARIABLE}, else here, else (a submitted job) in your home folder",
    )
    where.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow: http://HOST:PORT or sqlite:///FILE (default: mlflow.db in the storage folder)",
    )
    where.add_argument(
        "--name",
        type=_study_name,
        help="name of the study's folder (default: the study's name and the time; of a job that was submitted to Ray,"
        " the study's name and the submission id, with --continue)",
    )
    where.add_argument(
        "--continue",
        dest="may_continue",
        action="store_true",
        help="go on with the study of this --name if there is one with the same settings, else start it: one"
        " command line for the first attempt and for all later ones",
    )
    where.add_argument(
        "--resume", type=_study_name, metavar="NAME", help="go on with a study that was stopped"
    )
    what = parser.add_argument_group("what it studies")
    what.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="a data set written by data_prep (default: handwritten digits, written on first use)",
    )
    what.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="what is checked of the data before anything starts: quick, all but the images' bytes; full, each image's"
        " bytes against its hash too, as python -m data_prep verify does (default: %(default)s)",
    )
    what.add_argument("--trials", type=_positive, metavar="N", help="only the first N trials")
    what.add_argument("--epochs", type=_positive, metavar="N", help="epochs of each trial")
    what.add_argument(
        "--seeds", type=_positive, metavar="N", help="repeat each trial with N seeds (default: 1)"
    )
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of the Recipe; a swept field that is set is swept no more",
    )
    shape = parser.add_argument_group("what a trial is given")
    shape.add_argument(
        "--workers-per-trial",
        type=_positive,
        metavar="N",
        help="more than one trains data-parallel through Ray Train (default: 1)",
    )
    shape.add_argument(
        "--cpus-per-worker", type=_positive, metavar="N", help="default: 1, or a GPU's share of the cores"
    )
    shape.add_argument(
        "--gpus-per-worker",
        type=_share,
        metavar="X",
        help="0.25 packs four workers on a GPU (default: 1 if the cluster has GPUs)",
    )
    shape.add_argument(
        "--trials-at-once",
        type=_positive,
        metavar="N",
        help="trials side by side (default: as many as fit on the nodes that are up); where nodes start when they are"
        " asked for, what is asked for",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would run and what it costs; start nothing"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return share


def _run(factory: StudyFactory, file: Path, options: argparse.Namespace, console: Console) -> int:
    home = home_folder()
    storage = (home / options.storage).resolve()
    tracking_uri = options.tracking_uri or default_tracking_uri(storage)
    settings = dict(parse_setting(text) for text in options.set)
    Recipe().with_values(settings)
    if options.address:
        check_address(options.address)
    if not options.plan:
        check_tracking_uri(tracking_uri)
    if options.resume:
        _refuse_with_resume(options)
        directory = storage / options.resume
        progress, started = StudyProgress.read(directory)
        study = Study.from_event(started)
        data = check_dataset(study.recipe.data.path)
        _check_same_data(data, started)
        if options.verify == "full":
            _verify(data.path)
        demand = WorkerDemand(**started["study"]["worker"], trials_at_once=options.trials_at_once)
    else:
        path = settings.pop("data.path", None) or options.data
        data = _data(home, path, options.plan)
        if options.verify == "full" and (path or not options.plan):  # a plan writes no digits
            _verify(data.path)
        epochs = settings.pop("schedule.epochs", None) or options.epochs
        study = _with_settings(factory(data, epochs), settings, options)
        directory = storage / study.name
        progress = StudyProgress.waiting(study)
        demand = WorkerDemand(
            options.workers_per_trial or 1,
            options.cpus_per_worker,
            options.gpus_per_worker,
            options.trials_at_once,
        )
        if options.trials_at_once and None in (demand.cpus, demand.gpus):
            raise UserError(
                "--trials-at-once needs --cpus-per-worker and --gpus-per-worker: "
                "nodes that are not up yet cannot be looked at"
            )
        # A journal without one whole line is of a driver that was killed as it wrote the first: nothing has begun.
        if not options.plan and any(read_events(directory / JOURNAL_FILE)):
            progress, demand = _go_on(study, data, demand, directory, options)
    trials = study.trials()
    check_trials(trials, data, demand.workers)
    if options.plan:
        _print_plan(study, trials, data, demand.workers, console)
        return 0
    run = StudyRun(study, data, directory, tracking_uri, _command(file, options, study.name), progress)
    return run.execute(options.address, demand, console)


def _refuse_with_resume(options: argparse.Namespace) -> None:
    given = [name for name in FIXED_BY_A_STUDY if getattr(options, name) not in (None, [])]
    given += [name for name in ("name", "may_continue") if getattr(options, name)]
    if given:
        flag = "--continue" if given[0] == "may_continue" else "--" + given[0].replace("_", "-")
        raise UserError(
            f"{flag} cannot be changed with --resume {options.resume}: leave it out, or start a new study"
        )


def _go_on(
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
            f"{directory} holds a study already: go on with --resume {study.name} or with --continue, "
            "or take another --name"
        )
    progress, started = StudyProgress.read(directory)
    before = started["study"]["worker"]
    differences = study.differences(Study.from_event(started))
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
            f"or go on with that one by --resume {study.name}"
        )
    return progress, WorkerDemand(**before, trials_at_once=demand.trials_at_once)


def _check_same_data(data: DatasetSummary, started: StudyStarted) -> None:
    before = started["study"]["data"]["fingerprint"]
    if data.fingerprint != before:
        raise UserError(
            f"{data.path} is not the data that the study began with (fingerprint {data.fingerprint}, then {before}): "
            "put that back, or start a new study"
        )


def _data(home: Path, path: str | Path | None, only_plan: bool) -> DatasetSummary:
    if path:
        return check_dataset((home / path).resolve())
    built_in = (home / BUILT_IN_DATA).resolve()
    return digits.describe_digits(built_in) if only_plan else check_dataset(digits.write_digits(built_in))


def _verify(path: Path) -> None:
    """Every byte of the data. Raises UserError if one is not as it was written."""
    from data_prep.byte_progress import bytes_on_stderr
    from nfnet_ray.data.verification import check_all

    check_all(path, os.cpu_count() or 1, bytes_on_stderr)


def _study_name(text: str) -> str:
    """A name that can be a folder's and that nobody has to quote."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name: use letters, digits, dots, dashes and underscores"
        )
    return text


def _with_settings(study: Study, settings: Mapping[str, Any], options: argparse.Namespace) -> Study:
    """The study as the command line wants it. Raises RecipeError before anything is started."""
    recipe = study.recipe.with_values(settings)
    values = recipe.to_values()
    # A job that is submitted again under its id is the same job; anything else is told apart by the time.
    occasion = submission_id() or time.strftime("%Y%m%d-%H%M%S")
    return replace(
        study,
        name=options.name or _study_name(f"{study.name}-{occasion}"),
        recipe=recipe,
        space={
            name: (values[name],) if name in settings else choices for name, choices in study.space.items()
        },
        seeds=tuple(range(recipe.seed, recipe.seed + (options.seeds or 1))),
        trial_limit=options.trials,
    )


def _command(file: Path, options: argparse.Namespace, name: str) -> str:
    """The command that goes on with the study."""
    parts = [interpreter(), shown(file), "--resume", name]
    for flag in ("address", "tracking_uri", "trials_at_once"):
        if getattr(options, flag):
            parts += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
    if options.storage != DEFAULT_STORAGE:
        parts += ["--storage", str(options.storage)]
    return shlex.join(parts)


def _print_plan(
    study: Study, trials: list[Trial], data: DatasetSummary, workers: int, console: Console
) -> None:
    from nfnet_ray.training.probe import measure_images_per_second

    console.print(f"[bold]{study.name}[/bold]: {study.question}")
    console.print(trial_table(study, StudyProgress.waiting(study), reported_epochs))
    cost = estimate_cost(study, trials, data)
    cpus = available_cpus()
    classes = len(data.class_names)
    rate = measure_images_per_second(trials[0].recipe, classes, threads=1)
    # Other trials may be dearer for each image, as those with SAM are: arithmetic is what is scaled by.
    speed = rate * training_multiply_adds(trials[0].recipe, classes)
    side_by_side = max(1, cpus // workers)
    least, most = (
        clock_time(amount / speed / side_by_side) for amount in (cost.least_multiply_adds, cost.multiply_adds)
    )
    span = (
        f"{least} (if halving stops all that it may) to {most} (if it stops none)" if study.halving else most
    )
    console.print(
        f"\n{len(trials)} trials of {study.recipe.model.name} ({cost.parameters:,} parameters) of at most "
        f"{study.epochs} epochs: {cost.images:,} images, {cost.multiply_adds:.3g} multiply-adds.",
        soft_wrap=True,
    )
    console.print(
        f"{span} of training with {side_by_side} "
        f"trials side by side, at {rate:.3g} images/s of the first: measured just now on this "
        "machine, on its GPU if it has one, else on one core.",
        soft_wrap=True,
    )
    console.print("Nothing was started.")
