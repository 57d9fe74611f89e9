"""Names with control characters are printed harmlessly. Less than a second."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest

from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable, shell_command

TITLE = "a\x1b]0;owned\x07.jpg"  # sets the title of a terminal's window


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat/0.jpg", "cat/0.jpg"),
        ("", ""),
        ("Müller [old] 犬 👨\u200d👩\u200d👧 \u202f", "Müller [old] 犬 👨\u200d👩\u200d👧 \u202f"),
        ("a\nb", r"a\nb"),
        ("a\r\tb\x7f", r"a\r\tb\x7f"),
        (TITLE, r"a\x1b]0;owned\x07.jpg"),
        ("\x9b31m", r"\u009b31m"),  # an escape code of one character
        ("gpj.\u202etac", r"gpj.\u202etac"),  # reads "cat.jpg" on a terminal
        ("a\u2028b", r"a\u2028b"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("a\U000e0041", r"a\U000e0041"),  # an invisible tag
        (Path("a\nb") / "c", r"a\nb/c"),
        (r"a\nb", r"a\nb"),
    ],
)
def test_text_is_one_line_without_codes(text: object, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


def test_an_error_is_one_printable_line_wherever_it_goes() -> None:
    error = UserError(f"{TITLE}: cannot be read; see a\nb")
    assert str(error) == r"a\x1b]0;owned\x07.jpg: cannot be read; see a\nb"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_somebody_typed_is_shown_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        OneLineParser(prog="python -m data_prep").parse_args([f"--{TITLE}\n"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "python -m data_prep: unrecognized arguments: --a\\x1b]0;owned\\x07.jpg\\n; see --help\n"
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    "word", ["a", "", "a b", "it's", "$(touch x)", TITLE, "a\n'b'\\n", "\u202ex", os.fsdecode(b"\xff1")]
)
def test_a_printed_command_does_what_it_says(word: str) -> None:
    command = shell_command(["printf", "%s", word])
    assert printable(command) == command
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, env=environment)
    assert done.stdout == os.fsencode(word)
