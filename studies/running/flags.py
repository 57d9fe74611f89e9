"""The command line that all studies share, and training with them: flags, checks before anything starts, running."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nfnet_ray.cluster.connection.address import find_head, where_to_run
from nfnet_ray.cluster.connection.job import HOME_VARIABLE, home_folder
from nfnet_ray.command_line.arguments import at_least_zero, given_path, positive
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, interruptible
from nfnet_ray.command_line.one_line_parser import EXIT_USER_ERROR, OneLineParser
from nfnet_ray.command_line.terminal import new_console
from nfnet_ray.errors import UserError
from nfnet_ray.places import (
    in_words,
)
from nfnet_ray.printable import printable, shown
from nfnet_ray.recipe import Recipe, field_meanings, parse_setting
from nfnet_ray.study.plan import check_trials
from nfnet_ray.study.state import StudyProgress
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.choice import tracking_uri_for
from studies.running.checks import (
    BuiltInData,
    MadeWeights,
    check_study_folder,
    check_tracking,
    check_weights,
    data_at,
    storage_folder,
    verify,
    with_weights,
)
from studies.running.names import name_on_occasion, study_name
from studies.running.plan_text import print_plan
from studies.running.resuming import (
    DEFAULT_STORAGE,
    check_same_data,
    go_on,
    has_begun,
    refuse_with_resume,
    resume_command,
    with_data_here,
)
from studies.running.run import StudyRun, WorkerDemand

StudyFactory = Callable[..., Study]
"""Of (data, epochs or None), and of the study's own flags by name: None where they were not given."""


@dataclass(frozen=True)
class Flag:
    """A flag that one study has and the others have not; its value is a text."""

    name: str
    metavar: str
    help: str


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


@dataclass(frozen=True)
class _Program:
    """A study as a program: what builds it, and what it has of its own."""

    factory: StudyFactory
    file: Path
    built_in: BuiltInData
    flags: Sequence[Flag]
    made: MadeWeights | None


def main(
    factory: StudyFactory,
    file: Path,
    arguments: Sequence[str] | None = None,
    *,
    built_in: BuiltInData | None = None,
    flags: Sequence[Flag] = (),
    made: MadeWeights | None = None,
) -> int:
    """Runs a study's command line; the exit code: 0, 2 for an error of use, 130 for Ctrl-C."""
    program = _Program(factory, file, built_in or BuiltInData(), flags, made)
    options = _parser(program).parse_args(arguments)
    return run_command(file, lambda console: _run(program, options, console), "the first trial")


def run_command(file: Path, body: Callable[[Console], int], beginning: str) -> int:
    """The exit code of ``body``, or of how it was broken off; Ctrl-C before the ``beginning`` loses nothing."""
    console = new_console()
    try:
        with interruptible():
            return body(console)
    except UserError as error:
        print(f"{file.name}: {printable(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.filename is None:  # it is of no file that somebody could put right
            raise
        print(f"{file.name}: {printable(error.filename)}: {in_words(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{file.name}: stopped before {beginning}", file=sys.stderr)
        return EXIT_INTERRUPTED


def new_parser(file: Path, description: str | None) -> argparse.ArgumentParser:
    """A parser whose help lists the fields of the Recipe."""
    meanings = field_meanings()
    width = max(map(len, meanings))
    fields = "\n".join(f"  {name:{width}}  {meaning}" for name, meaning in meanings.items())
    return OneLineParser(
        prog=f"python {shown(file)}",
        description=description,
        epilog=f"fields for --set FIELD=VALUE:\n{fields}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_places(parser: argparse.ArgumentParser, what: str) -> argparse._ArgumentGroup:
    """Flags for where a study or a training, as ``what`` says, runs and where its results go."""
    where = parser.add_argument_group("where it runs and where results go")
    where.add_argument(
        "--address",
        help="a Ray cluster that is up: auto, or HOST:PORT; without it this machine, or in a submitted job its"
        " cluster; local is always this machine",
    )
    where.add_argument(
        "--storage",
        type=given_path,
        default=DEFAULT_STORAGE,
        metavar="DIR",
        help="folder of all results, on a cluster a shared one (default: %(default)s); relative paths, "
        f"this and --data's, start in ${HOME_VARIABLE}, else here, else (a submitted job) in your home folder",
    )
    where.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow: http://HOST:PORT or sqlite:///FILE (default: with --resume where it was recorded, else"
        " $MLFLOW_TRACKING_URI, else mlflow.db in the storage folder); user names and passwords belong into"
        " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    )
    where.add_argument(
        "--name",
        type=study_name,
        help=f"name of its folder (default: the {what}'s name and the time; of a job that was submitted to Ray,"
        f" the {what}'s name and the submission id, with --continue)",
    )
    where.add_argument(
        "--continue",
        dest="may_continue",
        action="store_true",
        help=f"start the {what}, or resume it if this --name exists with the same settings; safe to run again",
    )
    where.add_argument("--resume", type=study_name, metavar="NAME", help=f"resume a {what} that was stopped")
    return where


def add_data(group: argparse._ArgumentGroup) -> None:
    """Flags for the images."""
    group.add_argument(
        "--data",
        type=given_path,
        metavar="PATH",
        help="a data set written by data_prep (default: handwritten digits, written on first use)",
    )
    group.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="what is checked of the data before anything starts: quick, all but the images' bytes; full, each image's"
        " bytes against its hash too, as python -m data_prep verify does, and with --address on each node that has a"
        " copy of its own (default: %(default)s)",
    )


def add_shares(group: argparse._ArgumentGroup, cpus: str) -> None:
    """Flags for what each worker is given; ``cpus`` says how many cores it gets without them."""
    group.add_argument("--cpus-per-worker", type=positive, metavar="N", help=f"default: {cpus}")
    group.add_argument(
        "--gpus-per-worker",
        type=at_least_zero,
        metavar="X",
        help="0.25 packs four workers on a GPU (default: 1 if the cluster has GPUs)",
    )


def _parser(program: _Program) -> argparse.ArgumentParser:
    parser = new_parser(program.file, sys.modules[program.factory.__module__].__doc__)
    add_places(parser, "study")
    what = parser.add_argument_group("what it studies")
    add_data(what)
    for flag in program.flags:
        what.add_argument(f"--{flag.name}", metavar=flag.metavar, help=flag.help)
    what.add_argument(
        "--trials", type=positive, metavar="N", help="only the first N settings, with all seeds"
    )
    what.add_argument("--epochs", type=positive, metavar="N", help="epochs of each trial")
    what.add_argument(
        "--seeds", type=positive, metavar="N", help="repeat each setting with N seeds (default: 1)"
    )
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of the Recipe; setting a swept field fixes it for all trials",
    )
    shape = parser.add_argument_group("what a trial is given")
    shape.add_argument(
        "--workers-per-trial",
        type=positive,
        metavar="N",
        help="more than one trains data-parallel through Ray Train (default: 1)",
    )
    add_shares(shape, "1, or a GPU's share of the cores")
    shape.add_argument(
        "--trials-at-once",
        type=positive,
        metavar="N",
        help="trials side by side (default: as many as fit on the nodes that are up); on an autoscaling cluster, how"
        " many trials to request nodes for",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would run and what it costs; start nothing"
    )
    return parser


