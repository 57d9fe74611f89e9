"""A network as a logged model of MLflow with two flavours: pytorch, and pyfunc from the bytes of image files."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfnet_ray.tracking.destination.database import client_uri
from nfnet_ray.tracking.destination.experiment import DEFAULT_EXPERIMENT
from nfnet_ray.tracking.destination.server import (
    MLFLOW_ENVIRONMENT,
    cannot_carry_out,
    go_past_proxies_to_this_machine,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import Model

ALIAS = "best"


@dataclass(frozen=True)
class PublishedModel:
    """A network, and its description for MLflow.

    Attributes:
        network: a ``torch.nn.Module``.
        write_files: writes into a folder what the loader needs besides the network.
        loader: the module whose ``_load_pyfunc`` loads the network.
        column: the name of the input column, which contains the bytes of image files.
        example: an example of such bytes.
        requirements: the lines of a requirements file.
        metric: the name and value of the accuracy that the network's run reported.
        step: the epoch of this accuracy.
        data: the name and digest of the images of that accuracy.
        tags: the tags of the version, by which it is found again.
        code: files and packages that define the network's classes, besides nfnet_ray and ``requirements``.
    """

    network: Any
    write_files: Callable[[Path], None]
    loader: str
    column: str
    example: bytes
    requirements: Sequence[str]
    metric: tuple[str, float]
    step: int
    data: tuple[str, str]
    tags: Mapping[str, str]
    code: Sequence[Path] = ()


def model_name(experiment: str) -> str:
    """Returns the name of an experiment's registered model, in characters that MLflow accepts and can search for.

    >>> model_name("nfnet_ray.agc_sweep"), model_name("/Shared/vision: O'Brien")
    ('nfnet_ray.agc_sweep', 'Shared-vision-O-Brien')
    """
    # A slash and a colon are refused (mlflow/utils/validation.py, _validate_model_name), and quotes end a filter.
    return re.sub(r"[/:'\"`\\]+\s*", "-", experiment).strip(" -.") or DEFAULT_EXPERIMENT


def publish(tracking_uri: str, run_id: str, name: str, model: PublishedModel) -> tuple[str, bool]:
    """Logs a model with a run and registers it, unless a version with the same tags has been published before.

    The alias ``best`` moves to the model unless a version for the same data has a higher accuracy.

    Args:
        name: a name from :func:`model_name`.

    Returns:
        The version, and whether it has the alias.

    Raises:
        UserError: MLflow cannot be reached, or refuses.
    """
    os.environ.update(MLFLOW_ENVIRONMENT)
    go_past_proxies_to_this_machine(tracking_uri)
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        return _publish(tracking_uri, run_id, name, model)
    except (MlflowException, RequestException) as error:
        raise cannot_carry_out(tracking_uri, error) from error


def _publish(tracking_uri: str, run_id: str, name: str, model: PublishedModel) -> tuple[str, bool]:
    import mlflow
    from mlflow.models import Model

    # MLflow warns that pickled objects must be trusted, which docs/mlflow.md also says.
    for logger in ("mlflow.pytorch", "mlflow.utils.environment", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    uri = client_uri(tracking_uri)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    version = _published(client, name, model)
    if version is None:
        # Otherwise the model would belong to MLflow's experiment Default, whose files are in ./mlruns of its creator.
        mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
        info = Model.log(
            artifact_path=None, flavor=_Flavor, name=ALIAS, run_id=run_id, step=model.step, published=model
        )
        client.log_metric(
            run_id,
            f"published_{model.metric[0]}",
            model.metric[1],
            step=model.step,
            model_id=info.model_id,
            dataset_name=model.data[0],
            dataset_digest=model.data[1],
        )
        with contextlib.suppress(mlflow.MlflowException):  # the model already exists
            client.create_registered_model(name)
        tags = {**model.tags, "digest": model.data[1], model.metric[0]: repr(model.metric[1])}
        version = client.create_model_version(
            name, info.model_uri, run_id=run_id, tags=tags, model_id=info.model_id
        ).version
    is_best = _is_best(client, name, model)
    if is_best:
        client.set_registered_model_alias(name, ALIAS, version)
    return str(version), is_best


def _published(client: MlflowClient, name: str, model: PublishedModel) -> str | None:
    for version in client.search_model_versions(f"name = '{name}'"):
        if model.tags.items() <= version.tags.items():
            return str(version.version)
    return None


def _is_best(client: MlflowClient, name: str, model: PublishedModel) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        current = client.get_model_version_by_alias(name, ALIAS).tags
    except MlflowException:
        return True
    if current.get("digest") != model.data[1]:
        return True
    return float(current.get(model.metric[0], 0)) <= model.metric[1]


class _Flavor:
    """Has the interface that ``Model.log`` expects of a flavour's module."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, published: PublishedModel, **_: Any) -> None:
        import mlflow.pytorch
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema

        signature = ModelSignature(
            inputs=Schema([ColSpec(DataType.binary, published.column)]),
            outputs=Schema(
                [
                    ColSpec(DataType.string, "class"),
                    ColSpec(DataType.long, "index"),
                    ColSpec(DataType.double, "probability"),
                ]
            ),
        )
        mlflow.pytorch.save_model(
            published.network,
            path,
            mlflow_model=mlflow_model,
            signature=signature,
            input_example=pd.DataFrame({published.column: [published.example]}),
            pip_requirements=list(published.requirements),
            serialization_format="pickle",
            code_paths=[str(path) for path in published.code] or None,
        )
        published.write_files(Path(path) / "data")
        # pyfunc classifies image files, whereas pyfunc of the pytorch flavour would expect normalised tensors.
        mlflow_model.flavors["python_function"] |= {"loader_module": published.loader, "data": "data"}
        mlflow_model.save(str(Path(path) / "MLmodel"))
