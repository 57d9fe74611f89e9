"""The best network of a study, published in MLflow, has the accuracy of its run: by pyfunc and by pytorch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from nfnet_ray.data.files.dataset import check_dataset, open_dataset
from nfnet_ray.data.loading.loader import EvalLoader
from nfnet_ray.data.normalise import normalise
from nfnet_ray.models import create_model
from nfnet_ray.models.published import resolve
from nfnet_ray.study.study import TRIALS_FOLDER
from nfnet_ray.tracking.events import JOURNAL_FILE
from nfnet_ray.tracking.sink import MLflowSink
from nfnet_ray.tracking.spool import SPOOL_FILE, Spool
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
from studies.base_recipe import recipe_for
from studies.managing.commands import main
from studies.managing.publish_command import image_file
from tests.tracking.example_study import study_started, trial_events, write_journal

TRIAL = "agc_sweep-00"


def test_it_is_loaded_with_the_accuracy_of_its_run(
    tmp_path: Path, tracking_uri: str, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

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
        batch_size=32,
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

    directory = tmp_path / "runs" / "study"
    started = study_started({})
    started["study"]["recipe"] = recipe.to_values()
    started["study"]["data"] |= {"path": str(few_digits), "fingerprint": dataset.fingerprint}
    write_journal(directory, [started, *trial_events(TRIAL, 1.0, [accuracy])])
    CheckpointStore(directory / TRIALS_FOLDER / TRIAL / "checkpoints").save(
        {"model": network.state_dict(), "step": {}}, step=1, epoch=1, time=0.0, metric=accuracy
    )
    sink = MLflowSink(tracking_uri, Spool(directory / JOURNAL_FILE, directory / SPOOL_FILE))
    sink.start()
    assert sink.close(60) == 0

    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time it is there
        assert main(["publish", "study"]) == 0
    client = MlflowClient(tracking_uri)
    [version] = client.search_model_versions("name = 'nfnet_ray'")
    assert client.get_model_version_by_alias("nfnet_ray", "best").version == version.version
    assert version.tags["trial"] == TRIAL
    assert float(version.tags["validation_top1"]) == accuracy

    uri = "models:/nfnet_ray@best"
    classifier = mlflow.pyfunc.load_model(uri)
    files = []
    for batch in batches:
        for pixels in batch.images.numpy().astype(np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            files.append(file.getvalue())
    predicted = classifier.predict(pd.DataFrame({"image": files}))
    stored = [image_file(dataset, index) for index in range(len(dataset.validation))]
    assert classifier.predict(pd.DataFrame({"image": stored})).equals(predicted)
    assert float((predicted["index"].to_numpy() == labels.numpy()).mean()) == accuracy
    assert predicted["class"].tolist() == [dataset.class_names[index] for index in predicted["index"]]

    assert mlflow.models.get_model_info(uri).signature.inputs.to_dict()[0]["type"] == "binary"
    loaded = mlflow.pytorch.load_model(uri)
    with torch.no_grad():
        again = torch.cat([loaded(normalise(batch.images)) for batch in batches])
    assert torch.equal(again, logits)
