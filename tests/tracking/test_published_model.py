"""The best network of a study, published in MLflow, has the accuracy of its run: by pyfunc, by pytorch and served."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from dashboards.study_results import load_study
from nfnet_ray.data.files.dataset import check_dataset, open_dataset
from nfnet_ray.data.loading.loader import EvalLoader
from nfnet_ray.data.normalise import normalise
from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.published import resolve
from nfnet_ray.study.study import TRIALS_FOLDER
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
from studies.base_recipe import recipe_for
from studies.managing.commands import main
from studies.managing.publish_command import image_file
from tests.deadlines import HANG_SECONDS, wait_until
from tests.ports import unused_port
from tests.tracking.example_study import study_started, trial_events, write_journal

TRIAL = "agc_sweep-00"
BATCH = 32


@dataclass(frozen=True)
class Published:
    """A study with an untrained network, which has been published.

    ``images`` are those of the validation, before they are normalised; ``logits`` are what the network says of them.
    """

    tracking_uri: str
    directory: Path
    data: Path
    images: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    accuracy: float

    @property
    def class_names(self) -> list[str]:
        return list(open_dataset(self.data).class_names)

    def files(self) -> list[bytes]:
        """The images as PNG."""
        found = []
        for pixels in self.images.numpy().astype(np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            found.append(file.getvalue())
        return found


@pytest.fixture(scope="module")
def published(empty_database: Path, few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    shutil.copy(empty_database, folder / "mlflow.db")
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    dataset = open_dataset(few_digits)
    recipe = recipe_for(check_dataset(few_digits), 1).with_values(
        {
            "model.overrides.width": [16, 16, 32, 32],
            "model.overrides.depth": [1, 1, 1, 1],
            "model.overrides.group_width": [8, 8, 16, 16],
        }
    )
    torch.manual_seed(0)
    network = create_model(recipe.model.name, 10, overrides=recipe.model.overrides.chosen()).eval()
    loader = EvalLoader(
        dataset.validation,
        resolve(recipe).data,
        batch_size=BATCH,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        threads=1,
    )
    batches = list(loader)
    with torch.no_grad():
        logits = torch.cat([network(normalise(batch.images)) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    accuracy = float((logits.argmax(1) == labels).double().mean())

    directory = folder / "runs" / "study"
    started = study_started({})
    started["study"]["recipe"] = recipe.to_values()
    started["study"]["data"] |= {"path": str(few_digits), "fingerprint": dataset.fingerprint}
    write_journal(directory, [started, *trial_events(TRIAL, 1.0, [accuracy])])
    CheckpointStore(directory / TRIALS_FOLDER / TRIAL / "checkpoints").save(
        {"model": network.state_dict(), "step": {}}, step=1, epoch=1, time=0.0, metric=accuracy
    )
    sink = MLflowSink(tracking_uri, Spool(directory / JOURNAL_FILE, directory / SPOOL_FILE))
    sink.start()
    assert sink.close(HANG_SECONDS) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _ in range(2):  # the second time it is there
            assert main(["publish", "study"]) == 0
    images = torch.cat([batch.images for batch in batches])
    return Published(tracking_uri, directory, few_digits, images, labels, logits, accuracy)


def test_it_is_loaded_with_the_accuracy_of_its_run(published: Published) -> None:
    import mlflow

    client = MlflowClient(published.tracking_uri)
    [version] = client.search_model_versions("name = 'nfnet_ray'")
    assert client.get_model_version_by_alias("nfnet_ray", "best").version == version.version
    assert version.tags["trial"] == TRIAL
    assert float(version.tags["validation_top1"]) == published.accuracy

    uri = "models:/nfnet_ray@best"
    mlflow.set_tracking_uri(published.tracking_uri)
    classifier = mlflow.pyfunc.load_model(uri)
    predicted = classifier.predict(pd.DataFrame({"image": published.files()}))
    dataset = open_dataset(published.data)
    stored = [image_file(dataset, index) for index in range(len(dataset.validation))]
    assert classifier.predict(pd.DataFrame({"image": stored})).equals(predicted)
    assert float((predicted["index"].to_numpy() == published.labels.numpy()).mean()) == published.accuracy
    assert predicted["class"].tolist() == [published.class_names[index] for index in predicted["index"]]

    assert mlflow.models.get_model_info(uri).signature.inputs.to_dict()[0]["type"] == "binary"
    loaded = mlflow.pytorch.load_model(uri)
    with torch.no_grad():
        again = torch.cat([loaded(normalise(images)) for images in published.images.split(BATCH)])
    assert torch.equal(again, published.logits)


def test_it_is_in_the_experiment_of_its_run_and_its_files_are_beside_the_database(
    published: Published,
) -> None:
    client = MlflowClient(published.tracking_uri)
    [version] = client.search_model_versions("name = 'nfnet_ray'")
    run = client.get_run(str(version.run_id))
    [model] = client.search_logged_models([run.info.experiment_id])
    assert model.source_run_id == run.info.run_id
    beside = published.directory.parents[1] / "mlartifacts" / "nfnet_ray"
    assert model.artifact_location.startswith(beside.as_uri())
    assert list(beside.rglob("MLmodel"))


def test_weights_that_are_kept_elsewhere_are_fetched(published: Published, tmp_path: Path) -> None:
    store = CheckpointStore(f"file://{tmp_path}")
    record = load_study(published.directory)
    own = record.load_model(TRIAL)
    record.study["checkpoints"] = store.place
    with pytest.raises(UserError, match="the checkpoint of any epoch of agc_sweep-00 is gone"):
        record.load_model(TRIAL)
    store.save({"model": own.state_dict(), "step": {}}, step=1, epoch=1, time=0.0, metric=0.5)
    fetched = record.load_model(TRIAL).state_dict()
    assert all(torch.equal(tensor, fetched[name]) for name, tensor in own.state_dict().items())


def test_an_experiments_name_need_not_be_a_models(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published.directory.parents[1])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Shared/vision: O'Brien")
    for _ in range(2):
        assert main(["publish", "study"]) == 0
    client = MlflowClient(published.tracking_uri)
    assert len(client.search_model_versions("name = 'Shared-vision-O-Brien'")) == 1


def test_a_server_that_is_away_is_one_line(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "runs" / "study"
    shutil.copytree(published.directory, directory)
    noted = json.loads((directory / SPOOL_FILE).read_text())
    noted = {name: value for name, value in noted.items() if name != "database"}
    server = f"http://127.0.0.1:{unused_port()}"
    (directory / SPOOL_FILE).write_text(json.dumps(noted | {"tracking_uri": server}))
    monkeypatch.chdir(tmp_path)
    assert main(["publish", "study"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"MLflow server {server} cannot be reached" in line


def test_a_run_that_was_deleted_is_one_line(
    published: Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(published.directory.parents[1])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    spool = Spool(published.directory / JOURNAL_FILE, published.directory / SPOOL_FILE)
    client = MlflowClient(published.tracking_uri)
    client.delete_run(spool.tracked.trial_run_ids[TRIAL])
    try:
        assert main(["publish", "study"]) == 2
    finally:
        client.restore_run(spool.tracked.trial_run_ids[TRIAL])
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot carry this out (" in line
    assert "active" in line


@pytest.mark.slow
def test_it_is_served_with_the_accuracy_of_its_run(published: Published, tmp_path: Path) -> None:
    """By ``mlflow models serve``, from images in base64, as its REST API takes them."""
    port = unused_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri=models:/nfnet_ray@best"]
    command += ["--env-manager=local", f"--port={port}"]
    # It starts uvicorn by its name, as in an environment that is activated.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"MLFLOW_TRACKING_URI": published.tracking_uri, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def is_up() -> bool:
        assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=HANG_SECONDS) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    try:
        wait_until(is_up, "the model's server")
        images = [[base64.b64encode(file).decode()] for file in published.files()]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_split": {"columns": ["image"], "data": images}}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=HANG_SECONDS) as answer:
            predicted = json.load(answer)["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(HANG_SECONDS)
    named = [published.class_names.index(row["class"]) for row in predicted]
    assert named == published.logits.argmax(1).tolist()
    assert float((torch.tensor(named) == published.labels).double().mean()) == published.accuracy
