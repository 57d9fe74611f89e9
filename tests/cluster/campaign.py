"""``kill -9`` at random moments, as often as wanted: ``python -m tests.cluster.campaign --kills 40``.

One training on two hosts (network namespaces; without root, two nodes of this machine) is disturbed again and
again, without waiting until it has come to itself: a worker, Ray Train's controller, the driver, which is then
told to --resume, and a raylet, whose host then comes back. What it has learnt at the end is compared, bit by bit,
with two plain processes that nobody disturbed. Not part of the test suite: 40 kills take half an hour and more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from data_prep.__main__ import main as data_prep
from tests.cluster.hosts import Hosts, why_not
from tests.cluster.machines import Machines
from tests.cluster.training import Driver, TrainingPlace, Undisturbed, descendants, differing, kill

VICTIMS = ("worker", "controller", "driver", "raylet")
LONGEST_PAUSE_SECONDS = 45.0  # long enough for a start, and for some steps
IMPATIENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}


class Campaign:
    """One training and its tormentor."""

    def __init__(self, place: TrainingPlace, machines: Machines, add: Callable[[str], object]) -> None:
        self._place, self._machines, self._add = place, machines, add
        self.driver: Driver = place.start("--workers", "2", "--checkpoint-minutes", "0.03")
        self.resumptions = 0

    def strike(self, victim: str) -> str:
        """Kills one; says what was seen of it."""
        if self.driver.process.poll() is not None:
            self.resume()
        if victim == "driver":
            self.driver.process.kill()
            self.driver.process.wait()
            self.resume()
            return "killed"
        if victim == "raylet":
            name = random.choice(("a", "b"))
            machine = self._machines[name]
            raylets = [
                pid for pid, title in descendants(machine.pid).items() if "/raylet" in title.split("\0")[0]
            ]
            with contextlib.suppress(ProcessLookupError):
                os.kill(min(raylets), signal.SIGKILL)
            time.sleep(2)
            self._machines.remove(machine)
            self._add(name)
            return f"killed on host {name}, which came back"
        title = {"worker": "ray::RayTrainWorker", "controller": "ray::TrainController"}[victim]
        below = [machine.pid for machine in self._machines.up]
        random.shuffle(below)
        for pid in below:
            with contextlib.suppress(ValueError, ProcessLookupError):
                kill(title, pid)
                return "killed"
        return "none was there"

    def resume(self) -> None:
        self.resumptions += 1
        self.driver = self._place.resume()

    def finish(self) -> None:
        """Lets it come to its end, going on as often as it says so."""
        self._place.disturb(step_seconds=0)
        for _ in range(5):
            if self.driver.end() == 0:
                return
            self.resume()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40, metavar="N")
    parser.add_argument("--victims", default=",".join(VICTIMS), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    victims = options.victims.split(",")
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    data = few_digits(folder)
    undisturbed = Undisturbed(folder, data)
    for file in folder.glob("samples-*.txt"):
        file.unlink()
    reason = why_not()
    print(
        f"{folder}: {options.kills} kills, on " + (f"one host: {reason}" if reason else "hosts of their own")
    )
    with contextlib.ExitStack() as stack:
        hosts = None if reason else stack.enter_context(Hosts("head", "a", "b"))
        inside = hosts.inside("head") if hosts else ()
        machines = Machines(hosts.ip("head") if hosts else "127.0.0.1", inside, IMPATIENT)
        stack.callback(machines.close)

        def add(name: str) -> None:
            if hosts:
                machines.add(name, hosts.ip(name), hosts.inside(name), {"GLOO_SOCKET_IFNAME": "eth0"})
            else:
                machines.add(name)

        add("a")
        add("b")
        place = TrainingPlace(folder, data, machines.address, inside)
        place.disturb(step_seconds=0.6 + options.kills / 6)  # so that it is not over before the last kill
        campaign = Campaign(place, machines, add)
        stack.callback(lambda: campaign.driver.process.kill())
        began = time.monotonic()
        for number in range(options.kills):
            time.sleep(random.uniform(1.0, LONGEST_PAUSE_SECONDS))
            victim = victims[number % len(victims)]
            said = campaign.strike(victim)
            print(
                f"{number + 1:3d}. at {time.monotonic() - began:5.0f} s, in attempt {len(place.attempts)}, after "
                f"step {max(place.samples, default=-1) + 1}: {victim} {said}",
                flush=True,
            )
        campaign.finish()
    different = differing(place.state["model"], undisturbed.weights)
    clock = {phase: round(seconds, 1) for phase, seconds in place.state["clock"].items() if seconds}
    print(
        f"{len(place.attempts)} attempts, {campaign.resumptions} resumptions, {place.trial.state}; clock: {clock}"
    )
    print(f"order of samples the same: {place.samples == undisturbed.samples}")
    print(f"tensors that differ from the undisturbed training: {different or 'none'}")
    return 1 if different or place.samples != undisturbed.samples else 0


def few_digits(folder: Path) -> Path:
    """300 handwritten digits of 32 px as a data set."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:300], digits.target, strict=False)):
        (folder / "source" / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32))
        image.save(folder / "source" / str(label) / f"{number}.png")
    assert data_prep(["convert", str(folder / "source"), str(folder / "out")]) == 0
    return folder / "out"


if __name__ == "__main__":
    sys.exit(main())
