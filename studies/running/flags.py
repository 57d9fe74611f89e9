"""The command line of every study: its flags and its exit codes. studies/train.py uses the same parts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
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
from nfnet_ray.command_line.help_formatter import filled, help_width
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
from nfnet_ray.study.space import Domain, domain_text
from nfnet_ray.study.space.sweep_text import FORMS, parse_sweep
from nfnet_ray.study.study import DEFAULT_SETTINGS, MOST_SETTINGS, Study
from nfnet_ray.tracking.labels import value_label
from studies.running.checks import DATA_FOLDER
from studies.running.names import MOST_SEEDS, seeds_text, study_name
from studies.running.program import StudyFactory, StudyProgram
from studies.running.request import DEFAULT_STORAGE, Request
from studies.running.resuming import resume_command
from studies.running.run import run
from studies.running.trials import StudyRequest

_BELOW_A_FIELD = " " * 6
_EXAMPLE_SWEEP = "optimizer.agc.clip_factor=0.01,0.02,0.04"


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
    file: Path,
    description: str | None,
    default_study: Callable[[], Study],
    examples: Callable[[Study], Sequence[str]],
) -> argparse.ArgumentParser:
    """A parser whose help ends with examples and the fields of the Recipe, with their values in the default study.

    ``examples`` returns what follows the name of the program. The description's part about results is left out.
    """
    parser = _StudyParser(
        default_study,
        prog=f"python {display_path(file)}",
        usage="%(prog)s [options]",
        description=_without_results(description or "", display_path(file)),
        examples=examples,
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would run and what it would cost, and start nothing"
    )
    return parser


def _without_results(docstring: str, file: str) -> str:
    """A docstring up to its part "Result.", which may have many tables, and in which file that is."""
    before, result, _ = docstring.partition("\nResult.")
    return f"{before.rstrip()}\n\nResults so far are described at the top of {file}." if result else docstring


class _StudyParser(OneLineParser):
    """Ends its help with examples and the fields of the Recipe, which are looked up only when the help is printed."""

    def __init__(
        self, default_study: Callable[[], Study], examples: Callable[[Study], Sequence[str]], **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self._default_study, self._examples = default_study, examples

    def similar(self, flag: str) -> str | None:
        field = flag.removeprefix("--").replace("-", "_")
        if field in field_meanings():
            return f"{field} is a field of the Recipe: give --set {field}=VALUE"
        return super().similar(flag)

    def format_help(self) -> str:
        study = self._default_study()
        examples = "\n".join(
            ["examples:", *(f"  {self.prog} {example}" for example in self._examples(study))]
        )
        self.epilog = f"{examples}\n\n{_fields(study)}"
        return super().format_help()


def _fields(study: Study) -> str:
    """The lines of a help text that list all fields: each with its value or values, and below that its meaning."""
    values = {name: _value_text(value) for name, value in study.recipe.to_values().items()}
    values |= {name: f"{domain_text(domain)} (swept)" for name, domain in study.space.items()}
    lines = ["fields for --set and --sweep, with their values on the default data:"]
    for name, meaning in field_meanings().items():
        lines += [f"  {name} = {values[name]}", filled(meaning, help_width(), _BELOW_A_FIELD)]
    return "\n".join(lines)


def _value_text(value: object) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    return value_label(value)


def add_identity(parser: argparse.ArgumentParser, what: str, default_name: str) -> argparse._ArgumentGroup:
    """Flags for the name of a study or a training run, as ``what`` says, and for resuming it."""
    identity = parser.add_argument_group("its name, and how to continue it")
    identity.add_argument(
        "--name",
        type=given(study_name),
        help=f"name of the {what} and of its folder (default: {default_name} and the time; in a job that was submitted"
        f" to Ray, {default_name} and the submission id, and --continue is implied)",
    )
    identity.add_argument(
        "--continue",
        dest="may_continue",
        action="store_true",
        help=f"start the {what}, or resume it if one with this --name and the same settings exists; the command can be"
        " repeated safely",
    )
    identity.add_argument(
        "--resume", type=given(study_name), metavar="NAME", help=f"resume a {what} that was stopped"
    )
    return identity


def add_places(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags for where a study or a training run takes place, and where its results go."""
    where = parser.add_argument_group("where it runs, and where results go")
    where.add_argument(
        "--address",
        type=given_text,
        help="run on a Ray cluster: auto or HOST:PORT; local always means this machine (default: this machine; in a job"
        " that was submitted to a cluster, that cluster)",
    )
    where.add_argument(
        "--storage",
        type=given_path,
        default=DEFAULT_STORAGE,
        metavar="DIR",
        help="folder of all results; on a cluster, one that all nodes share (default: %(default)s). A relative path,"
        f" also that of --data, starts at ${HOME_VARIABLE} if it is set, else at the current folder; in a job that was"
        " submitted with a working directory, at your home folder",
    )
    where.add_argument(
        "--tracking-uri",
        type=given_text,
        metavar="URI",
        help="the MLflow that records it: http://HOST:PORT or sqlite:///FILE; none keeps only the journal and the"
        " report (default: $MLFLOW_TRACKING_URI, else mlflow.db in the storage folder; with --resume, the one that has"
        " recorded it so far, or none). Put a user name and a password into $MLFLOW_TRACKING_USERNAME and"
        " $MLFLOW_TRACKING_PASSWORD",
    )
    return where


