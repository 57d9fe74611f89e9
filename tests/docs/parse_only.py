"""Has programs parse command lines, and do nothing else: ``python -m tests.docs.parse_only`` < commands.json.

Reads a list of commands from standard input, each a list of words beginning with `python`, `ray` or `mlflow`, and
prints a list with what is wrong with each, or null. One process for all, since importing torch and Ray takes longer
than everything else.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import runpy
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

from nfnet_ray.errors import UserError

# Packages whose modules begin with their parser. Other modules may parse nothing, and would run.
PARSING = {"nfnet_ray", "studies", "data_prep", "dashboards"}


class _Parsed(BaseException):
    """A program has parsed its command line; it must not continue."""


class _Refused(BaseException):
    """A program's parser has refused its command line."""


_parse_args = argparse.ArgumentParser.parse_args


def _only_parse(parser: argparse.ArgumentParser, *arguments: Any) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            _parse_args(parser, *arguments)
    except SystemExit as exit_:
        if exit_.code:
            raise _Refused(said.getvalue().strip()) from None
    except UserError as error:
        raise _Refused(str(error)) from None
    raise _Parsed


def python(words: Sequence[str]) -> str | None:
    """What is wrong with the command line of a file (`studies/train.py …`) or module (`-m studies …`)."""
    is_module = words[0] == "-m"
    program, *arguments = words[is_module:]
    if is_module and program.split(".")[0] not in PARSING:
        return None if importlib.util.find_spec(program) else f"there is no module {program}"
    run = runpy.run_module if is_module else runpy.run_path
    with mock.patch.object(sys, "argv", [program, *arguments]):
        try:
            run(program, run_name="__main__")
        except _Parsed:
            return None
        except _Refused as refused:
            return str(refused)
        except SystemExit as exit_:
            return f"it ended with {exit_.code} before it parsed anything"
        except Exception as error:  # a program of the documents, whatever it does
            return f"{type(error).__name__}: {error}"
    return "it parses no command line"


def click_program(words: Sequence[str]) -> str | None:
    """What is wrong with the command line of `ray` or `mlflow`."""
    import click

    if words[0] == "ray":
        from ray.scripts.scripts import cli
    else:
        from mlflow.cli import cli
    command, context, rest = cli, None, list(words[1:])
    try:
        while True:
            context = command.make_context(rest[0] if rest else words[0], rest, parent=context)
            if not isinstance(command, click.Group):
                return None
            _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    except click.exceptions.Exit:
        return None
    except click.ClickException as error:
        return error.format_message()


def main() -> None:
    found = []
    printed = sys.stdout
    for command in json.load(sys.stdin):
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", _only_parse),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            found.append(python(command[1:]) if command[0] == "python" else click_program(command))
    json.dump(found, printed)


if __name__ == "__main__":
    main()
