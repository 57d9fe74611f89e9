"""A tracking server that disappears and returns has everything in the end, and shows it without a click.

Against a real MLflow server, which takes most of the 35 s.
"""

from __future__ import annotations

import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dashboards.compare import mlflow_server
from nfnet_ray.tracking.delivery import sink as sink_module
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool, TrackedStudy
from nfnet_ray.tracking.destination.uri_check import check_tracking_uri
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.runs.view import comparison_url
from tests.deadlines import HANG_SECONDS
from tests.tracking.chromium import page_after_scripts
from tests.tracking.example_study import agc_sweep, write_journal

pytestmark = pytest.mark.slow
PORT = 5731
EVENTS = agc_sweep()


def wait_for(sink: MLflowSink, words: str) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while words not in sink.status:
        assert time.monotonic() < deadline, f"still {sink.status!r}, not {words!r}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def delivered(
    empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, TrackedStudy]]:
    """A study whose server was there for the first half, then away, and then there again."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    database = f"sqlite:///{folder / 'mlflow.db'}"
    spool = Spool(folder / JOURNAL_FILE, folder / SPOOL_FILE)
    half = len(EVENTS) // 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sink_module, "_LONGEST_PAUSE_SECONDS", 1.0)
        write_journal(folder, EVENTS[:half])
        with mlflow_server(database, PORT) as url:
            if url != f"http://127.0.0.1:{PORT}":
                pytest.skip(f"port {PORT}, which this test needs, is in use")
            sink = MLflowSink(url, spool)
            sink.start()
            wait_for(sink, "up to date")
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{url}/health")
        write_journal(folder, EVENTS[half:])
        sink.wake()
        wait_for(sink, f"{len(EVENTS) - half} events waiting, server does not answer since")
        with mlflow_server(database, PORT) as url:
            check_tracking_uri(url)
            assert sink.close(60) == 0, sink.status
            yield url, spool.tracked


def test_everything_is_there_and_once(delivered: tuple[str, TrackedStudy]) -> None:
    url, tracked = delivered
    client = MlflowClient(tracking_uri=url)
    runs = client.search_runs([tracked.experiment_id], "tags.kind = 'trial' AND tags.study = 'agc_sweep'")
    assert sorted(run.data.tags["trial"] for run in runs) == [
        f"agc_sweep-{number:02}" for number in range(12)
    ]
    logged = [
        (run.data.tags["trial"], point.step, point.value)
        for run in runs
        for point in client.get_metric_history(run.info.run_id, "train_seconds")
    ]
    written = [
        (event["trial"], event["epoch"], pytest.approx(event["metrics"]["train_seconds"]))
        for event in EVENTS
        if event["event"] == "epoch"
    ]
    assert sorted(logged) == written


def test_the_view_opens_on_accuracy_against_training_time(
    delivered: tuple[str, TrackedStudy], tmp_path: Path
) -> None:
    url, tracked = delivered
    page = page_after_scripts(
        comparison_url(url, tracked.experiment_id, tracked.view_key), tmp_path, virtual_seconds=60
    )
    charts = page.partition("Accuracy against training time</div>")[2].partition("Last accuracy</div>")[0]
    assert re.findall(r'<text class="xtitle"[^>]*>([^<]*)', charts) == ["train_seconds"] * 2
    assert len(re.findall(r'<path class="js-line"[^>]* d="M', charts)) >= 12
    for batch_size in (64, 256):
        assert f"validation_top1 at batch_size {batch_size}" in charts
        drawn = rf">(clip [^<>]+, batch {batch_size}) \(validation_top1 at batch_size {batch_size}\)<"
        assert len(set(re.findall(drawn, charts))) == 6
    assert "12 matching runs" in re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))
    assert "clip 0.02, batch 64" in page
