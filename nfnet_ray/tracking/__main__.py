"""``python -m nfnet_ray.tracking replay STUDY``: delivers the events of a study's journal that MLflow lacks."""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first, as the following imports take seconds

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nfnet_ray.command_line.arguments import given_text
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.command_line.terminal import new_console, say, say_whole, waiting
from nfnet_ray.printable import display_path, interpreter, shell_command
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool, Undelivered
from nfnet_ray.tracking.destination.choice import tracking_uri_for
from nfnet_ray.tracking.destination.experiment import experiment_of_journal
from nfnet_ray.tracking.destination.uri import without_password
from nfnet_ray.tracking.destination.uri_check import check_tracking_uri
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.running_lock import alone_with
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.study_directory import find_study

PROGRAM = "python -m nfnet_ray.tracking"
EXIT_NOT_IN_MLFLOW = 3  # the same exit code as that of a study
# A server that answers may take as long as it needs.
_MOST_SECONDS, _UNANSWERED_SECONDS = 24 * 3600.0, 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0, 2 for a user's error, 3 if MLflow lacks some events."""
    options = _parser().parse_args(arguments)
    return exit_code_of(
        PROGRAM,
        lambda: _replay(options, new_console()),
        when_stopped="stopped; what was delivered is kept, and the same command delivers the rest",
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=PROGRAM, description="Deliver the journal of a study to MLflow.")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    replay = commands.add_parser(
        "replay",
        help="deliver what MLflow does not have yet",
        description="Deliver to MLflow what it does not have of a study's journal, into the existing runs. This can be "
        "repeated: nothing is recorded twice.",
        epilog="example:\n  python -m nfnet_ray.tracking replay first_try",
    )
    replay.add_argument(
        "study",
        metavar="STUDY",
        help="a study's folder, or its name under runs (in $NFNET_RAY_HOME, if that is set)",
    )
    replay.add_argument(
        "--tracking-uri",
        type=given_text,
        metavar="URI",
        help="the MLflow that records it from now on: http://HOST:PORT or sqlite:///FILE (default: the one that has "
        "recorded it so far, else $MLFLOW_TRACKING_URI, else mlflow.db next to the study)",
    )
    replay.add_argument(
        "--from-start", action="store_true", help="deliver all events again, as if MLflow had none of them"
    )
    return parser


def _replay(options: argparse.Namespace, console: Console) -> int:
    directory = find_study(options.study).resolve()
    StudyState.read(
        directory
    )  # raises for a damaged journal, which must not be taken for an error of MLflow and retried
    uri = tracking_uri_for(options.tracking_uri, directory.parent, Path.cwd(), directory.name)
    check_tracking_uri(uri, experiment_of_journal(directory))
    with alone_with(directory):
        spool = Spool(directory / JOURNAL_FILE, directory / SPOOL_FILE)
        if options.from_start:
            spool.acknowledge(0, spool.tracked, Undelivered())
        sink = MLflowSink(uri, spool)
        with waiting(console, "Telling MLflow …"):
            sink.attach_study()
            sink.start()
            missing = sink.close(_MOST_SECONDS, _UNANSWERED_SECONDS)
    again = [interpreter(), "-m", "nfnet_ray.tracking", "replay", display_path(directory)]
    if options.tracking_uri:
        again += ["--tracking-uri", without_password(options.tracking_uri)]
    for sentences, command in sink.last_words(shell_command(again)):
        say(console, sentences)
        if command:
            say_whole(console, f"  {command}")
    if missing:
        return EXIT_NOT_IN_MLFLOW
    say(console, f"MLflow at {without_password(uri)} has everything of {directory.name}. Open it with:")
    say_whole(
        console, f"  {shell_command([interpreter(), '-m', 'dashboards.compare', display_path(directory)])}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
