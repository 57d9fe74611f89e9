"""Images prepared in parallel, by threads here or by Ray's workers, and handed out in their order."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from data_prep.encode import EncodeSettings, StoredImage, prepare_image
from data_prep.sources import SourceImage, UnreadableImageError

# Images in flight per worker: enough that none waits while the writer catches up on a large one.
_IN_FLIGHT_PER_WORKER = 8
# Images per Ray task: at some 5 ms of work each, Ray's own millisecond per task does not show.
_IMAGES_PER_TASK = 16

Prepared = Callable[[], StoredImage]
"""Waits for the image and gives it; raises UnreadableImageError or OSError as loading and preparing it did."""


def in_threads(
    images: Iterator[SourceImage], encode: EncodeSettings, workers: int
) -> Generator[tuple[SourceImage, Prepared]]:
    """The images as they came, each with its result in the making; a bounded number at a time."""
    in_flight: deque[tuple[SourceImage, Prepared]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
    try:
        for image in images:
            in_flight.append((image, pool.submit(_prepare, encode, image).result))
            if len(in_flight) >= _IN_FLIGHT_PER_WORKER * workers:
                yield in_flight.popleft()
        while in_flight:
            yield in_flight.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def in_ray_tasks(
    images: Iterator[SourceImage], encode: EncodeSettings
) -> Generator[tuple[SourceImage, Prepared]]:
    """As :func:`in_threads`, in tasks on the Ray cluster that this process is connected to.

    Images that are files of their own, or members of a tar, are read in the task, so the workers need the
    source's folder under the same name. A worker that dies is replaced, and its images are done again.
    """
    from nfnet_ray.cluster.parallel_map import map_in_order

    for image, outcome in map_in_order(
        partial(_attempt, encode), images, items_per_task=_IMAGES_PER_TASK, describe=_name
    ):
        yield image, outcome.result


@dataclass(frozen=True)
class _Outcome:
    """A result, or why there is none: an exception about one image is not a failed task."""

    stored: StoredImage | None
    error: UnreadableImageError | OSError | None

    def result(self) -> StoredImage:
        if self.stored is None:
            assert self.error is not None
            raise self.error
        return self.stored


def _attempt(encode: EncodeSettings, image: SourceImage) -> _Outcome:
    try:
        return _Outcome(_prepare(encode, image), None)
    except UnreadableImageError as error:
        return _Outcome(None, error.with_traceback(None))
    except OSError as error:  # of this machine, which is one of several
        reason = f"{error.strerror or error}, on {platform.node()}"
        return _Outcome(None, OSError(error.errno, reason, error.filename))


def _prepare(encode: EncodeSettings, image: SourceImage) -> StoredImage:
    return prepare_image(image.load(), encode)


def _name(image: SourceImage) -> str:
    return image.name
