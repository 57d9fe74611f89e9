"""Results come in order, a bounded number is computed ahead, a worker may die. About 25 s: a Ray of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nfnet_ray.cluster.connection.parallel_map import map_in_order
from nfnet_ray.cluster.connection.session import ray_session
from nfnet_ray.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cores() -> Iterator[int]:
    with ray_session("local") as resources:
        yield int(resources.cpus)


def test_results_come_in_order_and_not_far_ahead(cores: int) -> None:
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for number in range(200):
            pulled += 1
            yield number

    def square(number: int) -> int:
        time.sleep(0.02 * (7 * number % 3))  # later ones are done sooner
        return number * number

    results = []
    for item, result in map_in_order(square, items(), items_per_task=4):
        results.append((item, result))
        assert pulled - len(results) <= 4 * 3 * cores
    assert results == [(number, number * number) for number in range(200)]


def test_an_item_that_kills_its_worker_again_and_again_is_named() -> None:
    def fatal(number: int) -> int:
        import os
        import signal

        if number == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    results = []
    with pytest.raises(UserError, match="item 4 to item 7: Ray's workers died on them 6 times"):
        results.extend(map_in_order(fatal, range(40), items_per_task=4, describe=lambda item: f"item {item}"))


def test_an_exception_of_the_function_arrives_as_it_was() -> None:
    def wrong(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    with pytest.raises(ValueError, match=r"^five$"):
        list(map_in_order(wrong, range(40), items_per_task=4))
