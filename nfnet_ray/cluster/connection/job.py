"""Whether this program was submitted to a Ray cluster (``ray job submit``, KubeRay's RayJob), and as which job."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nfnet_ray.cluster.connection.ray_internals import JOB_CONFIG_VARIABLE, JOB_SUBMISSION_ID
from nfnet_ray.errors import UserError
from nfnet_ray.places import HOME_VARIABLE, resolved


def is_submitted() -> bool:
    """Whether this program was started by a cluster's job supervisor."""
    return bool(_job_config())


def forget_job() -> None:
    """Hides from Ray that this is a job, whose uploaded files a Ray on this machine would not have."""
    os.environ.pop(JOB_CONFIG_VARIABLE, None)


def submission_id() -> str | None:
    """The id under which this program was submitted (``raysubmit_…`` or what ``--submission-id`` said)."""
    return _job_config().get("metadata", {}).get(JOB_SUBMISSION_ID)


def home_folder() -> Path:
    """The folder to which relative paths of data and results are relative.

    ``$NFNET_RAY_HOME``, if it is set: on a cluster, the storage that all nodes share. Else the current folder; but if
    that is Ray's copy of an uploaded working directory, which Ray deletes when it needs the space, the user's home on
    the node where the program runs. Raises UserError if there is none.
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return resolved(Path(named), HOME_VARIABLE)
    uploaded = _job_config().get("runtime_env", {}).get("working_dir")
    try:
        return Path.home() if uploaded else Path.cwd()
    except (OSError, RuntimeError) as error:
        raise UserError(f"neither {HOME_VARIABLE} nor a current or home folder is there ({error})") from None


def from_home(path: Path) -> Path:
    """A path of data or results, of which a relative one starts at :func:`home_folder`; as short as it was given."""
    home = home_folder()
    return path if path.is_absolute() or home == Path.cwd() else home / path


def _job_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}")
    return config
