"""Data that several promises are tested with."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from data_prep.__main__ import main as data_prep

# Read when torch is imported, which is later. Several test processes share two cores, so a second thread of OpenMP in
# one would take the core that another one needs. A training sets its own number of threads; there a thread that waits
# for another one would spin for most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# For all processes that this one starts: those of pytest-xdist and of the tests.
STARTUP = str(Path(__file__).with_name("startup"))
if STARTUP not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [STARTUP, os.environ.get("PYTHONPATH")]))
collect_ignore = [STARTUP]  # a search for examples in docstrings would run it here


def pytest_collection_finish() -> None:
    """Every training collects garbage when it starts, and would each time look through all modules and tests.

    That took 0.4 s of a core for each training, a fifth of all CPU time of tests/quick and tests/training. What is
    tested in this process meets Python's own threshold.
    """
    gc.collect()
    gc.freeze()
    startup = sys.modules.get("sitecustomize")
    gc.set_threshold(*getattr(startup, "PYTHONS_OWN_THRESHOLD", gc.get_threshold()))


def pytest_unconfigure() -> None:
    """Libraries that count their objects say at the end of a process that these leak."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _rays_of_our_own() -> Iterator[None]:
    """Every Ray that a test starts writes its address file and its sessions into a folder of this run alone.

    So `--address auto` finds the tests' own cluster, and a Ray that somebody else runs on this machine is neither
    joined nor replaced in the address file. The path is short because Ray's sockets lie in it.
    """
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_shell() -> Iterator[None]:
    """What a person has set for studies of their own decides neither where tests look nor whom they tell."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "NFNET_RAY_HOME",
            "NFNET_RAY_NOTIFY",
            "MLFLOW_TRACKING_URI",
            "RAY_JOB_CONFIG_JSON_ENV_VAR",
        ):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_interrupt() -> None:
    """Background jobs of a shell ignore SIGINT, and those of nohup SIGHUP: so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 handwritten digits of 32 px as a data set: 240 to train with, 60 to validate."""
    folder = tmp_path_factory.mktemp("few_digits")
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:300], digits.target, strict=False)):
        (folder / "source" / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        image.resize((32, 32), Image.Resampling.BICUBIC).save(
            folder / "source" / str(label) / f"{number}.png"
        )
    assert data_prep(["convert", str(folder / "source"), str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with no run in it: creating one takes two seconds, copying one does not."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("")
    return path
