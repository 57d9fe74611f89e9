"""A driver whose Ray has gone ends in order where it can, and at once where it cannot. No Ray is started.

About 5 s, most of it for importing Ray. ``tests/e2e/test_ending.py`` kills the servers of a Ray.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from nfnet_ray.cluster import slots
from nfnet_ray.cluster.connection import lifeline
from nfnet_ray.cluster.connection.lifeline import Head, Look, Loss, loss_is_noticed, lost_server
from nfnet_ray.cluster.driver import _StopWhenAsked
from nfnet_ray.cluster.messages.notes import FinalReport
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from tests.deadlines import HANG_SECONDS, wait_until

TRIAL = "seed=0"
STUDY = Study("x", "?", Recipe(), {})


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "SECONDS_BETWEEN_LOOKS", 0.01)


class Driver:
    """What a lifeline tells a driver."""

    def __init__(self) -> None:
        self.why: list[str] = []
        self.ended = threading.Event()

    def watched(self, look: Look) -> Any:
        return loss_is_noticed(look, lambda: bool(self.why), self.why.append, self.ended.set)


def test_a_driver_that_ends_in_order_is_not_ended_again() -> None:
    driver = Driver()
    with driver.watched(lambda: Loss("the node has ended", blocks=False)):
        wait_until(lambda: bool(driver.why), "the reason")
    assert not driver.ended.wait(0.1)
    assert driver.why == ["the node has ended"]


def test_a_driver_whose_calls_to_ray_do_not_return_is_ended_at_once() -> None:
    driver = Driver()
    with driver.watched(lambda: Loss("the head has ended", blocks=True)):
        assert driver.ended.wait(HANG_SECONDS)
    assert driver.why == ["the head has ended"]


@pytest.mark.parametrize("who", ["this thread", "another one"])
def test_a_driver_that_cannot_end_in_order_is_ended(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Whoever has found out that Ray is gone; ``placement.py`` asks the head which nodes are up."""
    monkeypatch.setattr(lifeline, "SECONDS_TO_END_IN_ORDER", 0.1)
    driver = Driver()
    with driver.watched(lambda: Loss("gone", blocks=False) if who == "this thread" else None):
        if who == "another one":
            assert not driver.ended.wait(0.2)
            driver.why.append("gone")
        assert driver.ended.wait(HANG_SECONDS)
    assert driver.why == ["gone"]


def test_which_server_of_a_local_ray_has_ended_and_how() -> None:
    servers = {name: subprocess.Popen(["sleep", "1000"]) for name in ("raylet", "gcs_server")}
    try:
        assert lost_server(servers, "logs") is None
        servers["raylet"].kill()
        servers["raylet"].wait()
        loss = lost_server(servers, "logs")
        assert loss is not None
        assert not loss.blocks
        assert loss.why.startswith("Ray's node has ended (raylet, by SIGKILL); look into Ray's logs in logs")
        assert "dmesg" in loss.why
        servers["gcs_server"].send_signal(signal.SIGTERM)
        servers["gcs_server"].wait()
        loss = lost_server(servers, "logs")
        assert loss == Loss(
            "Ray's head has ended (gcs_server, by SIGTERM); look into Ray's logs in logs", blocks=True
        )
    finally:
        for process in servers.values():
            process.kill()
            process.wait()


def test_the_head_of_a_cluster_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "0.4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        head = Head("127.0.0.1", port)
        assert head.look() is None
    time.sleep(0.5)  # this process stands still, as one that was stopped
    assert head.look() is None  # it is away, for a moment
    with socket.create_server(("127.0.0.1", port)):
        assert head.look() is None
    wait_until(lambda: head.look() is not None, "the end of patience")
    loss = head.look()
    assert loss is not None
    assert loss.blocks
    assert f"127.0.0.1:{port}" in loss.why


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        yield Recorder(journal, STUDY.waiting_state(), lambda: None, print, threading.Event().set)


def test_nothing_is_asked_of_workers_whose_ray_has_gone(recorder: Recorder) -> None:
    recorder.mark_cut_off("the node has ended")
    nobody: Any = None  # fails if it is asked
    assert slots._followed(nobody, nobody, recorder) == FinalReport("stopped")
    stop = threading.Event()
    stop.set()
    assert _StopWhenAsked(stop, recorder, nobody).stop_all()
    assert recorder.lost == "the node has ended"


def test_a_trial_whose_worker_was_lost_with_its_ray_has_not_failed(recorder: Recorder) -> None:
    legs = Legs(STUDY, validation_images=100, recorder=recorder)
    assert legs.next() is not None
    legs.start(TRIAL)
    recorder.mark_cut_off("the node has ended")
    slots.record_end(TRIAL, FinalReport("failed", "its worker died"), legs, recorder)
    assert recorder.state.trials[TRIAL].state == "interrupted"
    recorder.close()
    recorder.end_trial(TRIAL, "failed", None)
    assert cast(str, recorder.state.trials[TRIAL].state) == "interrupted"
