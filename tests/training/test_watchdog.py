"""A worker that hangs is found, prints the stacks of its threads, and ends; a working one is left alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from nfnet_ray.training.measurement.clock import Clock
from nfnet_ray.training.watchdog import EXIT_HUNG, Hang, Watchdog
from tests.deadlines import wait_until
from tests.preloaded import run_program


class Told:
    """What a watchdog in this process would have done."""

    def __init__(self) -> None:
        self.hangs: list[Hang] = []
        self.codes: list[int] = []

    def watchdog(self, clock: Clock, seconds: float = 0.3) -> Watchdog:
        return Watchdog(clock, seconds, self.hangs.append, seconds_to_stay=0.1, end=self.codes.append)


def test_signs_of_life_keep_it_quiet() -> None:
    clock, told = Clock(), Told()
    with told.watchdog(clock, seconds=2.0):
        for phase in ("train", "data_wait", "train", "eval"):
            clock.enter(phase)
            time.sleep(0.05)
        for _ in clock.with_heartbeats(range(60)):  # evaluation lasts longer than that, batch by batch
            time.sleep(0.05)
    assert told.hangs == []
    assert told.codes == []


def test_before_the_first_step_it_is_patient() -> None:
    clock, told = Clock(), Told()
    with told.watchdog(clock, seconds=1.5):
        time.sleep(2.0)  # longer than it would wait later, and far less than three times as long
    assert told.hangs == []


def test_silence_ends_the_process_and_tells_of_all_threads() -> None:
    clock, told = Clock(), Told()
    clock.enter("data_wait")
    let_go = threading.Event()

    def a_thread_that_waits() -> None:
        let_go.wait()

    other = threading.Thread(target=a_thread_that_waits)
    other.start()
    with told.watchdog(clock):
        wait_until(lambda: bool(told.codes), "the end of a process that hangs")
    let_go.set()
    other.join()
    (hang,) = told.hangs
    assert told.codes == [EXIT_HUNG]
    assert (hang.phase, hang.heartbeats, hang.waits_for_others) == ("data_wait", 1, False)
    assert hang.silent_seconds >= 0.3
    assert "a_thread_that_waits" in hang.stacks
    assert "test_silence_ends_the_process" in hang.stacks


def test_storage_that_hangs_does_not_hold_it_up() -> None:
    clock, codes = Clock(), []
    clock.enter("checkpoint")
    forever = threading.Event()
    with Watchdog(clock, 0.2, lambda _hang: forever.wait() and None, seconds_to_stay=0.2, end=codes.append):
        wait_until(lambda: bool(codes), "the end of a process whose storage hangs")
    forever.set()
    assert codes == [EXIT_HUNG]


def test_a_library_that_holds_the_interpreter_is_found_too() -> None:
    result = run_program(
        "import ctypes\n"
        "from nfnet_ray.training.measurement.clock import Clock\n"
        "from nfnet_ray.training.watchdog import Watchdog\n"
        "clock = Clock(); clock.enter('train')\n"
        "def stuck():\n"
        "    ctypes.PyDLL(None).sleep(50)\n"  # PyDLL does not release the interpreter's lock
        "with Watchdog(clock, 0.5, print, seconds_to_stay=0.1):\n"
        "    import time; time.sleep(0.2)\n"
        "    stuck()\n"
    )
    assert result.returncode == 1
    assert "in stuck" in result.stderr


def test_of_two_workers_both_tell_and_the_one_that_waits_says_so(tmp_path: Path) -> None:
    program = (
        "import os, sys, time, torch, torch.distributed as dist\n"
        "from nfnet_ray.training.measurement.clock import Clock\n"
        "from nfnet_ray.training.watchdog import Watchdog\n"
        "for rank in range(2):\n"
        "    if os.fork() == 0:\n"
        "        break\n"
        "else:\n"
        "    sys.exit(str([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)]))\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/meet', rank=rank, world_size=2)\n"
        "clock = Clock(); clock.enter('train')\n"
        "def tell(hang):\n"
        f"    open(f'{tmp_path}/{{rank}}.txt', 'w').write(f'{{hang.waits_for_others}} {{hang.stacks}}')\n"
        "def hang_here():\n"
        "    time.sleep(100)\n"
        "with Watchdog(clock, 1.0, tell, seconds_to_stay=4.0):\n"
        "    hang_here() if rank else dist.all_reduce(torch.zeros(1))\n"
    )
    ended = run_program(program).stderr
    assert ended.endswith(f"{[EXIT_HUNG, EXIT_HUNG]}\n")
    waiting, hanging = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert waiting.startswith("True ")
    assert "in all_reduce" in waiting
    assert hanging.startswith("False ")
    assert "in hang_here" in hanging
