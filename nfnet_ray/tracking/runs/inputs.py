"""The data set of a study as inputs and params of a run in MLflow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nfnet_ray.tracking.descriptions import DataDescription, Values

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

# mlflow/utils/validation.py, MAX_DATASET_DIGEST_SIZE.
_MOST_DIGEST_LETTERS = 36


def dataset_name(data: DataDescription, context: str) -> str:
    """What MLflow calls the part of a data set that is used for ``context``: it needs two names for one digest."""
    return f"{data['name']}_{context}"


def dataset_digest(data: DataDescription) -> str:
    """The fingerprint, as far as MLflow takes it."""
    return data["fingerprint"][:_MOST_DIGEST_LETTERS]


def dataset_inputs(data: DataDescription) -> list[DatasetInput]:
    """Two inputs: the images that a run trains with, and those that validate it.

    To log them again changes nothing. The study's data set has one digest, its fingerprint.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    images = {"training": data["train_images"], "validation": data["validation_images"]}
    return [
        DatasetInput(
            Dataset(
                name=dataset_name(data, context),
                digest=dataset_digest(data),
                source_type="local",
                source=json.dumps({"uri": data["path"]}),
                profile=json.dumps({"images": number, "classes": data["classes"]}),
            ),
            [InputTag(MLFLOW_DATASET_CONTEXT, context)],
        )
        for context, number in images.items()
    ]


def data_params(data: DataDescription) -> Values:
    """The params of a run that describe the data set."""
    return {f"data.{name}": value for name, value in data.items()}
