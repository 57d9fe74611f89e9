"""An event that the server always answers with an error holds nothing up; a server that is in trouble loses nothing.

Against real SQLite databases, with a client that answers as MLflow's does for HTTP 500. Takes about 10 s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from nfnet_ray.tracking.delivery import sink as sink_module
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import Undelivered
from nfnet_ray.tracking.delivery.writer import StudyWriter
from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.runs.files import RECIPE_FILE
from tests.deadlines import wait_until
from tests.tracking.example_study import agc_sweep, write_journal
from tests.tracking.test_sink import SECONDS, deliver, points, runs_of, spool_of

EVENTS: list[Event] = agc_sweep(clip_factors=(0.01, 0.02), batch_sizes=(256,), epochs=4)
FIRST, SECOND = "agc_sweep-00", "agc_sweep-01"
Fails = Callable[[Event], bool]


def http_500() -> MlflowException:
    """As mlflow/utils/rest_utils.py raises it."""
    return MlflowException(
        "API request to http://h:1/api/2.0/mlflow/runs/log-batch failed with exception HTTPConnectionPool(host='h', "
        "port=1): Max retries exceeded with url: /x (Caused by ResponseError('too many 500 error responses'))"
    )


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_PAUSE_SECONDS", "_LONGEST_PAUSE_SECONDS", "_PAUSE_WHILE_CLOSING_SECONDS"):
        monkeypatch.setattr(sink_module, name, 0.01)
    monkeypatch.setattr(sink_module, "_SECONDS_BETWEEN_DELIVERIES", 0.01)


class Server:
    """Answers with HTTP 500 to what ``fails``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: Fails = lambda _: False
        self.fails_to_store = False
        write, write_epochs, log_dict = StudyWriter.write, StudyWriter.write_epochs, MlflowClient.log_dict

        def checked_write(writer: StudyWriter, line: Any, run: str) -> None:
            if self.fails(line.event):
                raise http_500()
            write(writer, line, run)

        def checked_epochs(writer: StudyWriter, trial: str, events: Any) -> None:
            if any(map(self.fails, events)):
                raise http_500()
            write_epochs(writer, trial, events)

        def checked_log_dict(client: MlflowClient, *arguments: Any) -> None:
            if self.fails_to_store:
                raise http_500()
            log_dict(client, *arguments)

        monkeypatch.setattr(StudyWriter, "write", checked_write)
        monkeypatch.setattr(StudyWriter, "write_epochs", checked_epochs)
        monkeypatch.setattr(MlflowClient, "log_dict", checked_log_dict)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def is_epoch(event: Event, trial: str, epoch: int) -> bool:
    return event["event"] == "epoch" and (event["trial"], event["epoch"]) == (trial, epoch)


def test_an_event_that_always_fails_is_passed_over_named_and_delivered_later(
    tmp_path: Path, tracking_uri: str, server: Server
) -> None:
    server.fails = lambda event: is_epoch(event, FIRST, 2)
    write_journal(tmp_path, EVENTS)
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    wait_until(lambda: sink.status == "MLflow: up to date, 1 event refused", "the others")
    assert sink.close(SECONDS) == 1
    [(refusal, _), (missing, command)] = sink.last_words("RESUME")
    assert refusal == (
        f"MLflow refused 1 event, the last one epoch 2 of {FIRST}, with: server has trouble of its own (HTTP 500)"
    )
    assert "1 event could not be delivered" in missing
    assert command == "RESUME"
    run = runs_of(tracking_uri)[FIRST]
    assert [step for step, _ in points(tracking_uri, run, "validation_top1")] == [1, 3, 4]
    server.fails = lambda _: False
    deliver(tmp_path, tracking_uri)
    assert [step for step, _ in points(tracking_uri, run, "validation_top1")] == [1, 2, 3, 4]


def test_a_server_that_takes_nothing_is_waited_for(tmp_path: Path, tracking_uri: str, server: Server) -> None:
    """It answers to what only reads; its disk is full."""
    tries: list[Event] = []
    server.fails = lambda event: bool(tries.append(event) or True)
    write_journal(tmp_path, EVENTS)
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    wait_until(lambda: len(tries) > 200, "many attempts")
    assert sink.status.startswith(f"MLflow: {len(EVENTS)} events waiting, server has trouble of its own")
    assert spool_of(tmp_path).undelivered == Undelivered()
    server.fails = lambda _: False
    wait_until(lambda: sink.status == "MLflow: up to date", "the delivery")
    assert sink.close(SECONDS) == 0
    assert len(points(tracking_uri, runs_of(tracking_uri)[SECOND], "validation_top1")) == 4


def test_last_events_that_fail_do_not_hold_up_the_files(
    tmp_path: Path, tracking_uri: str, server: Server
) -> None:
    server.fails = lambda event: event["event"] == "study_ended"
    write_journal(tmp_path, EVENTS)
    (tmp_path / "report.html").write_text("a report")
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    sink.attach(tmp_path / "report.html")
    assert sink.close(SECONDS) == 1
    client = MlflowClient(tracking_uri=tracking_uri)
    assert "report.html" in {
        file.path for file in client.list_artifacts(runs_of(tracking_uri)["study"].info.run_id)
    }


def test_an_event_that_is_delivered_late_does_not_turn_back_what_its_run_says(
    tmp_path: Path, tracking_uri: str, server: Server
) -> None:
    server.fails = lambda event: event["event"] == "trial_started" and event["trial"] == FIRST
    write_journal(tmp_path, EVENTS)
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    assert sink.close(SECONDS) == 1
    assert "schedule.epochs" not in runs_of(tracking_uri)[FIRST].data.params
    server.fails = lambda _: False
    deliver(tmp_path, tracking_uri)
    run = runs_of(tracking_uri)[FIRST]
    assert run.data.params["schedule.epochs"] == "4"
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "finished")


def test_a_store_of_files_that_fails_holds_up_no_event(
    tmp_path: Path, tracking_uri: str, server: Server
) -> None:
    server.fails_to_store = True
    write_journal(tmp_path, EVENTS)
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    wait_until(lambda: sink.status == "MLflow: up to date", "the events")
    server.fails_to_store = False
    assert sink.close(SECONDS) == 0, sink.last_words("RESUME")
    client = MlflowClient(tracking_uri=tracking_uri)
    for name in (FIRST, SECOND):
        stored = client.list_artifacts(runs_of(tracking_uri)[name].info.run_id)
        assert RECIPE_FILE in {file.path for file in stored}


def test_a_held_run_that_fails_holds_up_no_other(tmp_path: Path, tracking_uri: str, server: Server) -> None:
    own = [event for event in EVENTS if event.get("trial") == FIRST]
    half = EVENTS.index(own[-1]) + 1
    write_journal(tmp_path, EVENTS[:half])
    deliver(tmp_path, tracking_uri)
    spool = spool_of(tmp_path)
    spool.acknowledge(spool.acknowledged_bytes, spool.tracked, Undelivered({FIRST: 0}))
    write_journal(tmp_path, EVENTS[half:])
    server.fails = lambda event: event in own[:-1]  # the last one is in the study's run, too
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    assert sink.close(SECONDS) == len(own)
    assert runs_of(tracking_uri)[SECOND].info.status == "FINISHED"
    server.fails = lambda _: False
    deliver(tmp_path, tracking_uri)
