"""A study from a script, through every real part: in another thread, then in the main thread. About 40 s."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import nfnet_ray
from tests.deadlines import HANG_SECONDS
from tests.e2e.workplace import REPOSITORY
from tests.preloaded import STUDY_MODULES, start_program

pytestmark = pytest.mark.slow

SCRIPT = """\
import json, os, signal, sys, threading
import nfnet_ray

recipe = nfnet_ray.Recipe().with_values(
    {"model.name": "my_net:build", "data.image_size": 32, "data.crop": "padded"}
    | {"batch_size": 16, "schedule.epochs": 1, "schedule.warmup_epochs": 0.0, "data.flip": False}
    | {"data.mixing.mixup_alpha": None, "data.mixing.cutmix_alpha": None, "data.randaugment.layers": 0}
    | {"optimizer.ema.decay": None, "optimizer.agc.clip_factor": None}
)
study = nfnet_ray.Study(
    "rates", "Which learning rate?", recipe, {"schedule.base_learning_rate": (0.1, 0.4)}
)

def in_a_thread():
    records.append(nfnet_ray.run(study, data=sys.argv[1], name="rates", trials=1))

records = []
before = signal.getsignal(signal.SIGTERM)
thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
one_at_a_time = {"cpus_per_worker": 1, "gpus_per_worker": 0, "trials_at_once": 1}
records.append(nfnet_ray.run(study, data=sys.argv[1], name="again", **one_at_a_time))
assert signal.getsignal(signal.SIGTERM) is before
assert os.listdir("runs/rates/networks") == os.listdir("runs/again/networks")
json.dump([record.trials["last_top1"].tolist() for record in records], open("top1.json", "w"))
"""

# A network of one's own, beside the script.
NETWORK = """\
from torch import nn
from my_layers import convolution

def build(num_classes):
    network = nn.Sequential(convolution(3, 8), convolution(8, 16), nn.Flatten())
    network.add_module("classifier", nn.Linear(16 * 7 * 7, num_classes))
    return network
"""
LAYERS = """\
from torch import nn

def convolution(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2), nn.ReLU())
"""


def test_a_script_runs_two_studies_one_after_the_other(tmp_path: Path, few_digits: Path) -> None:
    """Each starts and ends a Ray; the same trial has the same accuracy in both, and in what is loaded later.

    Their network is in two files beside the script, of which the studies keep copies.
    """
    (tmp_path / "my_net.py").write_text(NETWORK)
    (tmp_path / "my_layers.py").write_text(LAYERS)
    process = start_program(
        STUDY_MODULES,
        *("-c", SCRIPT, str(few_digits)),
        folder=tmp_path,
        environment=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    out, err = process.communicate(HANG_SECONDS)
    assert process.returncode == 0, out + err
    (first,), (again, other) = json.loads((tmp_path / "top1.json").read_text())
    assert 0 < first == again <= 1
    assert 0 < other <= 1
    record = nfnet_ray.load_study(tmp_path / "runs" / "again")
    assert record.state == "finished"
    assert record.trials["last_top1"].tolist() == [again, other]
    assert set(record.trials["state"]) == {"finished"}
    assert (tmp_path / "runs" / "rates" / "report.html").exists()
    assert "Best setting" in out
