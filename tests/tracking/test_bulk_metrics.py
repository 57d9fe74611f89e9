"""Metrics that are written in bulk give the rows that MLflow itself writes."""

from __future__ import annotations

import math
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from nfnet_ray.tracking.destination.bulk_metrics import write_metrics_in_bulk

NUMBERS = (0.0, -0.5, 1 / 3, 1e300, math.nan, math.inf, -math.inf)


@pytest.fixture
def clients(empty_database: Path, tmp_path: Path) -> list[tuple[MlflowClient, Path, str]]:
    """(client, database, run), as MLflow writes and as we do."""
    found = []
    for name in ("mlflow", "bulk"):
        database = tmp_path / f"{name}.db"
        shutil.copy(empty_database, database)
        client = MlflowClient(f"sqlite:///{database}")
        found.append((client, database, client.create_run("0").info.run_id))
    assert write_metrics_in_bulk(found[1][0])
    return found


def rows(database: Path, table: str) -> list[tuple[object, ...]]:
    columns = "key, value, timestamp, step, is_nan"
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}").fetchall()


@pytest.mark.parametrize("seed", range(3))
def test_they_are_the_rows_of_mlflow(clients: list[tuple[MlflowClient, Path, str]], seed: int) -> None:
    """Steps in any order, the same point twice, in one call and in several, numbers that SQL does not have."""
    draw = random.Random(seed)
    batches = [
        [
            Metric(
                draw.choice("ab"),
                draw.choice(NUMBERS),
                1_000 + draw.randrange(3),
                draw.choice((0, 1, 1, 2, -3)),
            )
            for _ in range(draw.randrange(1, 20))
        ]
        for _ in range(12)
    ]
    for client, _, run in clients:
        for batch in batches:
            client.log_batch(run, metrics=batch)
    (_, by_mlflow, _), (_, in_bulk, _) = clients
    for table in ("metrics", "latest_metrics"):
        assert rows(in_bulk, table) == rows(by_mlflow, table)
    assert len(rows(in_bulk, "metrics")) > 20


def test_what_mlflow_refuses_is_refused(clients: list[tuple[MlflowClient, Path, str]]) -> None:
    codes = []
    for client, database, run in clients:
        said = []
        for name, run_id in (("a?", run), ("a", "0" * 32)):
            with pytest.raises(MlflowException) as error:
                client.log_batch(run_id, metrics=[Metric("fine", 1.0, 1, 1), Metric(name, 1.0, 1, 1)])
            said.append(error.value.error_code)
        client.delete_run(run)
        with pytest.raises(MlflowException) as error:
            client.log_batch(run, metrics=[Metric("a", 1.0, 1, 1)])
        codes.append([*said, error.value.error_code])
        assert rows(database, "metrics") == []
    assert codes[0] == codes[1]


def test_a_server_is_left_as_it_is() -> None:
    assert not write_metrics_in_bulk(MlflowClient("http://127.0.0.1:9"))


def test_the_store_of_another_version_is_left_as_it_is(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(f"sqlite:///{shutil.copy(empty_database, tmp_path)}")
    monkeypatch.setattr(mlflow, "__version__", "3.18.0")
    assert not write_metrics_in_bulk(client)
    monkeypatch.setattr(mlflow, "__version__", "3.17.9")
    assert write_metrics_in_bulk(client)
