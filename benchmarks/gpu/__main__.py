"""Measures what a GPU does for this platform, and writes a csv: ``python -m benchmarks.gpu``. It takes six minutes.

Parts, in the order in which they run:

* ``roof``: the rates of a bf16 matrix product and of a copy within the device;
* ``correctness``: GPU against CPU in float64, bf16 against float32, NCCL, resuming to the bit, evaluation; while the
  forms of ``step`` compile;
* ``step``: the training step of NFNet-F0, ours and timm's, eager and compiled, in NCHW and NHWC, and of F1,
  EfficientNets and ResNet-50, eager: images per second and MFU;
* ``captured``: small networks, eager and with the whole step as one CUDA graph;
* ``cohort``: many trials of a small network as one program, against captured steps of single ones;
* ``observed``: augmentation, waiting, idling, and what the meter of memory and power says;
* ``convolutions``: each convolution of F0, forward and backward, in three forms;
* ``ratio``: NFNet-F1 and EfficientNet-B7, compiled, if time is left;
* ``cifar``: a study on CIFAR-10 in what time is left, with data given by ``--cifar``.

Each part is a process with a time limit of its own. One that hangs or fails costs itself alone: its rows are kept, and
another row says what happened. The exit code is 1 if there is such a row, or a check that does not hold. If few parts
are asked for and there is more time (``--seconds``) than their limits together, the limits grow.

Without a GPU, and with ``--small``, tiny networks are used. The numbers mean nothing; it shows that every part works.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path

import torch

from benchmarks.gpu.children import Child, Children, ready_path, wait_until_ready
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rows import COLUMNS, ERROR, OVER_ITS_LIMIT, SKIPPED, Recorder, Row, table, tidy, write_csv
from benchmarks.gpu.step import compiled_forms, large_compiled_forms, ratios
from nfnet_ray.cluster.connection.gpu_driver import gpu_problem
from nfnet_ray.command_line.arguments import above_zero
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "gpu.csv"
# Seconds; see Session.limit.
LIMITS = {
    "roof": 30.0,
    "correctness": 90.0,
    "step": 100.0,
    "captured": 40.0,
    "cohort": 40.0,
    "observed": 50.0,
    "convolutions": 60.0,
    "cifar": inf,
}
PARTS = ("roof", "correctness", "step", "captured", "cohort", "observed", "convolutions", "ratio", "cifar")
COMPILE_LIMIT = 150.0  # of NFNet-F0's forms, which compile together
FORM_LIMIT = 20.0  # of one compiled form, from its release on
LEAST_FOR_RATIO = 75.0  # less is not enough to compile F1 and B7
RELEASED_FORMS_TIME = 30.0  # what the compiled forms of the ratio are left
COMPILE_THREADS = "4"  # of each form: seven compile at once, on 16 cores
DEFAULT_SECONDS = 360.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; also that of its child processes."""
    parser = OneLineParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--part",
        type=parts,
        default=PARTS,
        metavar="A,B",
        help=f"the parts to run (default: all, {','.join(PARTS)})",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="csv to which rows are added (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=above_zero,
        default=DEFAULT_SECONDS,
        help="seconds for all parts (default: %(default)g); if that is more than their limits, the limits grow",
    )
    parser.add_argument(
        "--cifar", type=Path, help="folder with CIFAR-10 as Parquet files, for the part cifar"
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="tiny networks on a GPU, too: shows in a minute that every part works",
    )
    parser.add_argument("--commit", help="what the csv says of the version (default: git's, if there is one)")
    parser.add_argument("--log", type=Path, help="file for what the parts print (default: it is not kept)")
    for name in ("--child", "--rows"):  # the command line of a part's process
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--form", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        run_part(options)
        return 0
    try:
        return run(options)
    except UserError as error:
        parser.error(str(error))


def parts(text: str) -> tuple[str, ...]:
    """``roof,step`` as names, in the order in which parts run."""
    names = text.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is no part; there are {', '.join(PARTS)}")
    return tuple(name for name in PARTS if name in names)


# ---- The process of a part -------------------------------------------------------------------------------------------


