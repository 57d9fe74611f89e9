"""Every program ends alike: one line with its name for people, an exit code, a stack trace for bugs alone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.errors import UserError


def ends(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def body() -> None:
        raise error

    code = exit_code_of("program.py", body, when_stopped="stopped; nothing was written")
    return code, capsys.readouterr().err


def test_the_exit_code_is_that_of_the_body() -> None:
    assert exit_code_of("program.py", lambda: None) == 0
    assert exit_code_of("program.py", lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("batch_size = 0\nis not allowed"), "batch_size = 0\\nis not allowed"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/out/page.html"),
            "/out/page.html: Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
    ids=["user", "file", "full disk"],
)
def test_what_a_person_can_put_right_is_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(error, capsys) == (2, f"program.py: {line}\n")


def test_notes_end_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error, code, said in (
        (UserError("the disk is full"), 2, "the disk is full; 14 images are kept"),
        (KeyboardInterrupt(), 130, "stopped; 14 images are kept"),
    ):
        error.add_note("14 images are kept")
        assert ends(error, capsys) == (code, f"program.py: {said}\n")


THREAD = """\
import threading, time
from nfnet_ray.command_line.exit_code import end_with, exit_code_of
from nfnet_ray.errors import UserError
def tell():
    print("told", flush=True)
    raise OSError
def body():
    print("a table")
    threading.Thread(target=lambda: end_with(UserError("Ray has ended"), tell)).start()
    time.sleep(60)
exit_code_of("program.py", body)
"""


def test_a_thread_can_end_a_program_whose_main_thread_waits() -> None:
    result = subprocess.run([sys.executable, "-c", THREAD], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "a table\ntold\n")
    assert result.stderr == "program.py: Ray has ended\n"


@pytest.mark.parametrize(("own_code", "code"), [(False, 130), (True, 143)])
def test_sigterm_ends_a_program_as_ctrl_c_does(
    own_code: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = exit_code_of(
        "program.py", lambda: os.kill(os.getpid(), signal.SIGTERM), sigterm_has_its_own_code=own_code
    )
    assert (ended, capsys.readouterr().err) == (code, "program.py: stopped\n")


@pytest.mark.parametrize("error", [ValueError("a bug"), ConnectionError("of no file")], ids=str)
def test_bugs_keep_their_stack_trace(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)):
        ends(error, capsys)
