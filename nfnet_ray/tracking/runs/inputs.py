"""Represents the data set of a study as inputs and params of a run in MLflow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nfnet_ray.tracking.descriptions import DataDescription, Values

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

# mlflow/utils/validation.py, MAX_DATASET_DIGEST_SIZE.
_MOST_DIGEST_LETTERS = 36


def dataset_name(data: DataDescription, context: str) -> str:
    """Returns MLflow's name of the data used for ``context``: MLflow needs two names for one digest."""
    return f"{data['name']}_{context}"


def dataset_digest(data: DataDescription) -> str:
    """Returns the fingerprint, cut to the length that MLflow accepts."""
    return data["fingerprint"][:_MOST_DIGEST_LETTERS]


def dataset_inputs(data: DataDescription) -> list[DatasetInput]:
    """Returns two inputs: the images that a run trains with, and those that validate it.

    Logging them again changes nothing. Both have the same digest, the fingerprint of the study's data set.
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
    """Returns the params of a run that describe the data set."""
    return {f"data.{name}": value for name, value in data.items()}