def _run(program: _Program, options: argparse.Namespace, console: Console) -> int:
    progress: StudyProgress | None
    home = home_folder()
    storage = storage_folder(home, options)
    tracking_uri = tracking_uri_for(options.tracking_uri, storage, home, options.resume or options.name)
    settings = dict(parse_setting(text) for text in options.set)
    Recipe().with_values(settings)
    options.address = where_to_run(options.address)
    if options.address is not None:
        find_head(options.address)
    if not options.plan:
        check_tracking(tracking_uri)
    if options.resume:
        refuse_with_resume(options, (*FIXED_BY_A_STUDY, *(flag.name for flag in program.flags)))
        directory = storage / options.resume
        progress, started = StudyProgress.read(directory)
        study = Study.from_event(started)
        study = with_data_here(study, started, home)
        data = data_at(home, study.recipe.data.path, options.plan, program.built_in)
        check_same_data(data, started)
        if options.verify == "full":
            verify(data.path)
        demand = WorkerDemand(**started["study"]["worker"], trials_at_once=options.trials_at_once)
    else:
        path = settings.pop("data.path", None) or options.data
        data = data_at(home, path, options.plan, program.built_in)
        if options.verify == "full" and (path or not options.plan):  # a plan writes no digits
            verify(data.path)
        epochs = settings.pop("schedule.epochs", None) or options.epochs
        own = {flag.name: getattr(options, flag.name) for flag in program.flags}
        study = _with_settings(program.factory(data, epochs, **own), settings, options)
        directory, progress = storage / study.name, None
        demand = WorkerDemand(
            options.workers_per_trial or 1,
            options.cpus_per_worker,
            options.gpus_per_worker,
            trials_at_once=options.trials_at_once,
        )
        if options.trials_at_once and None in (demand.cpus, demand.gpus):
            raise UserError(
                "--trials-at-once needs --cpus-per-worker and --gpus-per-worker: "
                "nodes that are not up yet cannot be looked at"
            )
    check_trials(study.trials(), data, demand.workers)
    study = with_weights(study, program.made, options.plan, console)
    if not options.resume and not options.plan and has_begun(directory):
        progress, demand = go_on(study, data, demand, directory, options)
    trials = study.trials()
    check_study_folder(directory, trials)
    check_weights(trials, len(data.class_names), console)
    if options.plan:
        print_plan(study, trials, data, demand.workers, console)
        return 0
    progress = progress or StudyProgress.waiting(study)
    command, verifies = resume_command(program.file, options, study.name), options.verify == "full"
    run = StudyRun(study, data, directory, tracking_uri, command, progress, verifies)
    return run.execute(options.address, demand, console)


def _with_settings(study: Study, settings: Mapping[str, Any], options: argparse.Namespace) -> Study:
    """The study as the command line wants it. Raises RecipeError before anything is started."""
    recipe = study.recipe.with_values(settings)
    values = recipe.to_values()
    return replace(
        study,
        name=options.name or name_on_occasion(study.name),
        recipe=recipe,
        space={
            name: (values[name],) if name in settings else choices for name, choices in study.space.items()
        },
        seeds=tuple(range(recipe.seed, recipe.seed + (options.seeds or 1))),
        trial_limit=options.trials,
    )