def run_part(options: argparse.Namespace) -> None:
    """Measures one part in this process. ``options`` is also given what a part may ask for."""
    deadline = time.monotonic() + options.seconds
    rows = Path(options.rows)

    def wait_until_released() -> None:
        ready_path(rows).touch()
        sys.stdin.readline()

    options.seconds_left = lambda: deadline - time.monotonic()
    options.wait_until_released = wait_until_released
    machine = Machine(is_small=options.small)
    part = {"ratio": "step"}.get(options.child, options.child)
    recorder = Recorder(rows, options.child, machine)
    module = importlib.import_module(f"benchmarks.gpu.{part}")
    gc.freeze()  # each new network is preceded by a collection, which would go through all that was imported
    module.measure(recorder, machine, options)


# ---- The process that starts them ------------------------------------------------------------------------------------


class Session:
    """One run: its children, what is left of its time, and the rows so far, which it writes after each part."""

    def __init__(self, options: argparse.Namespace, children: Children, *, is_gpu: bool) -> None:
        self.rows: list[Row] = []
        self._is_gpu = is_gpu
        self._options, self._children = options, children
        self._commit = options.commit or commit_of(REPOSITORY)
        self._deadline = time.monotonic() + options.seconds
        self._stretch = max(1.0, options.seconds / all_limits(options.part))
        self._earlier = earlier_csv(options.results)

    @property
    def seconds_left(self) -> float:
        """Until the time limit of all."""
        return self._deadline - time.monotonic()

    def limit(self, seconds: float) -> float:
        """The time for what has this limit: more in proportion, if there is more than all limits together."""
        return seconds * self._stretch if self._is_gpu else inf  # a shared CPU may take any time

    def start(self, part: str, name: str, limit_seconds: float, *more: str) -> Child:
        """Starts a process of a part."""
        command = [sys.executable, "-m", "benchmarks.gpu", "--child", part, "--seconds", str(limit_seconds)]
        if self._options.small:
            command += ["--small"]
        if self._options.cifar:
            command += ["--cifar", str(self._options.cifar.resolve())]
        return self._children.start(part, name, [*command, *more])

    def run(self, part: str, reserve: float = 0.0) -> None:
        """Runs a part, but leaves ``reserve`` seconds of all."""
        limit = min(self.limit(LIMITS[part]), self.seconds_left - reserve)
        if limit <= 0:
            self.add(part, part, SKIPPED, "no time is left")
            return
        self.finish(self.start(part, part, limit), limit)

    def finish(self, child: Child, limit_seconds: float) -> None:
        """Waits for a child, and takes its rows."""
        start = time.monotonic()
        self.rows += child.finish(max(0.0, limit_seconds))
        self.write()
        print(f"{child.name}: {time.monotonic() - start:.0f} s", flush=True)
        if self._options.log:
            with self._options.log.open("a") as file:
                file.write(f"==== {child.name} ====\n{child.errors()}\n")

    def add(self, part: str, case: str, quantity: str, value: object) -> None:
        """A row that no part has measured."""
        self.rows.append({"part": part, "case": case, "quantity": quantity, "value": value, "unit": ""})
        self.write()

    def start_compiling(self, part: str, first: int, count: int) -> list[Child]:
        """Starts a process for each of these compiled forms, which waits until it is released."""
        return [
            self.start(part, f"{part}_form_{number}", self.seconds_left, "--form", str(number))
            for number in range(first, first + count)
        ]

    def run_compiled(self, compiling: Sequence[Child], limit_seconds: float) -> list[Child]:
        """Waits for what compiles, and lets those that are ready measure, one after the other.

        Those that are not ready would use device and cores meanwhile, so they are paused; returns them.
        """
        wait_until_ready(compiling, min(limit_seconds if self._is_gpu else inf, self.seconds_left))
        late = [child for child in compiling if not child.is_ready]
        for child in late:
            child.pause()
        for child in compiling:
            if child not in late:
                child.release()
                self.finish(child, min(self.limit(FORM_LIMIT), self.seconds_left))
        return late

    def write(self) -> None:
        """Writes the csv of all rows so far."""
        write_csv(self._options.results, self._earlier, tidy(self.rows, self._commit))


