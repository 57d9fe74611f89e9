"""A training across hosts: each a network namespace with an address of its own and a Ray node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, why_not
from tests.cluster.machines import Machines
from tests.cluster.training import TrainingPlace, Undisturbed, differing

pytestmark = pytest.mark.slow

# The head believes in a death after about 15 s and not after a minute.
IMPATIENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.fixture
def hosts() -> Hosts:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    return Hosts("head", "a", "b")


def test_a_host_that_is_cut_off_dies_and_comes_back_costs_time_and_no_bit(
    hosts: Hosts, tmp_path: Path, few_digits: Path, undisturbed: Undisturbed
) -> None:
    gloo = {"GLOO_SOCKET_IFNAME": "eth0"}  # or else it offers the others its loopback address
    with hosts:
        machines = Machines(hosts.ip("head"), hosts.inside("head"), IMPATIENT)
        try:
            for name in ("a", "b"):
                machines.add(name, hosts.ip(name), hosts.inside(name), gloo)
            place = TrainingPlace(tmp_path, few_digits, machines.address, hosts.inside("head"))
            place.disturb(step_seconds=0.3)
            driver = place.start("--workers", "2", "--checkpoint-minutes", "0.03")
            driver.until_attempt(1, steps=8)
            hosts.cut_off("b")
            driver.until(lambda: "b" not in machines.ids(), "the death of the host that was cut off")
            machines.remove(machines["b"])
            hosts.join("b")
            machines.add("b", hosts.ip("b"), hosts.inside("b"), gloo)
            driver.until_attempt(2)
            place.disturb(step_seconds=0)
            assert driver.end() == 0, driver.printed
        finally:
            machines.close()
    assert [attempt["workers"] for attempt in place.attempts] == [2, 2]
    assert place.samples == undisturbed.samples
    assert differing(place.state["model"], undisturbed.weights) == []
    clock = place.state["clock"]
    assert clock["lost"] > 10  # a death is believed in no sooner
    first, last = place.events[0]["time"], place.events[-1]["time"]
    assert sum(clock[phase] for phase in clock if phase not in ("taken_at", "is_pause")) <= last - first
