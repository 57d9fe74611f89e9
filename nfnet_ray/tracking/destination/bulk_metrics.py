"""Writes metrics into MLflow's SQLite database at the speed of SQLite.

MLflow creates an ORM object for each metric, which takes many times as long as SQLite does
(``benchmarks/driver/tracking.py``). Here the store itself writes the rows of a call in two statements. Everything else,
such as the validation, the checks of the run, sessions and locks, is left to MLflow. The resulting rows are the same
(``tests/tracking/test_bulk_metrics.py``). This is only done for versions of MLflow with which it was tested; the store
of other versions is left unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

SEEN = (3, 17)
"""The major and minor version of MLflow that this was written against."""
# The attributes of a store that are used besides its tables (store/tracking/sqlalchemy_store.py).
_NEEDED = ("_log_metrics", "_get_run", "_check_run_is_active", "ManagedSessionMaker", "sanitize_metric_value")
# Tables of store/tracking/dbmodels/models.py, SqlMetric and SqlLatestMetric. Existing points are kept. The latest point
# is the one with the largest step, time and value, in this order.
_COLUMNS = "(run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)"
_INSERT = f"INSERT INTO metrics {_COLUMNS} ON CONFLICT DO NOTHING"
_UPSERT = f"""
INSERT INTO latest_metrics {_COLUMNS}
ON CONFLICT (key, run_uuid) DO UPDATE
SET value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan
WHERE (excluded.step, excluded.timestamp, excluded.value)
    > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)
"""


def write_metrics_in_bulk(client: MlflowClient) -> bool:
    """Makes a client's store write metrics in bulk if it is SQLite in this process; returns whether it is."""
    import mlflow

    if tuple(map(int, mlflow.__version__.split(".")[:2])) != SEEN:
        return False
    store: Any = getattr(getattr(client, "_tracking_client", None), "store", None)
    if getattr(store, "db_type", None) != "sqlite" or not all(hasattr(store, name) for name in _NEEDED):
        return False

    def log(run_id: str, metrics: Sequence[Metric]) -> None:
        if metrics:
            _log(store, run_id, metrics)

    store._log_metrics = log
    return True


def _log(store: Any, run_id: str, metrics: Sequence[Metric]) -> None:
    """Replaces ``SqlAlchemyStore._log_metrics``, without the validation, which ``log_batch`` has already done."""
    rows: list[tuple[Any, ...]] = []
    latest: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}
    for metric in metrics:
        is_nan, value = store.sanitize_metric_value(metric.value)
        order = (metric.step, metric.timestamp, value)
        row = (run_id, metric.key, value, metric.timestamp, metric.step, is_nan)
        rows.append(row)
        if metric.key not in latest or order > latest[metric.key][0]:
            latest[metric.key] = order, row
    with store.ManagedSessionMaker(read_only=False) as session:
        store._check_run_is_active(store._get_run(run_uuid=run_id, session=session))
        # Bypasses the ORM and the compiler of statements, which take longer than SQLite.
        connection = session.connection()
        connection.exec_driver_sql(_INSERT, rows)
        connection.exec_driver_sql(_UPSERT, [row for _, row in latest.values()])
