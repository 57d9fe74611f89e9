"""A program that is told to end prints one line; output that nobody reads loses no work. A few seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from nfnet_ray.command_line import interruption
from nfnet_ray.command_line.interruption import asked_to_stop
from tests.deadlines import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
STUDIES = ["studies/agc_sweep.py", "studies/dropout_sweep.py", "studies/sam_sweep.py", "studies/transfer.py"]
MODULES = [
    "data_prep",
    "dashboards.compare",
    "dashboards.report",
    "dashboards.signal_propagation",
    "nfnet_ray.models",
    "nfnet_ray.data",
]
PROGRAMS = [[program] for program in [*STUDIES, "studies/train.py"]] + [["-m", name] for name in MODULES]

# Stands for any library: its import is long, and what tells the program to end comes in the middle of it.
INTERRUPTING = """\
import os, signal
os.kill(os.getpid(), {number})
"""


def run(
    *arguments: str, before: str = "", stdout: int = subprocess.PIPE, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([before, str(REPOSITORY)])}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program[-1])
def test_an_import_that_is_interrupted_takes_one_line(program: list[str], tmp_path: Path) -> None:
    """Of argparse, which all of them import first, before any of the large libraries."""
    (tmp_path / "argparse.py").write_text(INTERRUPTING.format(number=int(signal.SIGINT)))
    ended = run(*program, before=str(tmp_path))
    assert ended.returncode == 130, ended.stderr
    name = f"python -m {program[-1]}" if "-m" in program else Path(program[-1]).name
    assert ended.stderr == f"{name}: stopped\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_so_does_what_a_supervisor_or_a_closed_terminal_interrupts(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "argparse.py").write_text(INTERRUPTING.format(number=int(number)))
    ended = run("studies/train.py", before=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (130, "train.py: stopped\n")


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """Set by the first request, while the test lasts; requests are told apart without waiting."""
    asked = threading.Event()
    with asked_to_stop(asked, lambda: None):
        yield asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_request_stops_and_the_second_ends_at_once(
    stop: threading.Event, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.raise_signal(number)
    assert stop.is_set()
    signal.raise_signal(signal.SIGTERM)  # as ``timeout`` does, to its child and to its group
    signal.raise_signal(signal.SIGHUP)
    monkeypatch.setattr(interruption, "SECONDS_OF_ONE_REQUEST", 0.0)
    signal.raise_signal(signal.SIGHUP)  # of a shell that passes on what the kernel has sent
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


HAMMERED = """\
from nfnet_ray.command_line.program import begin
begin()
import os, signal, sys, threading, time
from nfnet_ray.command_line import interruption
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.interruption import asked_to_stop
interruption.SECONDS_OF_ONE_REQUEST = 0.0
class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGINT):
        for _ in range({late}):  # when Python has given the signals back
            kill(process, number)
late = Late()
def body():
    try:
        with asked_to_stop(threading.Event(), lambda: None):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
    except KeyboardInterrupt:
        for _ in range({more}):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1000)  # for a Ray that does not end
            except KeyboardInterrupt:
                raise RuntimeError
        return 130
sys.exit(exit_code_of("program.py", body))
"""


@pytest.mark.parametrize(("more", "late", "said"), [(1, 0, True), (0, 2, False)])
def test_whoever_presses_ctrl_c_again_and_again_gets_the_exit_code_and_no_trace(
    tmp_path: Path, more: int, late: int, said: bool
) -> None:
    """The third time while a run that quits clears up, and after its last line."""
    program = tmp_path / "program.py"
    program.write_text(HAMMERED.format(more=more, late=late))
    ended = run(str(program))
    assert (ended.returncode, ended.stderr) == (130, "program.py: stopped\n" if said else "")


def test_after_nohup_a_closed_terminal_stops_nothing() -> None:
    before, asked = signal.signal(signal.SIGHUP, signal.SIG_IGN), threading.Event()
    try:
        with asked_to_stop(asked, lambda: None):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not asked.is_set()


@pytest.mark.parametrize(
    "program",
    [["studies/train.py", "--help"], ["-m", "data_prep", "convert", "--help"], ["-m", "nfnet_ray.models"]],
    ids=lambda program: program[1],
)
def test_a_pipe_that_nobody_reads_is_no_error(program: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = run(*program, stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


RUN = """\
import sys
from nfnet_ray.command_line.program import begin, goes_on_without_output
begin()
with goes_on_without_output("nobody reads it"):
    for _ in range(3):
        print("epoch", flush=True)
    print("done", file=sys.stderr)
"""


@pytest.mark.parametrize("place", ["a pipe", "a full disk"])
def test_a_run_that_loses_its_output_says_so_once_and_continues(place: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    if place == "a full disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writing)
    ended = run("-c", RUN, stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "nobody reads it\ndone\n")


CLOSED = """\
import os, subprocess, sys
from nfnet_ray.command_line.program import begin
begin()
print("nobody hears it")
journal = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
subprocess.run([sys.executable, "-c", "print('nor this')"], check=True)
sys.exit(journal)
"""


def test_closed_streams_are_the_void_and_no_file_takes_their_place(tmp_path: Path) -> None:
    """As a service starts a program, or a shell with ``<&- >&- 2>&-``."""
    program = 'exec "$0" "$@" <&- >&- 2>&-'
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = ["sh", "-c", program, sys.executable, "-c", CLOSED, str(tmp_path / "journal")]
    ended = subprocess.run(command, env=environment, timeout=HANG_SECONDS, check=False)
    assert ended.returncode > 2  # the number of the journal's descriptor
    assert (tmp_path / "journal").read_bytes() == b""


def test_a_program_that_has_imported_triton_says_nothing_of_leaks() -> None:
    """Triton counts its objects, and prints hundreds of lines about those that are there when a process has ended."""
    if find_spec("triton") is None:
        pytest.skip("torch has no Triton here")
    program = "from nfnet_ray.command_line.program import begin; begin(); import triton._C.libtriton"
    ended = run("-c", program)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = run("-m", "nfnet_ray.models", stdout=full.fileno())
    assert (ended.returncode, ended.stderr) == (
        2,
        "python -m nfnet_ray.models: the output: No space left on device\n",
    )
