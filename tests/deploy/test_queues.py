"""Kueue's queues and a job that waits in one, as the documentation has them made. Two seconds.

Kueue is not run here. What it refuses is taken from its webhooks (pkg/controller/jobs/rayjob and raycluster).
"""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

from tests.deploy.manifests import (
    KUBERNETES,
    REPOSITORY,
    Document,
    faults,
    pod_specs,
    quantity_bytes,
    rendered,
)
from tests.deploy.test_manifests import SITE, change

QUEUES = KUBERNETES / "queues"
LABEL = "kueue.x-k8s.io/queue-name"


@pytest.fixture(scope="module")
def queued_job(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """The job of jobs/study with components/queue in place of components/spot."""
    copied = tmp_path_factory.mktemp("queue") / "kubernetes"
    shutil.copytree(KUBERNETES, copied)
    file = copied / "jobs" / "study" / "kustomization.yaml"
    text = file.read_text()
    assert "components/spot" in text
    file.write_text(text.replace("components/spot", "components/queue"))
    [job] = rendered(file.parent)
    return job


def of_kind(kind: str) -> dict[str, Document]:
    return {found["metadata"]["name"]: found for found in rendered(QUEUES) if found["kind"] == kind}


def quota(queue: Document) -> dict[str, str]:
    [group] = queue["spec"]["resourceGroups"]
    [flavor] = group["flavors"]
    assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    return {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ClusterQueue", "spec.cohort", "nfnet-ray"),  # the name of v1beta1
        ("ClusterQueue", "metadata.namespace", "nfnet-ray"),
        ("ClusterQueue", "spec.preemption.reclaimWithinCohort", "Always"),
        ("ClusterQueue", "spec.resourceGroups.0.flavors.0.resources.0.nominalQuota", None),
        ("LocalQueue", "spec.clusterQueue", None),
        ("LocalQueue", "apiVersion", "kueue.x-k8s.io/v1beta1"),
        ("LocalQueue", "kind", "Queue"),
    ],
)
def test_a_broken_queue_is_found(kind: str, path: str, value: Any) -> None:
    queue = next(found for found in rendered(QUEUES) if found["kind"] == kind)
    assert faults(queue) == []
    change(queue, path, value)
    assert faults(queue)


def test_the_queues_refer_to_each_other_and_share_what_is_idle() -> None:
    cluster_queues, flavors = of_kind("ClusterQueue"), of_kind("ResourceFlavor")
    assert {queue["spec"]["clusterQueue"] for queue in of_kind("LocalQueue").values()} == set(cluster_queues)
    assert len({queue["spec"]["cohortName"] for queue in cluster_queues.values()}) == 1
    for queue in cluster_queues.values():
        assert queue["spec"]["preemption"]["reclaimWithinCohort"] == "Any"
        assert {
            flavor["name"] for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]
        } <= set(flavors)
        assert queue["spec"]["namespaceSelector"]["matchLabels"] == {
            "kubernetes.io/metadata.name": "nfnet-ray"
        }
    gpus = sum(int(quota(queue)["nvidia.com/gpu"]) for queue in cluster_queues.values())
    assert gpus == SITE["gpuWorkers"]["gpus"] * SITE["gpuWorkers"]["maxReplicas"]


def test_a_queued_job_is_one_that_kueue_and_kuberay_take(queued_job: Document) -> None:
    assert faults(queued_job) == []
    assert queued_job["metadata"]["labels"][LABEL] in of_kind("LocalQueue")
    spec = queued_job["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert "clusterSelector" not in spec
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in cluster
    [group] = cluster["workerGroupSpecs"]
    # What Kueue counts, and what KubeRay starts.
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 1
    assert group["groupName"] != "head"


def test_a_queued_job_fits_its_quota_and_asks_for_nothing_else(queued_job: Document) -> None:
    """Kueue never starts a job that asks for a resource without a quota."""
    has = quota(of_kind("ClusterQueue")[queued_job["metadata"]["labels"][LABEL]])
    wants = dict.fromkeys(has, 0)
    [group] = queued_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    for name, pod in pod_specs(queued_job):
        for container in pod["containers"]:
            assert container["resources"]["requests"].keys() <= has.keys()
            for resource, amount in container["resources"]["requests"].items():
                wants[resource] += quantity_bytes(str(amount)) * (1 if name == "head" else group["replicas"])
    assert all(wants[resource] <= quantity_bytes(amount) for resource, amount in has.items())
    assert wants["nvidia.com/gpu"] == int(has["nvidia.com/gpu"])


def test_the_documentation_says_how_a_job_is_queued() -> None:
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    assert "kubectl apply -k deploy/kubernetes/queues" in page
    assert re.search(r"`components/queue` in place of\s+`components/spot`", page)
    assert LABEL in page