def run(options: argparse.Namespace) -> int:
    """Runs the parts, writes the csv, prints the table. Returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no child is left
    is_gpu = torch.cuda.is_available()
    if not is_gpu:
        why = gpu_problem(of_all=False) or "torch finds none"
        print(
            f"No GPU: {why}. What is measured are tiny networks on the CPU, which means nothing.", flush=True
        )
    is_small = options.small or not is_gpu
    wanted = options.part
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": COMPILE_THREADS,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        }
        with Children(Path(folder), environment) as children:
            session = Session(options, children, is_gpu=is_gpu)
            if "roof" in wanted:
                session.run("roof")
            forms = len(compiled_forms(is_small=is_small))
            compile_start = time.monotonic()
            compiling = session.start_compiling("step", 0, forms) if "step" in wanted else []
            late: list[Child] = []
            if "correctness" in wanted:
                session.run("correctness")
            if "step" in wanted:
                compiled_for = time.monotonic() - compile_start
                late = session.run_compiled(compiling, session.limit(COMPILE_LIMIT) - compiled_for)
                session.run("step")
            for part in ("captured", "cohort", "observed", "convolutions"):
                if part in wanted:
                    session.run(part)
            run_last_parts(session, wanted, late, forms, len(large_compiled_forms(is_small=is_small)))
            for case, ratio in ratios(session.rows):
                session.rows.append(
                    {
                        "part": "ratio",
                        "case": case,
                        "quantity": "best form of each",
                        "value": round(ratio, 3),
                        "unit": "",
                    }
                )
            session.write()
    print(table(session.rows), flush=True)
    return 1 if any(is_bad(row) for row in session.rows) else 0


def run_last_parts(
    session: Session, wanted: Sequence[str], late: Sequence[Child], first: int, count: int
) -> None:
    """The parts for what time is left: cifar trains while late forms, and those of the ratio, compile."""
    compiling = list(late)
    for child in late:
        child.resume()
    if "ratio" in wanted:
        if session.seconds_left >= LEAST_FOR_RATIO and not late:
            compiling += session.start_compiling("ratio", first, count)
        else:
            left = f"{session.seconds_left:.0f} of the {LEAST_FOR_RATIO:.0f} s that it takes are left"
            reason = f"{left}, and {len(late)} other forms are not compiled yet"
            session.add("ratio", "ratio", SKIPPED, reason)
    if "cifar" in wanted:
        session.run("cifar", reserve=RELEASED_FORMS_TIME if compiling else 0.0)
    for child in session.run_compiled(compiling, session.seconds_left - RELEASED_FORMS_TIME):
        session.finish(child, 0.0)


def all_limits(wanted: Sequence[str]) -> float:
    """The seconds that these parts take if each takes as long as it may; the last two take all that is left.

    >>> all_limits(["roof", "captured"]), all_limits(["roof", "cifar"])
    (70.0, inf)
    """
    seconds = sum(inf if part == "ratio" else LIMITS[part] for part in wanted)
    forms = len(compiled_forms(is_small=False))
    return seconds + (COMPILE_LIMIT + forms * FORM_LIMIT if "step" in wanted else 0.0)


def is_bad(row: Row) -> bool:
    """Whether a row says that something failed."""
    return row["quantity"] in (ERROR, OVER_ITS_LIMIT) or (
        row["quantity"] == "holds" and row["value"] != "yes"
    )


def earlier_csv(path: Path) -> str:
    """What the csv holds, "" if there is none. Raises UserError for a file with other columns."""
    earlier = path.read_text() if path.exists() else ""
    if earlier and earlier.partition("\n")[0] != ",".join(COLUMNS):
        raise UserError(
            f"{path}: has other columns than these rows; move it away, or choose another --results"
        )
    return earlier


def commit_of(repository: Path) -> str:
    """git's short hash of the version, "" where that cannot be told."""
    command = ["git", "-C", str(repository), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