def add_data(group: argparse._ArgumentGroup) -> None:
    """Flags for the images."""
    group.add_argument(
        "--data",
        type=given_path,
        metavar="PATH",
        help="a data set that python -m data_prep has written (default: scikit-learn's handwritten digits, which are"
        " written to data/ on first use)",
    )
    group.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="what is checked before anything starts: quick checks all but the images' bytes; full also compares each"
        " image's bytes with its hash, as python -m data_prep verify does, on a cluster on each node that has its own"
        " copy (default: %(default)s)",
    )


def add_shares(group: argparse._ArgumentGroup, cpus: str) -> None:
    """Flags for the resources of each worker; ``cpus`` describes the default number of cores."""
    group.add_argument(
        "--cpus-per-worker",
        type=positive,
        metavar="N",
        help="CPU cores of each worker, which has as many threads for arithmetic and as many for decoding images"
        f" (default: {cpus})",
    )
    group.add_argument(
        "--gpus-per-worker",
        type=at_least_zero,
        metavar="X",
        help="GPUs of each worker, at most 1 (default: 1 if the cluster has GPUs, else 0). With 0.25 four workers share"
        " a GPU, and each has a quarter of the cores that belong to it; this pays off only for small networks, with"
        " NVIDIA's MPS (docs/how_to.md)",
    )


def add_settings(group: argparse._ArgumentGroup, meaning: str) -> None:
    """The flag for fields of the Recipe."""
    group.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE", help=meaning
    )


def add_annotations(parser: argparse.ArgumentParser, what: str) -> None:
    """Flags for notes and tags of a study or a training run, and for whom to tell how it ended."""
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
        help=f"post a JSON document to this webhook when the {what} ends, fails or reaches a cap (default:"
        f" ${WEBHOOK_VARIABLE}). The address is not stored: give it again with --resume",
    )


def add_spending(parser: argparse.ArgumentParser, what: str, result: str) -> None:
    """Flags for what a study or a training run, as ``what`` says, may cost; at a cap it prints its ``result``."""
    money = parser.add_argument_group(
        "caps on time and cost",
        f"Without these flags nothing is capped. A cap counts what all attempts of a {what} took together, and not the"
        f" time between a stop and a --resume. At a cap the {what} saves its checkpoints, prints {result} and ends with"
        " exit code 0. --resume with a higher cap, or with none, continues it.",
    )
    money.add_argument("--max-hours", type=above_zero_or_none, metavar="H", help="hours for which it may run")
    money.add_argument(
        "--max-gpu-hours",
        type=above_zero_or_none,
        metavar="H",
        help="GPU-hours that its trials may take; on machines without GPUs, worker-hours",
    )
    money.add_argument(
        "--max-cost",
        type=above_zero_or_none,
        metavar="X",
        help="what it may cost: its GPU-hours (or worker-hours) times --price-per-hour",
    )
    money.add_argument(
        "--price-per-hour",
        type=above_zero,
        metavar="P",
        help="price of one GPU for an hour, in any currency; on machines without GPUs, of one worker",
    )
    money.add_argument(
        "--price-per-kwh",
        type=above_zero,
        metavar="P",
        help="price of a kWh of electricity, in the same currency; only for --plan",
    )


