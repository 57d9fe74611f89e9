"""Checkpoints in an object store: over the S3 protocol, to a server that speaks it on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from moto.server import ThreadedMotoServer
from pyarrow import fs

from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore, Kept
from tests.resume.campaign import STEPS, recipe_of
from tests.resume.test_checkpoints import StoppedContext, same, weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://key:secret@runs?{query}")
    filesystem.create_dir("runs")
    yield f"s3://key:secret@runs/{{}}?{query}"
    server.stop()


@pytest.mark.slow
def test_a_run_resumes_from_an_object_store(tiny_digits: object, bucket: str) -> None:
    recipe: Recipe = recipe_of(("sgd", "agc", "ema"), tiny_digits)  # type: ignore[arg-type]
    place = bucket.format("study/trial")
    whole = train(recipe, PlainContext(device=CPU, threads=1))
    assert train(recipe, StoppedContext(after=1.4, checkpoints=place)).state == "stopped"
    store = CheckpointStore(place)
    assert [entry.step for entry in store.entries()] == [STEPS + 2, STEPS]
    resumed = train(recipe, PlainContext(device=CPU, threads=1, checkpoints=place))
    assert same(weights(resumed), weights(whole))


@pytest.mark.slow
def test_what_holds_for_a_folder_holds_for_an_object_store(bucket: str) -> None:
    place = bucket.format("others")
    assert CheckpointStore(place).entries() == []
    assert CheckpointStore(place).place == "s3://runs/others"  # in messages, without the keys
    store = CheckpointStore(place, Kept(last=2, best=1))
    for step in (1, 2, 3, 4):
        state = {"step": step, "weights": torch.arange(2_000_000.0)}  # more than one part of an upload
        store.save(state, step=step, epoch=step, time=float(step), metric=1 / step)
    assert [entry.step for entry in store.entries()] == [4, 3, 1]
    filesystem, path = fs.FileSystem.from_uri(place)
    with filesystem.open_output_stream(f"{path}/{store.entries()[0].name}.pt") as file:
        file.write(b"cut short")
    entry = store.latest_sound()
    assert entry is not None
    assert entry.step == 3
    assert torch.equal(store.load(entry)["weights"], torch.arange(2_000_000.0))
    store.probe("probe-0", b"token")
    assert store.read_probe("probe-0") == b"token"
