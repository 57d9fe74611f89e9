"""The command line of ``python -m studies``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from nfnet_ray.command_line.arguments import AddPair, given, given_path, given_text
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.command_line.terminal import new_console
from nfnet_ray.places import HOME_VARIABLE
from nfnet_ray.study.annotations import note_text, tag_pair
from nfnet_ray.tracking.journal import JOURNAL_FILE
from studies.managing.folders import find_directory, find_studies, storage_at
from studies.running.request import DEFAULT_STORAGE

PROGRAM = "python -m studies"
Command = Callable[[argparse.Namespace, Console], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0, 2 for a mistake that a person can fix, 3 if MLflow does not have everything, 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    console = new_console()
    return exit_code_of(PROGRAM, lambda: options.run(options, console))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROGRAM,
        description="List, show, compare, replay, export, publish, annotate, delete and clean the studies of a storage."
        " To run one: python studies/agc_sweep.py --help.",
    )
    _add_storage(parser, default=DEFAULT_STORAGE)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    lister = _command(commands, "list", _list, "list all studies, newest first")
    _add_tags(lister)
    _add_json(lister)
    show = _command(
        commands,
        "show",
        _show,
        "show one study: its trials, its answer, where its results are, how to resume it",
    )
    _add_name(show)
    _add_json(show)
    compare = _command(
        commands, "compare", _compare, "compare two studies: what differs, and the settings that both have"
    )
    compare.add_argument(
        "a", metavar="A", help="a study's name, or the path of its folder or of one that export wrote"
    )
    compare.add_argument("b", metavar="B", help="another one")
    _add_json(compare)
    export = _command(
        commands,
        "export",
        _export,
        "write a study's tables and bits into a folder of small files",
        " trials.csv, epochs.csv, bits.npz and study.json, without checkpoints and without the paths of this machine;"
        " nfnet_ray.load_study reads the folder.",
    )
    _add_name(export)
    export.add_argument(
        "folder", metavar="FOLDER", type=given_path, help="where to write; it is created if it is missing"
    )
    replay = _command(
        commands,
        "replay",
        _replay,
        "say what each rule of early stopping would have cost and missed in a study that stopped nothing early",
    )
    _add_name(replay)
    _add_json(replay)
    publisher = _command(
        commands,
        "publish",
        _publish,
        "put the best network of a study into MLflow's model registry",
        " MLflow's pyfunc classifies the bytes of image files with it, and its pytorch flavour has the network.",
    )
    _add_name(publisher)
    note = _command(commands, "note", _note, "add a note to a study that is not running")
    _add_name(note)
    note.add_argument("text", metavar="TEXT", type=given(note_text), help="the text of the note")
    tag = _command(commands, "tag", _tag, "add a tag to a study that is not running, or change one")
    _add_name(tag)
    tag.add_argument(
        "tags",
        metavar="KEY=VALUE",
        nargs="+",
        type=given(tag_pair),
        help="the tag; if the key exists, its value is replaced",
    )
    delete = _command(
        commands, "delete", _delete, "delete studies: their folders, and their runs in MLflow; asks first"
    )
    delete.add_argument("names", metavar="NAME", nargs="+", help="a study's name, or the path of its folder")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.add_argument("--keep-mlflow", action="store_true", help="delete the folders only")
    delete.add_argument(
        "--tracking-uri",
        type=given_text,
        metavar="URI",
        help="the MLflow server or database with the runs (default: where each study was recorded)",
    )
    clean = _command(
        commands,
        "clean",
        _clean,
        "remove checkpoints that nothing needs",
        " A trial that has finished, was stopped early or diverged does not need its checkpoints to resume. They are"
        " removed, except those of the best trial of each stratum and those from whose weights another study starts."
        " The files of Ray Tune are removed too. Journals, reports and MLflow stay. A running study is left alone.",
    )
    clean.add_argument("names", metavar="NAME", nargs="*", help="studies (default: all of the storage)")
    clean.add_argument("--plan", action="store_true", help="print what would be removed, and remove nothing")
    return parser


def _command(
    commands: argparse._SubParsersAction[OneLineParser], name: str, run: Command, meaning: str, more: str = ""
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.{more}")
    _add_storage(
        command, default=argparse.SUPPRESS
    )  # that of the program, if it is not said behind the command
    command.set_defaults(run=run)
    return command


def _add_storage(parser: argparse.ArgumentParser, default: Path | str) -> None:
    parser.add_argument(
        "--storage",
        type=given_path,
        default=default,
        metavar="DIR",
        help=f"the folder of all studies (default: {DEFAULT_STORAGE}). A relative path starts at ${HOME_VARIABLE} if it"
        " is set, else at the current folder",
    )


def _add_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="the study's name, or the path of its folder")


def _add_tags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tag",
        dest="tags",
        action=AddPair,
        type=given(tag_pair),
        default={},
        metavar="KEY=VALUE",
        help="only studies with this tag; may be repeated",
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json",
        dest="as_json",
        action="store_true",
        help="print one JSON document; docs/managing.md describes it",
    )


# Each command imports what it needs, so that list is quick.


def _list(options: argparse.Namespace, console: Console) -> None:
    from studies.managing.list_command import list_studies

    list_studies(storage_at(options.storage), options.tags, console, as_json=options.as_json)


def _show(options: argparse.Namespace, console: Console) -> None:
    from studies.managing.show_command import show_study

    show_study(_find_also_exported(options, options.name), console, as_json=options.as_json)


def _compare(options: argparse.Namespace, console: Console) -> None:
    from studies.managing.compare_command import compare

    a, b = (_find_also_exported(options, name) for name in (options.a, options.b))
    compare(a, b, console, as_json=options.as_json)


def _replay(options: argparse.Namespace, console: Console) -> None:
    from studies.managing.replay_command import replay_study

    replay_study(_find_also_exported(options, options.name), console, as_json=options.as_json)


def _find_also_exported(options: argparse.Namespace, name: str) -> Path:
    """The directory of a study, which may be one that ``export`` wrote, in the storage or anywhere else."""
    from nfnet_ray.analysis.files.exported import is_exported

    storage, exported = storage_at(options.storage), Path(name)
    if is_exported(exported):
        return exported
    in_storage = storage / name
    is_study = (in_storage / JOURNAL_FILE).exists()
    return in_storage if is_exported(in_storage) and not is_study else find_directory(storage, name)


def _export(options: argparse.Namespace, console: Console) -> None:
    from studies.managing.export_command import export

    export(find_directory(storage_at(options.storage), options.name), options.folder, console)


def _publish(options: argparse.Namespace, console: Console) -> None:
    from studies.managing.publish_command import publish_best

    publish_best(find_directory(storage_at(options.storage), options.name), console)


def _note(options: argparse.Namespace, console: Console) -> int:
    from studies.managing.annotate_command import annotate

    directory = find_directory(storage_at(options.storage), options.name)
    return annotate(directory, [options.text], {}, console)


def _tag(options: argparse.Namespace, console: Console) -> int:
    from studies.managing.annotate_command import annotate

    directory = find_directory(storage_at(options.storage), options.name)
    return annotate(directory, [], dict(options.tags), console)


def _delete(options: argparse.Namespace, console: Console) -> None:
    from studies.managing.delete_command import delete_studies

    directories = find_studies(storage_at(options.storage), options.names)
    delete_studies(
        directories,
        console,
        tracking_uri=options.tracking_uri,
        asks=not options.yes,
        keep_mlflow=options.keep_mlflow,
    )


def _clean(options: argparse.Namespace, console: Console) -> None:
    from studies.managing.clean_command import clean_studies

    storage = storage_at(options.storage)
    directories = find_studies(storage, options.names) if options.names else None
    clean_studies(storage, directories, console, only_plan=options.plan)
