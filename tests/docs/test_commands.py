"""Every command in the documents exists, with its flags; those that are cheap are run. About half a minute."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.deadlines import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(
        REPOSITORY / name
        for name in ("README.md", "CONTRIBUTING.md", "tests/README.md", "studies/results/README.md")
    ),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
PARSED = ("python", "ray", "mlflow")  # programs whose parsers are asked
# The file that docs/new_study.md is about; tests/quick/test_new_study.py runs it.
OF_A_READER = "studies/momentum_sweep.py"
# What a reader puts in place of them: SOURCE, FIELD=VALUES, an ellipsis.
PLACEHOLDER = re.compile(r"…|\.\.\.|\b[A-Z]{2,}[A-Z_]*\b|\bX\b")


@dataclass(frozen=True)
class Command:
    document: str
    line: str
    is_mention: bool  # in a sentence: what it needs may be left out

    @property
    def words(self) -> list[str]:
        words = [word for word in shlex.split(self.line, comments=True) if word != "…"]
        words[0] = words[0].removeprefix(".venv/bin/")
        return [*words, "--", "true"] if words[:3] == ["ray", "job", "submit"] else words

    def tolerates(self, problem: str) -> bool:
        """Whether it is no mistake of the document that its program refuses the command like this."""
        if self.is_mention and re.search(r"\b(is|are) missing\b|Missing (argument|option)", problem):
            return True
        return OF_A_READER in self.line or (
            PLACEHOLDER.search(self.line) is not None
            and not re.search("unrecognized|No such option", problem)
        )


def commands_of(document: Path) -> list[Command]:
    """The command lines in blocks of code without a language and in spans of code, without what follows a pipe."""
    lines: list[tuple[str, bool]] = []
    for block in MarkdownIt("commonmark").enable("table").parse(document.read_text()):
        if block.type in {"fence", "code_block"} and not block.info:
            lines += [(line, False) for line in block.content.replace("\\\n", " ").splitlines()]
        lines += [(span.content, True) for span in block.children or [] if span.type == "code_inline"]
    known = re.compile(rf"(\.venv/bin/)?({'|'.join((*PARSED, 'make', 'kubectl'))}) [^|]*")
    name = str(document.relative_to(REPOSITORY))
    return [
        Command(name, found[0].removesuffix(" &").strip(), is_mention)
        for line, is_mention in lines
        for part in re.split(r" && | --\s+(?=python )", line.strip())
        if (found := known.match(part))
    ]


COMMANDS = [command for document in DOCUMENTS for command in commands_of(document)]


def test_the_documents_have_commands() -> None:
    programs = {" ".join(command.words[: 3 if command.words[1] == "-m" else 2]) for command in COMMANDS}
    assert {"python studies/agc_sweep.py", "python -m data_prep", "ray start", "make study"} <= programs
    assert len(COMMANDS) > 150


def test_every_program_understands_its_commands() -> None:
    commands = [command for command in COMMANDS if command.words[0] in PARSED and command.words[1] != "-c"]
    child = subprocess.run(
        [sys.executable, "-m", "tests.docs.parse_only"],
        cwd=REPOSITORY,
        input=json.dumps([command.words for command in commands]),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert child.returncode == 0, child.stderr
    problems = [
        f"{command.document}: {command.line}: {problem}"
        for command, problem in zip(commands, json.loads(child.stdout), strict=True)
        if problem and not command.tolerates(problem)
    ]
    assert problems == []


def test_every_target_of_make_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    asked = {command.words[1] for command in COMMANDS if command.words[0] == "make"}
    assert {word for word in asked if not word.startswith("ARGS")} <= targets


def test_every_folder_that_kubectl_applies_exists() -> None:
    folders = {folder for command in COMMANDS for folder in re.findall(r"-k (deploy/[\w/-]+)", command.line)}
    assert folders
    assert {
        folder for folder in folders if not (REPOSITORY / folder / "kustomization.yaml").exists()
    } == set()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("python -m nfnet_ray.models", "nfnet_f0"),
        ("python -m nfnet_ray.models nfnet_f0", "block_00"),
        ("python -m data_prep info data/mine --sheet classes.png", "10 classes"),
        ("python -m studies list", "no study in runs"),
    ],
)
def test_a_cheap_command_does_what_the_documents_say(
    line: str, says: str, few_digits: Path, tmp_path: Path
) -> None:
    [*_, command] = [each for each in COMMANDS if shlex.split(each.line, comments=True) == line.split()]
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").symlink_to(few_digits)
    done = subprocess.run(
        [sys.executable, *command.words[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert says in (done.stdout + done.stderr).lower()
