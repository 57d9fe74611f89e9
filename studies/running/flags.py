"""The command line that all studies share, and training with them: flags, checks before anything starts, running."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.digits import ALL_DIGITS, DigitsPart, describe_digits, write_digits
from nfnet_ray.cluster.connection.address import find_head, where_to_run
from nfnet_ray.cluster.connection.job import HOME_VARIABLE, home_folder, submission_id
from nfnet_ray.cluster.connection.session import available_cpus
from nfnet_ray.command_line.arguments import at_least_zero, given_path, positive, shortened
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, interruptible
from nfnet_ray.command_line.one_line_parser import EXIT_USER_ERROR, OneLineParser
from nfnet_ray.command_line.terminal import new_console, say
from nfnet_ray.data.files.dataset import DatasetSummary, check_dataset
from nfnet_ray.errors import UserError
from nfnet_ray.models.weights.weights_file import pinned
from nfnet_ray.places import (
    MOST_NAME_BYTES,
    check_can_write,
    check_path,
    in_words,
    readable,
    resolved,
)
from nfnet_ray.printable import interpreter, printable, shell_command, shown
from nfnet_ray.recipe import Recipe, field_meanings, parse_setting, split_weights
from nfnet_ray.study.display import plan_table
from nfnet_ray.study.plan import check_trials, estimate_cost, training_multiply_adds
from nfnet_ray.study.state import StudyProgress
from nfnet_ray.study.study import TRIALS_FOLDER, Study, Trial
from nfnet_ray.tracking.choice import tracking_uri_for
from nfnet_ray.tracking.events import JOURNAL_FILE, StudyStarted, read_events
from nfnet_ray.tracking.uri import sqlite_path, without_password
from nfnet_ray.tracking.uri_check import MOST_DATABASE_PATH_BYTES, check_tracking_uri
from nfnet_ray.wording import clock_time, count, speed
from studies.running.run import StudyRun, WorkerDemand, say_question

StudyFactory = Callable[..., Study]
"""Of (data, epochs or None), and of the study's own flags by name: None where they were not given."""


@dataclass(frozen=True)
class Flag:
    """A flag that one study has and the others have not; its value is a text."""

    name: str
    metavar: str
    help: str


@dataclass(frozen=True)
class BuiltInData:
    """What a study runs on without ``--data``: digits, written into this folder on first use."""

    folder: Path = Path("data") / "digits"
    part: DigitsPart = ALL_DIGITS


@dataclass(frozen=True)
class MadeWeights:
    """A file of weights that a study makes when it is not there yet, as ``make`` says it: (path, console) -> None."""

    path: Path
    make: Callable[[Path, Console], None]


DEFAULT_STORAGE = Path("runs")
# MLflow 3.17's empty one is 1.0 MB. A disk that fills up while it is made leaves one that MLflow never opens again.
NEW_DATABASE_BYTES = 2_000_000
MOST_BYTES_BELOW_A_TRIAL = (
    100  # "/checkpoints/step-00000000-00000000.json.partial" is the longest, with room to grow
)
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


def storage_folder(home: Path, options: argparse.Namespace) -> Path:
    """The absolute path of ``--storage``. Raises UserError if no results can be kept there; a plan keeps none."""
    storage = resolved(home / options.storage, "--storage", makes=MOST_NAME_BYTES)
    database = storage / "mlflow.db"
    if not options.tracking_uri and len(os.fsencode(database)) > MOST_DATABASE_PATH_BYTES:
        raise UserError(
            f"--storage: MLflow's database {database} would have a path of more than {MOST_DATABASE_PATH_BYTES} bytes, "
            "which SQLite does not open; name a shorter folder, or another place with --tracking-uri"
        )
    if not options.plan:
        check_can_write(storage / (options.resume or options.name or ""), "--storage")
    return storage


def check_tracking(uri: str) -> None:
    """Raises UserError if a study cannot be recorded at ``uri``."""
    check_path(uri, "--tracking-uri")
    try:
        check_tracking_uri(uri)
    except (OSError, ValueError) as error:
        raise UserError(f"tracking URI {uri!r}: {error}") from error
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        check_can_write(database.absolute().parent, f"tracking URI {uri!r}", NEW_DATABASE_BYTES)


def check_study_folder(directory: Path, trials: Sequence[Trial]) -> None:
    """Raises UserError if a trial's files would have names or paths that are too long."""
    longest = max((trial.name for trial in trials), key=len)
    check_path(directory / TRIALS_FOLDER / longest, "--storage and --name", makes=MOST_BYTES_BELOW_A_TRIAL)


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


def data_at(home: Path, path: str | Path | None, only_plan: bool, built_in: BuiltInData) -> DatasetSummary:
    """The data set at a path below ``home``, or the built-in one, which a plan does not write."""
    if path:
        folder = resolved(home / path, "--data")
        with readable("--data"):
            return check_dataset(folder)
    folder = (home / built_in.folder).resolve()
    if only_plan:
        return describe_digits(folder, built_in.part)
    if not folder.exists():
        check_can_write(folder, "built-in data")
    return check_dataset(write_digits(folder, built_in.part))


