"""Hands a study's gauges to Ray, whose nodes give them to Prometheus with their own metrics.

Ray exports a gauge of this process to the node's agent every few seconds and then forgets it; the agent keeps it for
two of those intervals. So what is no longer set is gone from Prometheus soon, and what is to stay has to be set anew.
Ray does not say whether anybody asks for the metrics; to set one takes some 10 microseconds, and without an agent it
leads nowhere.
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
    """While this lasts, Ray's metrics have what ``samples()`` returns; at the end they have it as it is then.

    ``samples`` is called in a thread. Needs a :func:`nfnet_ray.cluster.connection.session.ray_session`, whose end hands
    over what was set last.
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
    """Sets what there is now; ``known`` are the gauges that Ray has been told of."""
    from ray.util import metrics

    try:
        for name, labels, value in samples():
            if name not in known:
                known[name] = metrics.Gauge(name, GAUGES[name].meaning, GAUGES[name].labels)
            known[name].set(value, dict(labels))
    except RuntimeError:
        # Another thread has added an epoch to the state meanwhile. The rest is set the next time; the agent keeps what
        # it has until then.
        return
