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
_NAME = "a study's name, or the path of its folder"
_NAME_OR_EXPORTED = f"{_NAME}, or of one that export has written"
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
        description="Look at the studies of a storage, and manage them. To run one, see"
        " python studies/agc_sweep.py --help.",
        epilog=_examples(
            "list --tag task=pets", "show first_try", "compare first_try second_try", "clean --plan"
        ),
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
        "show one study: its trials, its answer, where its results are, and how to resume it",
    )
    _add_name(show, or_exported=True)
    _add_json(show)
    compare = _command(
        commands,
        "compare",
        _compare,
        "compare two studies: what differs between them, and the settings that both have",
        example="compare first_try studies/results/agc_sweep_cifar10",
    )
    compare.add_argument("a", metavar="A", help=f"one study: {_NAME_OR_EXPORTED}")
    compare.add_argument("b", metavar="B", help="the other study, named in the same way")
    _add_json(compare)
    export = _command(
        commands,
        "export",
        _export,
        "write a study's results into a folder of small files, to share or archive",
        " The tables are trials.csv and epochs.csv, the study is described in study.json, and bits.npz says which"
        " validation images each trial had right. There are no checkpoints in it, and no paths of this machine."
        " nfnet_ray.load_study(FOLDER) reads it.",
        example="export first_try results/first_try",
    )
    _add_name(export)
    export.add_argument(
        "folder", metavar="FOLDER", type=given_path, help="where to write; it is created if it is missing"
    )
    replay = _command(
        commands,
        "replay",
        _replay,
        "say what each rule of early stopping would have cost and missed in a study",
        " Settings that were not trained to the end are left out, so a study with --early-stopping none says most.",
        example="replay first_try",
    )
    _add_name(replay, or_exported=True)
    _add_json(replay)
    publisher = _command(
        commands,
        "publish",
        _publish,
        "put the best network of a study into MLflow's model registry",
        " The registered model has two flavours of MLflow: pyfunc, which classifies the bytes of image files, and"
        " pytorch, which is the network.",
        example="publish first_try",
    )
    _add_name(publisher)
    note = _command(
        commands,
        "note",
        _note,
        "add a note to a study that is not running",
        example="note first_try 'the images of 3 May are wrong'",
    )
    _add_name(note)
    note.add_argument("text", metavar="TEXT", type=given(note_text), help="the text of the note")
    tag = _command(
        commands,
        "tag",
        _tag,
        "add a tag to a study that is not running, or change one",
        example="tag first_try task=pets owner=me",
    )
    _add_name(tag)
    tag.add_argument(
        "tags",
        metavar="KEY=VALUE",
        nargs="+",
        type=given(tag_pair),
        help="a tag; if the key exists, its value is replaced",
    )
    delete = _command(
        commands,
        "delete",
        _delete,
        "delete studies: their folders and their runs in MLflow",
        " It names them and asks first.",
        example="delete first_try second_try",
    )
    delete.add_argument("names", metavar="NAME", nargs="+", help=f"{_NAME}; several may be given")
    delete.add_argument("--yes", action="store_true", help="delete without asking")
    delete.add_argument(
        "--keep-mlflow", action="store_true", help="delete only the folders, and keep the runs in MLflow"
    )
    delete.add_argument(
        "--tracking-uri",
        type=given_text,
        metavar="URI",
        help="the MLflow server or database that has the runs (default: where each study was recorded)",
    )
    clean = _command(
        commands,
        "clean",
        _clean,
        "remove checkpoints that nothing needs",
        " A trial that has finished, was stopped early or diverged does not need its checkpoints to resume. They are"
        " removed, except those of the best trial of each stratum and those from whose weights another study starts."
        " The files of Ray Tune are removed too. Journals, reports and MLflow stay. A running study is left alone.",
        example="clean --plan",
    )
    clean.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help=f"{_NAME}; several may be given (default: all of the storage)",
    )
    clean.add_argument("--plan", action="store_true", help="print what would be removed, and remove nothing")
    return parser


def _command(
    commands: argparse._SubParsersAction[OneLineParser],
    name: str,
    run: Command,
    meaning: str,
    more: str = "",
    example: str | None = None,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=meaning,
        description=f"{meaning[0].upper()}{meaning[1:]}.{more}",
        epilog=_examples(example) if example else None,
    )
    _add_storage(
        command, default=argparse.SUPPRESS
    )  # that of the program, if it is not said behind the command
    command.set_defaults(run=run)
    return command


def _examples(*commands: str) -> str:
    title = "example:" if len(commands) == 1 else "examples:"
    return "\n".join([title, *(f"  {PROGRAM} {command}" for command in commands)])


def _add_storage(parser: argparse.ArgumentParser, default: Path | str) -> None:
    parser.add_argument(
        "--storage",
        type=given_path,
        default=default,
        metavar="DIR",
        help=f"folder of all studies (default: {DEFAULT_STORAGE}). A relative path starts at ${HOME_VARIABLE} if it"
        " is set, else at the current folder",
    )


def _add_name(command: argparse.ArgumentParser, *, or_exported: bool = False) -> None:
    command.add_argument("name", metavar="NAME", help=_NAME_OR_EXPORTED if or_exported else _NAME)


def _add_tags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tag",
        dest="tags",
        action=AddPair,
        type=given(tag_pair),
        default={},
        metavar="KEY=VALUE",
        help="list only studies that have this tag; may be repeated",
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json",
        dest="as_json",
        action="store_true",
        help="print one JSON document instead (docs/managing.md)",
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
