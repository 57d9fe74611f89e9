"""The command line of every study: its flags and its exit codes. studies/train.py uses the same parts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.digits import describe_digits
from nfnet_ray.command_line.arguments import (
    AddPair,
    above_zero,
    above_zero_or_none,
    at_least_zero,
    given,
    given_path,
    given_text,
    least_and_most,
    positive,
    share,
    whole_number,
)
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.command_line.terminal import new_console
from nfnet_ray.errors import UserError
from nfnet_ray.places import HOME_VARIABLE
from nfnet_ray.printable import display_path
from nfnet_ray.recipe import field_meanings, parse_setting
from nfnet_ray.settings import each_once
from nfnet_ray.study.annotations import note_text, tag_pair
from nfnet_ray.study.halving import SCHEDULES
from nfnet_ray.study.live.webhook import WEBHOOK_VARIABLE
from nfnet_ray.study.search.searcher import SEARCHES
from nfnet_ray.study.space import Domain, domain_text
from nfnet_ray.study.space.sweep_text import FORMS, parse_sweep
from nfnet_ray.study.study import MOST_SETTINGS, Study
from nfnet_ray.tracking.labels import value_label
from studies.running.checks import DATA_FOLDER
from studies.running.names import MOST_SEEDS, seeds_text, study_name
from studies.running.program import StudyFactory, StudyProgram
from studies.running.request import DEFAULT_STORAGE, Request
from studies.running.resuming import resume_command
from studies.running.run import run
from studies.running.trials import StudyRequest

# Characters of the column of values in a help text.
_WIDEST_VALUE = 48


def main(study: StudyFactory | StudyProgram, file: Path, arguments: Sequence[str] | None = None) -> int:
    """Runs a study's command line.

    Args:
        study: the function that builds the study, or a program where it needs more than that.
        file: the program's file, which is named in messages and in the command that resumes the study.
        arguments: the command line's, by default this process's own.

    Returns:
        The exit code: 0, also if the study ended at its cap; 1 if trials failed, 2 for a mistake in the command, 3 if
        MLflow does not have everything, 130 if the study was stopped.
    """
    program = study if isinstance(study, StudyProgram) else StudyProgram(study)
    options = study_parser(program, file).parse_args(arguments)
    return run_command(file, lambda: _study_request(program, options), "the first trial")


def run_command(file: Path, request: Callable[[], Request], beginning: str) -> int:
    """Runs the request and returns the exit code; a message about Ctrl-C before the run began names ``beginning``."""
    console = new_console()
    return exit_code_of(
        file.name,
        lambda: run(request(), partial(resume_command, file), console).exit_code,
        when_stopped=f"stopped before {beginning}",
    )


def settings_of(texts: Sequence[str]) -> dict[str, object]:
    """{dotted name: value} of the ``FIELD=VALUE`` of ``--set``. Raises UserError for one that is wrong."""
    return each_once(map(parse_setting, texts))


def sweep_of(texts: Sequence[str]) -> dict[str, Domain]:
    """{dotted name: domain} of the ``FIELD=VALUES`` of ``--sweep``. Raises UserError for one that is wrong."""
    sweep: dict[str, Domain] = {}
    for text in texts:
        name, domain = parse_sweep(text)
        if name in sweep:
            raise UserError(f"--sweep {name} is given twice: list all its values in one, such as {name}=A,B")
        sweep[name] = domain
    return sweep


def _study_request(program: StudyProgram, options: argparse.Namespace) -> StudyRequest:
    values = vars(options) | {"settings": settings_of(options.settings), "sweep": sweep_of(options.sweep)}
    own = {name: values.pop(name) for name in program.flags}
    if values["seeds"] is not None:
        values["seeds"], values["are_seeds_for_all"] = values["seeds"]
    given = ("sweep", "settings", "seeds", "epochs", "trials", "early_stopping", "confirm")
    if options.extend and not any(values[name] for name in given):
        raise UserError(
            f"--extend {options.extend} needs what to add: --sweep FIELD=VALUES, --seeds N, --epochs N, --trials N, "
            "--early-stopping RULE or --confirm N"
        )
    return StudyRequest(program=program, own=own, **values)


def new_parser(
    file: Path, description: str | None, default_study: Callable[[], Study]
) -> argparse.ArgumentParser:
    """A parser whose help lists the fields of the Recipe, with their values in the study that runs without flags."""
    return _FieldsParser(
        default_study,
        prog=f"python {display_path(file)}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class _FieldsParser(OneLineParser):
    """Ends its help with the fields of the Recipe, which are looked up only when the help is printed."""

    def __init__(self, default_study: Callable[[], Study], **keywords: Any) -> None:
        super().__init__(**keywords)
        self._default_study = default_study

    def similar(self, flag: str) -> str | None:
        field = flag.removeprefix("--").replace("-", "_")
        if field in field_meanings():
            return f"{field} is a field of the Recipe: give --set {field}=VALUE"
        return super().similar(flag)

    def format_help(self) -> str:
        self.epilog = _fields(self._default_study())
        return super().format_help()


def _fields(study: Study) -> str:
    """The lines of a help text that list all fields: name, value or values, meaning."""
    meanings = field_meanings()
    values = {name: _value_text(value) for name, value in study.recipe.to_values().items()}
    values |= {name: domain_text(domain) for name, domain in study.space.items()}
    lines = [
        f"  {name:{_width(meanings)}}  {values[name]:{_width(values.values())}}  {meaning}"
        for name, meaning in meanings.items()
    ]
    title = "fields for --set FIELD=VALUE, with their values here on the default data"
    swept = f" (swept: {', '.join(study.space)})" if study.space else ""
    return "\n".join([f"{title}{swept}:", *lines])


def _width(texts: Iterable[str]) -> int:
    """Of a column. A longer text, such as a path, only makes its own line longer."""
    return max(len(text) for text in texts if len(text) <= _WIDEST_VALUE)


def _value_text(value: object) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    return value_label(value)


def add_places(parser: argparse.ArgumentParser, what: str, default_name: str) -> argparse._ArgumentGroup:
    """Flags for where a study or a training, as ``what`` says, runs and where its results go."""
    where = parser.add_argument_group("where it runs and where results go")
    where.add_argument(
        "--address",
        type=given_text,
        help="run on a Ray cluster: auto or HOST:PORT (default: this machine; in a job that was submitted to a cluster,"
        " that cluster); local always means this machine",
    )
    where.add_argument(
        "--storage",
        type=given_path,
        default=DEFAULT_STORAGE,
        metavar="DIR",
        help="folder of all results; on a cluster, one that all nodes share (default: %(default)s). Relative paths,"
        f" also that of --data, start at ${HOME_VARIABLE} if it is set, else at the current folder; in a job that was"
        " submitted with a working directory, at your home folder",
    )
    where.add_argument(
        "--tracking-uri",
        type=given_text,
        metavar="URI",
        help="where MLflow records it: http://HOST:PORT or sqlite:///FILE, or none, to keep only the journal and the"
        " report (default: with --resume, where it was recorded before, or nowhere if it began with none; else"
        " $MLFLOW_TRACKING_URI; else mlflow.db in the storage folder). Put user names and passwords into"
        " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    )
    where.add_argument(
        "--name",
        type=given(study_name),
        help=f"name of the {what} and of its folder (default: {default_name} and the time; in a job that was submitted"
        f" to Ray, {default_name} and the submission id, and --continue is implied)",
    )
    where.add_argument(
        "--continue",
        dest="may_continue",
        action="store_true",
        help=f"start the {what}, or resume it if one with this --name and the same settings exists; the command can be"
        " repeated safely",
    )
    where.add_argument(
        "--resume", type=given(study_name), metavar="NAME", help=f"resume a {what} that was stopped"
    )
    return where


def add_data(group: argparse._ArgumentGroup) -> None:
    """Flags for the images."""
    group.add_argument(
        "--data",
        type=given_path,
        metavar="PATH",
        help="a data set written by data_prep (default: handwritten digits, created on first use)",
    )
    group.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="how to check the data before anything starts: quick checks everything but the images' bytes; full also"
        " checks each image's bytes against its hash, as python -m data_prep verify does, and with --address does so on"
        " each node that has its own copy (default: %(default)s)",
    )


def add_shares(group: argparse._ArgumentGroup, cpus: str) -> None:
    """Flags for the resources of each worker; ``cpus`` describes the default number of cores."""
    group.add_argument(
        "--cpus-per-worker",
        type=positive,
        metavar="N",
        help=f"CPU cores of each worker, and as many threads for arithmetic and for decoding images (default: {cpus})",
    )
    group.add_argument(
        "--gpus-per-worker",
        type=at_least_zero,
        metavar="X",
        help="share of a GPU for each worker, at most 1; 0.25 puts four of them on each GPU, for a small network, and"
        " gives each a quarter of the GPU's share of the cores; this pays off only with NVIDIA's MPS (docs/how_to.md)"
        " (default: 1 if the cluster has GPUs)",
    )


def add_settings(group: argparse._ArgumentGroup, meaning: str) -> None:
    """The flag for fields of the Recipe."""
    group.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE", help=meaning
    )


def add_annotations(parser: argparse.ArgumentParser, what: str) -> None:
    """Flags for notes and tags of a study or a training, and for whom to tell how it ended."""
    said = parser.add_argument_group("notes and notifications")
    said.add_argument(
        "--note",
        dest="notes",
        action="append",
        type=given(note_text),
        default=[],
        metavar="TEXT",
        help=f"a note about the {what}, which is kept in the journal and shown in the report and in MLflow; may be"
        " repeated",
    )
    said.add_argument(
        "--tag",
        dest="tags",
        action=AddPair,
        type=given(tag_pair),
        default={},
        metavar="KEY=VALUE",
        help="a tag, by which python -m studies list and MLflow find it; may be repeated",
    )
    said.add_argument(
        "--notify",
        type=given_text,
        metavar="URL",
        help=f"post a JSON document to this webhook when the {what} ends, fails or reaches a limit on its cost"
        f" (default: {WEBHOOK_VARIABLE}). The address is kept nowhere: give it again with --resume",
    )


def add_spending(parser: argparse.ArgumentParser, what: str) -> None:
    """Flags for what a study or a training, as ``what`` says, may cost, and for its plan."""
    money = parser.add_argument_group(
        "what it may cost",
        f"Caps count paid time: that of all attempts, without the time between them. A {what} that reaches a cap keeps"
        " its checkpoints, prints the best result so far and exits with code 0. With --resume a new value replaces the"
        " old one; none removes a cap.",
    )
    money.add_argument(
        "--max-hours", type=above_zero_or_none, metavar="H", help="hours for which its driver is at work"
    )
    money.add_argument(
        "--max-gpu-hours",
        type=above_zero_or_none,
        metavar="H",
        help="hours times the GPUs that trials hold; on machines without GPUs, times workers",
    )
    money.add_argument(
        "--max-cost",
        type=above_zero_or_none,
        metavar="X",
        help="GPU-hours (or worker-hours) times --price-per-hour",
    )
    money.add_argument(
        "--price-per-hour",
        type=above_zero,
        metavar="P",
        help="price of one GPU, or of one worker on machines without GPUs, for an hour; in any currency",
    )
    money.add_argument(
        "--price-per-kwh",
        type=above_zero,
        metavar="P",
        help="for --plan: price of electricity, in the same currency",
    )
    add_plan(money)


def add_plan(parser: argparse._ActionsContainer) -> None:
    """The flag for a plan."""
    parser.add_argument(
        "--plan", action="store_true", help="print what would run and what it would cost, and start nothing"
    )


def study_parser(program: StudyProgram, file: Path) -> argparse.ArgumentParser:
    """The parser of a study; the names of its values are those of a :class:`StudyRequest`."""

    def on_default_data() -> Study:
        return program.study(describe_digits(DATA_FOLDER / program.digits.name, program.digits), None)

    parser = new_parser(file, sys.modules[program.build.__module__].__doc__, on_default_data)
    where = add_places(parser, "study", "the study's name")
    where.add_argument(
        "--extend",
        type=given(study_name),
        metavar="NAME",
        help="train what a study that has ended does not have yet: other values (--sweep), more --seeds, --epochs or"
        " --trials, other --early-stopping, a winner to --confirm; what it has trained is kept (docs/managing.md)",
    )
    what = parser.add_argument_group("what it studies")
    add_data(what)
    for name, shown_as in program.flags.items():
        what.add_argument(f"--{name}", type=given_text, metavar=shown_as["metavar"], help=shown_as["help"])
    what.add_argument(
        "--trials",
        type=whole_number(1, MOST_SETTINGS),
        metavar="N",
        help="run only the first N settings, each with all seeds; with a range, the number of settings (default: 16)",
    )
    what.add_argument("--epochs", type=positive, metavar="N", help="epochs of each trial")
    what.add_argument(
        "--seeds",
        type=given(seeds_text),
        metavar="N",
        help="train each setting with one seed, and then those that may be the best with N seeds in all; N,all trains"
        " each setting with N seeds (default: 1; docs/answers.md)",
    )
    what.add_argument(
        "--search",
        type=given_text,
        metavar="NAME",
        help=f"how the points of the space are found: {', '.join(SEARCHES)} (default: grid; with a range sobol;"
        " docs/search.md)",
    )
    what.add_argument(
        "--from",
        type=given_text,
        dest="earlier",
        metavar="STUDY",
        help="begin with the best settings of an earlier study, given by name or folder; its results are not used",
    )
    what.add_argument(
        "--early-stopping",
        type=given_text,
        metavar="RULE",
        help="which trials end early: synchronous, asynchronous, median, hyperband or none, with options such as "
        "synchronous:eta=4,first_rung=6 or synchronous:first_rung=60,unit=seconds (default: the study's own; "
        "docs/early_stopping.md)",
    )
    what.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="for trials that are compared early: truncated continues the schedule of all epochs after a rung,"
        " stretched trains to each rung with a complete schedule of its own (default: the study's own)",
    )
    what.add_argument(
        "--equal-within",
        type=above_zero,
        metavar="POINTS",
        help="settings whose accuracies differ by less are equal in practice (default: 0.2)",
    )
    what.add_argument(
        "--holdout",
        type=share,
        metavar="X",
        help="quote the accuracy of the best setting on this share of the validation images, such as 0.5, and choose it"
        " on the others (docs/answers.md)",
    )
    what.add_argument(
        "--confirm",
        type=whole_number(1, MOST_SEEDS),
        metavar="N",
        help="when all settings have been compared, train the best one again with N fresh seeds, for all epochs, and"
        " quote the accuracy of these reruns (docs/answers.md)",
    )
    add_settings(what, "set a field of the Recipe; setting a swept field fixes it for all trials")
    what.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help=f"sweep a field of the Recipe, instead of the study's own values if it has any: {FORMS}",
    )
    shape = parser.add_argument_group("resources of a trial")
    shape.add_argument(
        "--workers-per-trial",
        type=least_and_most,
        metavar="N",
        help="workers of each trial; several train data-parallel through Ray Train, and 2-8 is elastic: at least 2, at "
        "most 8 (default: 1)",
    )
    add_shares(shape, "1, or a GPU's share of the cores")
    shape.add_argument(
        "--trials-at-once",
        type=positive,
        metavar="N",
        help="how many trials run at once (default: as many as fit on the nodes that are up); on an"
        " autoscaling cluster, for how many trials to request nodes",
    )
    shape.add_argument(
        "--cohorts",
        type=positive,
        metavar="N",
        help="experimental: train up to N trials as one program on each place, if they differ only in clip factor, eps,"
        " learning rate and its schedule, momentum, weight decay, drop rates, rho, label smoothing or EMA"
        " (docs/cohorts.md) (default: each trial alone)",
    )
    add_annotations(parser, "study")
    add_spending(parser, "study")
    return parser