def with_weights(study: Study, made: MadeWeights | None, only_plan: bool, console: Console) -> Study:
    """The study with the content of its files of weights written behind their names.

    What the study makes itself is made first, but for a plan. Raises UserError for a file that is not there, or
    that is not the one that the study began with.
    """

    def known(weights: str | None) -> str | None:
        if weights is None:
            return None
        path = Path(split_weights(weights)[0])
        if made and path.resolve() == made.path.resolve() and not path.exists():
            if only_plan:
                return weights
            made.make(path, console)
        return pinned(weights)

    recipe = study.recipe.with_values({"model.weights": known(study.recipe.model.weights)})
    space = dict(study.space)
    if "model.weights" in space:
        space["model.weights"] = tuple(map(known, space["model.weights"]))
    return replace(study, recipe=recipe, space=space)


def check_weights(trials: list[Trial], classes: int, console: Console) -> None:
    """Says what the trials will load. Raises UserError if it does not fit, before anything is started."""
    # A file is read once, however many trials load it into the same network.
    models = {
        replace(trial.recipe.model, trained="all", dropout=None, stochastic_depth=None) for trial in trials
    }
    # What a study has yet to make has no hash, and fits.
    known = [model for model in models if model.weights is not None and split_weights(model.weights)[1]]
    sentences = set()
    for model in known:
        from nfnet_ray.models.weights.pretrained import (
            check_pretrained,  # torch, which most studies do without here
        )

        sentences.add(check_pretrained(model, classes).sentence())
    for sentence in sorted(sentences):
        say(console, f"Weights: {sentence}.")


def verify(path: Path) -> None:
    """Every byte of the data. Raises UserError if one is not as it was written."""
    from data_prep.byte_progress import bytes_on_stderr
    from nfnet_ray.data.files.verification import check_all

    check_all(path, os.cpu_count() or 1, bytes_on_stderr)


def study_name(text: str) -> str:
    """A name that can be a folder's and that nobody has to quote."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"{shortened(text)!r} is not a name: use up to 100 letters, digits, dots, dashes and underscores"
        )
    return text


def name_on_occasion(stem: str) -> str:
    """The name of what was given none: ``stem`` and the occasion. Raises UserError if that is no name."""
    try:
        return study_name(f"{stem}-{occasion()}")
    except argparse.ArgumentTypeError as error:
        raise UserError(
            f"the job's submission id makes no name of a study ({error}); give one by --name"
        ) from None


def occasion() -> str:
    """What tells two runs of one name apart: the time, or the id of a submitted job, which is the same again."""
    return submission_id() or time.strftime("%Y%m%d-%H%M%S")


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


def resume_command(file: Path, options: argparse.Namespace, name: str) -> str:
    """The command that goes on with what is called ``name``."""
    parts = [interpreter(), shown(file), "--resume", name]
    for flag in ("address", "tracking_uri", "trials_at_once", "checkpoint_minutes", "hang_seconds"):
        if getattr(options, flag, None):
            parts += [f"--{flag.replace('_', '-')}", without_password(str(getattr(options, flag)))]
    if options.storage != DEFAULT_STORAGE:
        parts += ["--storage", str(options.storage)]
    return shell_command(parts)


def print_plan(
    study: Study, trials: list[Trial], data: DatasetSummary, workers: int, console: Console
) -> None:
    """What would run and what it costs, with the speed of this machine."""
    from nfnet_ray.training.probe import measure_images_per_second

    say_question(study, console)
    console.print(plan_table(study))
    cost = estimate_cost(study, trials, data)
    console.print()
    say(
        console,
        f"{count(len(trials), 'trial')} of {study.recipe.model.name} ({cost.parameters:,} parameters) of at most "
        f"{count(study.epochs, 'epoch')}: {count(cost.images, 'image')}, {cost.multiply_adds:.3g} multiply-adds.",
    )
    classes = len(data.class_names)
    try:
        rate = measure_images_per_second(trials[0].recipe, classes, threads=1)
    except MemoryError:
        say(console, "How long that takes is not known: a step does not fit the memory of this machine.")
    else:
        # Other trials may be dearer for each image, as those with SAM are: arithmetic is what is scaled by.
        pace = rate * training_multiply_adds(trials[0].recipe, classes)
        side_by_side = max(1, min(len(trials), available_cpus() // workers))
        least, most = (
            clock_time(amount / pace / side_by_side)
            for amount in (cost.least_multiply_adds, cost.multiply_adds)
        )
        span = (
            f"{least} (if halving stops all that it may) to {most} (if it stops none)"
            if study.halving
            else most
        )
        together = (
            f"with {count(side_by_side, 'trial')} side by side" if len(trials) > 1 else "on this machine"
        )
        say(
            console,
            f"{span} of training {together}, at {speed(rate)} images/s of the first: measured just now on this "
            "machine, on its GPU if it has one, else on one core.",
        )
    say(console, "Nothing was started.")
