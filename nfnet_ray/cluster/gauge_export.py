"""Exports a study's gauges through Ray, whose nodes give them to Prometheus with their own metrics.

Ray exports the gauges of this process to the agent of the node every few seconds, and then drops them. The agent keeps
a gauge for two of these intervals. So a gauge must be set again and again, and otherwise soon disappears from
Prometheus. Ray does not say whether anybody reads the metrics. Setting a gauge takes about 10 microseconds, and has no
effect without an agent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nfnet_ray.cluster.connection.ray_internals import metrics_interval_seconds
from nfnet_ray.study.live.gauges import GAUGES, Sample

if TYPE_CHECKING:
    from ray.util import metrics


@contextmanager
def gauges_are_exported(samples: Callable[[], Iterable[Sample]]) -> Generator[None]:
    """A context in which Ray's metrics have the gauges of ``samples()``. At its end they have the last values.

    ``samples`` is called in a thread. It needs a :func:`nfnet_ray.cluster.connection.session.ray_session`, whose end
    exports the last values.
    """
    known: dict[str, metrics.Gauge] = {}
    over = threading.Event()
    seconds = metrics_interval_seconds() / 2

    def watch() -> None:
        while not over.wait(seconds):
            _set(known, samples)

    thread = threading.Thread(target=watch, name="gauges", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _set(known, samples)


def _set(known: dict[str, metrics.Gauge], samples: Callable[[], Iterable[Sample]]) -> None:
    """Sets the current values. ``known`` are the gauges that have been registered with Ray."""
    from ray.util import metrics

    try:
        for name, labels, value in samples():
            if name not in known:
                known[name] = metrics.Gauge(name, GAUGES[name].meaning, GAUGES[name].labels)
            known[name].set(value, dict(labels))
    except RuntimeError:
        # Another thread has added an epoch to the state meanwhile. The other gauges are set the next time, and until
        # then the agent keeps their values.
        return