def study_parser(program: StudyProgram, file: Path) -> argparse.ArgumentParser:
    """The parser of a study; the names of its values are those of a :class:`StudyRequest`."""

    def on_default_data() -> Study:
        return program.study(describe_digits(DATA_FOLDER / program.digits.name, program.digits), None)

    def examples(study: Study) -> list[str]:
        sweep = f"--sweep {_EXAMPLE_SWEEP} " if program.is_open else ""
        # A study of a plain list of points has no fields to sweep.
        other = f"--sweep {_EXAMPLE_SWEEP}" if study.space else "--set optimizer.weight_decay=5e-5"
        return [
            f"{sweep}--plan",
            f"{sweep}--data data/mine --seeds 3 --name first_try",
            *([] if program.is_open else [f"{other} --epochs 16"]),
            "--resume first_try",
            "--extend first_try --confirm 3",
        ]

    parser = new_parser(file, sys.modules[program.build.__module__].__doc__, on_default_data, examples)
    what = parser.add_argument_group("what is trained")
    add_data(what)
    for name, shown_as in program.flags.items():
        what.add_argument(f"--{name}", type=given_text, metavar=shown_as["metavar"], help=shown_as["help"])
    add_settings(
        what,
        "set a field of the Recipe; the fields are listed below. A field that is set is not swept; may be repeated",
    )
    what.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help=f"sweep a field of the Recipe, instead of the study's own values if it has any: {FORMS}; may be repeated",
    )
    what.add_argument(
        "--epochs", type=positive, metavar="N", help="epochs of each trial (default: the study's own)"
    )
    _add_search(parser)
    _add_certainty(parser)
    identity = add_identity(parser, "study", "the study's name")
    identity.add_argument(
        "--extend",
        type=given(study_name),
        metavar="NAME",
        help="add to a study that has ended, and train only what it does not have yet: other values (--sweep), more"
        " --seeds, --epochs or --trials, other --early-stopping, or reruns of the best setting (--confirm)"
        " (docs/managing.md)",
    )
    add_places(parser)
    shape = parser.add_argument_group("resources of a trial")
    shape.add_argument(
        "--workers-per-trial",
        type=least_and_most,
        metavar="N",
        help="workers of each trial; several train data-parallel through Ray Train, and 2-8 is elastic: at least 2, at"
        " most 8 (default: 1)",
    )
    add_shares(shape, "1, or a GPU's share of the cores")
    shape.add_argument(
        "--trials-at-once",
        type=positive,
        metavar="N",
        help="number of trials that run at the same time (default: as many as fit on the nodes that are up); an"
        " autoscaling cluster is asked for nodes for all of them",
    )
    shape.add_argument(
        "--cohorts",
        type=positive,
        metavar="N",
        help="experimental: train up to N trials as one program on each place, if they differ only in clip factor, eps,"
        " learning rate and its schedule, momentum, weight decay, drop rates, rho, label smoothing or EMA"
        " (default: each trial alone; docs/cohorts.md)",
    )
    add_spending(parser, "study", "the best result so far")
    add_annotations(parser, "study")
    return parser


def _add_search(parser: argparse.ArgumentParser) -> None:
    """Flags for which settings are tried, and for how long."""
    search = parser.add_argument_group("which settings are tried")
    search.add_argument(
        "--trials",
        type=whole_number(1, MOST_SETTINGS),
        metavar="N",
        help=f"number of settings, each with all its seeds (default: the study's own, else all; {DEFAULT_SETTINGS} if a"
        " range is swept)",
    )
    search.add_argument(
        "--search",
        type=given_text,
        metavar="NAME",
        help="how the settings are chosen: grid takes all combinations, sobol and random spread over the ranges, and"
        " tpe and gp learn from the results so far (default: the study's own, else grid; sobol if a range is swept;"
        " docs/search.md)",
    )
    search.add_argument(
        "--from",
        type=given_text,
        dest="earlier",
        metavar="STUDY",
        help="begin with the best settings of an earlier study, given by name or folder; its results are not used",
    )
    search.add_argument(
        "--early-stopping",
        type=given_text,
        metavar="RULE",
        help="which trials end early: synchronous, asynchronous, median, hyperband or none. Options follow a colon, as"
        " in synchronous:eta=4,first_rung=6 or synchronous:first_rung=60,unit=seconds (default: the study's own;"
        " docs/early_stopping.md)",
    )
    search.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="how trials are trained until they are compared: truncated, with the first part of the learning-rate"
        " schedule of all epochs, or stretched, with a complete schedule of their own (default: the study's own)",
    )


def _add_certainty(parser: argparse.ArgumentParser) -> None:
    """Flags for how certain the answer is."""
    answer = parser.add_argument_group("how certain the answer is (docs/answers.md)")
    answer.add_argument(
        "--seeds",
        type=given(seeds_text),
        metavar="N",
        help="train each setting with one seed, and then those that may be the best with N seeds in all; N,all trains"
        " each setting with N seeds (default: the study's own, which is 1 for most)",
    )
    answer.add_argument(
        "--confirm",
        type=whole_number(1, MOST_SEEDS),
        metavar="N",
        help="when all settings have been compared, train the best one again with N fresh seeds, for all epochs, and"
        " quote the accuracy of these reruns (default: no reruns)",
    )
    answer.add_argument(
        "--holdout",
        type=share,
        metavar="X",
        help="quote the accuracy of the best setting on this share of the validation images, such as 0.5, and choose it"
        " on the others (default: all images serve for both)",
    )
    answer.add_argument(
        "--equal-within",
        type=above_zero,
        metavar="POINTS",
        help="settings whose accuracies differ by fewer percentage points are equal in practice (default: 0.2)",
    )
