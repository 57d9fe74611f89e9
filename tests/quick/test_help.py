"""Every help text: as wide as the terminal, without markup, each flag explained, and each example a command.

Takes about four seconds, most of it imports.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from nfnet_ray.command_line.help_formatter import HelpFormatter, without_markup
from nfnet_ray.command_line.one_line_parser import OneLineParser

PROGRAMS: dict[str, Sequence[str]] = {
    "studies.train": [""],
    "studies.managing.commands": [
        "", "list", "show", "compare", "export", "replay", "publish", "note", "tag", "delete", "clean",
    ],
    "data_prep.__main__": ["", "convert", "digits", "verify", "info", "fetch", "doctor"],
    "dashboards.__main__": [""],
    "dashboards.report": [""],
    "dashboards.compare": [""],
    "dashboards.signal_propagation": [""],
    "nfnet_ray.models.__main__": [""],
    "nfnet_ray.data.__main__": ["", "sheet"],
    "nfnet_ray.tracking.__main__": ["", "replay"],
}  # fmt: skip
"""{module: its commands, and "" for itself}."""
COMMANDS = [(module, command) for module, commands in PROGRAMS.items() for command in commands]


def help_of(module: str, command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(module).main([*command.split(), "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("module", "command"), COMMANDS, ids=str)
def test_a_help_text_fits_the_terminal_and_has_no_markup(
    module: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (72, 80, 400):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = help_of(module, command, capsys)
        usage, _, after = text.partition("\n\n")
        assert usage.startswith("usage: python ")
        prose = after.partition("\nexample")[0]
        assert [line for line in prose.splitlines() if len(line) > min(columns, 100)] == []
        assert "``" not in text
        assert ":class:" not in text
        assert "/work" not in text
        assert all(line == "" or not line.endswith(" ") for line in text.splitlines())


@pytest.mark.parametrize(("module", "command"), COMMANDS, ids=str)
def test_each_flag_is_explained_in_the_same_way(
    module: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phrase that begins in lower case, or with a name in capitals, and does not end with a full stop."""
    monkeypatch.setenv("COLUMNS", "100")
    prose = help_of(module, command, capsys).partition("\nexample")[0]
    flags: list[str] = []
    for line in prose.splitlines():
        if re.match(r"  -", line):
            flags.append(line.strip())
        elif flags and line.startswith(" " * 12):
            flags[-1] += f"  {line.strip()}"
        elif not line.startswith(" "):
            flags.append("")
    explained = [flag for flag in flags if flag]
    assert explained
    for flag in explained:
        _, gap, meaning = flag.partition("  ")
        assert gap, flag
        assert meaning.strip(), flag
        assert not meaning.rstrip().endswith("."), flag
        first = meaning.split()[0]
        assert first.islower() or first.isupper() or "'" in first or "GPU" in first or "CPU" in first, flag


def test_examples_are_commands_that_the_program_understands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parsed(Exception):
        pass

    parse = OneLineParser.parse_args

    def only_parse(parser: OneLineParser, arguments: Sequence[str] | None = None) -> object:
        parse(parser, arguments)
        raise Parsed

    tried = 0
    for module, command in COMMANDS:
        monkeypatch.undo()
        monkeypatch.setenv("COLUMNS", "100")
        examples = help_of(module, command, capsys).partition("\nexample")[2].replace("\\\n", " ")
        main = importlib.import_module(module).main
        program = importlib.import_module(module).__name__.removesuffix(".__main__")
        program = "studies" if program == "studies.managing.commands" else program
        for line in re.findall(
            rf"^  python (?:-m {program}|studies/train\.py)( .*)?$", examples, re.MULTILINE
        ):
            monkeypatch.setattr(OneLineParser, "parse_args", only_parse)
            arguments = shlex.split(line)
            with pytest.raises(SystemExit if "--help" in arguments else Parsed):
                main(arguments)
            capsys.readouterr()
            tried += 1
    assert tried > 20


def test_paragraphs_are_filled_and_examples_are_left_alone() -> None:
    parser = OneLineParser(
        prog="p",
        description="One\ntwo ``--three-four``.\n\n    a  table\n    of   two\n\n* an item\n  in two lines\n* another",
    )
    assert "One two --three-four.\n\n    a  table\n    of   two\n\n* an item in two lines\n* another\n" in (
        parser.format_help()
    )
    narrow = HelpFormatter("p", width=20)
    assert narrow._fill_text("a path/that/is/longer/than/a/line and --a-flag-with-dashes", 20, "") == (
        "a\npath/that/is/longer/than/a/line\nand\n--a-flag-with-dashes"
    )
    assert (
        without_markup("of :func:`a.b`, ``none``: *x*, stem.* and 2 * 3")
        == "of a.b, none: x, stem.* and 2 * 3"
    )


def test_defaults_are_shown_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = OneLineParser(prog="p")
    parser.add_argument("sizes", nargs="*", default=[64, 192], help="sides (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path.cwd() / "a" / "b.csv", help="csv (default: %(default)s)"
    )
    assert "sides (default: 64 192)" in parser.format_help()
    assert "csv (default: a/b.csv)" in parser.format_help()


def test_a_module_without_a_name_of_its_own_is_called_as_it_was_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, program in (
        ("benchmarks.clipping", "benchmarks.clipping"),
        ("benchmarks.gpu.__main__", "benchmarks.gpu"),
    ):
        main = ModuleType("__main__")
        main.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, "__main__", main)
        assert OneLineParser().prog == f"python -m {program}"
        assert OneLineParser(prog="p").prog == "p"


def test_a_program_of_dashboards_is_also_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of("dashboards.__main__", "report", capsys) == help_of("dashboards.report", "", capsys)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("dashboards.__main__", [], "COMMAND is missing, which is one of report, compare, signal_propagation; see --h"),
        ("dashboards.__main__", ["reprot"], "argument COMMAND: reprot is not known: did you mean report?"),
        ("studies.managing.commands", ["zap"], "zap is not known: use one of list, show, compare, export, replay, pub"),
        ("studies.managing.commands", ["compare"], "A and B are missing; see --help"),
        ("data_prep.__main__", ["convert", "x"], "OUT is missing; see --help"),
        ("studies.train", ["--verify", "ful"], "argument --verify: ful is not known: did you mean full?"),
    ],
)  # fmt: skip
def test_what_is_missing_or_misspelt_is_named(
    module: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(module).main(arguments)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1
    assert said in error
