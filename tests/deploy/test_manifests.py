"""Every manifest that can be applied is valid, and has what the documentation promises.

The first half holds the rendered manifests to the schemas and to the operator's rules, and shows that those find
what they are for: each broken manifest is one of ours with one thing changed. Takes about ten seconds.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import ray_constants

from data_prep.__main__ import _parser as data_prep_parser
from nfnet_ray.recipe import Recipe, parse_setting
from studies.agc_sweep import agc_sweep
from studies.running.flags import study_parser
from studies.running.program import StudyProgram
from tests.deploy.manifests import (
    APPLIED,
    JOBS,
    KUBERNETES,
    OVERLAYS,
    REPOSITORY,
    Document,
    faults,
    pod_specs,
    quantity_bytes,
    rendered,
)

SITE = yaml.safe_load((KUBERNETES / "site" / "site.yaml").read_text())["spec"]
NAMESPACE = "nfnet-ray"

each_kustomization = pytest.mark.parametrize(
    "folder", APPLIED, ids=lambda folder: f"{folder.parent.name}/{folder.name}"
)


def only(kind: str, folder: Path, name: str | None = None) -> Document:
    """The one document of a kind (and name) that a folder renders to, to be changed at will."""
    [found] = [
        document
        for document in rendered(folder)
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    return copy.deepcopy(found)


def ray_clusters() -> list[tuple[str, Document]]:
    """(where, spec) of every Ray cluster that is asked for, a job's own included."""
    specs = [(folder.name, only("RayCluster", folder)["spec"]) for folder in OVERLAYS]
    return specs + [(folder.name, only("RayJob", folder)["spec"]["rayClusterSpec"]) for folder in JOBS]


each_cluster = pytest.mark.parametrize(
    ("where", "spec"), ray_clusters(), ids=[where for where, _ in ray_clusters()]
)


# --- valid, and what the validators find ------------------------------------------------------------------------------


def test_all_of_them_are_looked_at() -> None:
    assert {folder.name for folder in OVERLAYS} >= {"pvc", "object-storage", "spot"}
    assert {folder.name for folder in JOBS} >= {"convert", "study"}


@each_kustomization
def test_what_is_applied_is_valid(folder: Path) -> None:
    documents = rendered(folder)
    assert [fault for document in documents for fault in faults(document)] == []
    assert {document["metadata"].get("namespace", NAMESPACE) for document in documents} == {NAMESPACE}
    assert "Site" not in {document["kind"] for document in documents}


def change(document: Document, path: str, value: Any) -> None:
    """Sets a field, or takes it away where the value is None; numbers in the path are places in a list."""
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    place: Any = document
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value


HEAD = "spec.headGroupSpec"
WORKERS = "spec.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        # the schema
        ("apiVersion", "ray.io/v1alpha1", "apiVersion: is ray.io/v1alpha1"),
        ("spec.rayVersions", "2.60.0", "rayVersions"),
        ("spec.headGroupSpec", None, "headGroupSpec.*required"),
        ("metadata.name", None, "name.*required"),
        (f"{WORKERS}.groupName", None, "groupName.*required"),
        (f"{WORKERS}.maxReplicas", "4", "maxReplicas.*integer"),
        (f"{WORKERS}.template.spec.container", [], "container'? was unexpected"),
        (f"{WORKERS}.template.spec.containers.0.name", None, "name.*required"),
        (f"{WORKERS}.template.spec.containers.0.volumeMount", [], "volumeMount'? was unexpected"),
        (f"{WORKERS}.template.spec.containers.0.resources.limit", {}, "limit'? was unexpected"),
        (f"{WORKERS}.template.spec.containers.0.resources.limits", {"cpu": "a lot"}, "resources.limits.cpu"),
        (f"{WORKERS}.template.spec.volumes.1.emptyDir.medum", "Memory", "medum'? was unexpected"),
        (f"{WORKERS}.template.spec.containers.0.lifecycle.preStop.exec.cmd", ["ls"], "cmd'? was unexpected"),
        ("spec.autoscalerOptions.version", "v3", "v3.*one of"),
        ("spec.authOptions.mode", "tokens", "tokens.*one of"),
        # the operator
        ("metadata.name", "Nfnet", "DNS-1035"),
        ("metadata.name", "n" * 54, "at most 53"),
        ("spec.rayVersion", "2.51.0", "needs 2.52.0"),
        ("spec.rayVersion", None, "needs 2.52.0"),
        (f"{HEAD}.template.spec.restartPolicy", "Always", "headGroupSpec.*Never"),
        (f"{WORKERS}.template.spec.restartPolicy", "OnFailure", "workerGroupSpecs.0.*Never"),
        (f"{HEAD}.resources", {"CPU": "0"}, "also in rayStartParams"),
        (f"{HEAD}.template.spec.containers", [], "no container"),
        (f"{HEAD}.rayStartParams.labels", "a=b", "group's labels"),
        (f"{WORKERS}.minReplicas", 5, "between 0 and maxReplicas"),
        (f"{WORKERS}.suspend", True, "not with the autoscaler"),
        ("spec.gcsFaultToleranceOptions.backend", "rocksdb", "feature gate"),
        (f"{HEAD}.rayStartParams.redis-password", "x", "belongs into gcsFaultToleranceOptions"),
        (
            f"{HEAD}.template.spec.containers.0.env.0.name",
            "REDIS_PASSWORD",
            "belongs into gcsFaultToleranceOptions",
        ),
        ("spec.networkPolicy", {}, "feature gate"),
    ],
)
def test_a_broken_cluster_is_found(path: str, value: Any, fault: str) -> None:
    cluster = only("RayCluster", OVERLAYS[0])
    change(cluster, path, value)
    found = faults(cluster)
    assert any(re.search(fault, text) for text in found), found


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("spec.entrypoints", "ls", "entrypoints'? was unexpected"),
        ("spec.backoffLimit", "five", "backoffLimit.*integer"),
        (
            "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.images",
            "x",
            "images'? was unexpected",
        ),
        ("spec.rayClusterSpec.rayVersion", "2.40.0", "needs 2.52.0"),
        ("spec.rayClusterSpec", None, "one of rayClusterSpec and clusterSelector"),
        ("spec.clusterSelector", {"ray.io/cluster": "nfnet-ray"}, "backoffLimit"),
        ("spec.submissionMode", "Sidecar", "submissionMode"),
        ("spec.submissionMode", "InteractiveMode", "backoffLimit"),
        ("spec.shutdownAfterJobFinishes", None, "needs shutdownAfterJobFinishes"),
        ("spec.activeDeadlineSeconds", 0, "above 0"),
        ("spec.deletionStrategy", {"onFailure": {"policy": "DeleteNone"}}, "feature gate"),
        ("metadata.name", "a" * 48, "at most 47"),
    ],
)
def test_a_broken_job_is_found(path: str, value: Any, fault: str) -> None:
    job = only("RayJob", JOBS[0])
    change(job, path, value)
    found = faults(job)
    assert any(re.search(fault, text) for text in found), found


@pytest.mark.parametrize(
    ("kind", "name", "path", "value", "fault"),
    [
        ("Deployment", "mlflow", "spec.template.spec.containers.0.arg", ["x"], "arg'? was unexpected"),
        ("Deployment", "mlflow", "spec.selector", None, "selector.*required"),
        (
            "Deployment",
            "mlflow",
            "spec.template.spec.containers.0.ports.0.containerPort",
            "http",
            "containerPort",
        ),
        ("StatefulSet", "postgres", "spec.volumeClaimTemplate", [], "volumeClaimTemplate'? was unexpected"),
        (
            "StatefulSet",
            "redis",
            "spec.template.spec.containers.0.env.0.valueFrom.secretRef",
            {},
            "secretRef'? was",
        ),
        (
            "PersistentVolumeClaim",
            "shared",
            "spec.accessMode",
            "ReadWriteMany",
            "accessMode'? was unexpected",
        ),
        ("NetworkPolicy", "postgres", "spec.podSelektor", {}, "podSelektor'? was unexpected"),
        ("Service", "mlflow", "spec.ports.0.port", None, "port.*required"),
        ("Service", "mlflow", "kind", "Servce", "find schema"),
    ],
)
def test_a_broken_part_of_the_platform_is_found(
    kind: str, name: str, path: str, value: Any, fault: str
) -> None:
    document = only(kind, OVERLAYS[0], name)
    change(document, path, value)
    found = faults(document)
    assert any(re.search(fault, text) for text in found), found


# --- what is promised -------------------------------------------------------------------------------------------------


@each_cluster
def test_a_head_without_gpu_and_workers_that_grow_on_demand(where: str, spec: Document) -> None:
    assert spec["rayVersion"] == version("ray")  # the locked one, which the image holds
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    autoscaler = spec["autoscalerOptions"][
        "securityContext"
    ]  # of the container that KubeRay adds to the head
    assert autoscaler == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "gpu" not in str(spec["headGroupSpec"]["template"]["spec"]["containers"])
    annotations = spec["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"  # drivers run there
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"convert": {"cpu"}, "spot": {"gpu", "spot"}, "study": {"gpu", "spot"}}.get(
        where, {"gpu"}
    )
    for name, group in groups.items():
        site = SITE[f"{name}Workers"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == site.get("gpus")
        assert limits["memory"] == site["memory"]
        assert group["maxReplicas"] == site.get("maxReplicas", site.get("replicas"))


@each_cluster
def test_pods_of_ray_have_room_for_shared_memory_and_leave_in_good_order(where: str, spec: Document) -> None:
    head, *workers = (pod for _, pod in pod_specs({"kind": "RayCluster", "spec": spec}))
    for pod in (head, *workers):
        [container] = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        shared_memory = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert shared_memory["medium"] == "Memory"
        # Ray's object store takes a part of memory, or 95% of this from ten gigabytes on; where less is, a slow disk.
        room, memory = map(
            quantity_bytes, (shared_memory["sizeLimit"], container["resources"]["limits"]["memory"])
        )
        wanted = ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * memory
        assert room >= wanted or 0.95 * room >= ray_constants.REQUIRE_SHM_SIZE_THRESHOLD
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"] == {"claimName": "shared"}
        assert {"name": "NFNET_RAY_HOME", "value": "/shared"} in container["env"]
        assert ("/data" in mounts) == (where == "object-storage")
        # Kubernetes counts it all: the hook, then what Ray waits after SIGTERM; the rest is for Ray's own end.
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        waits = environment.get(
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
        )
        seconds = float(environment.get("DRAIN_SECONDS", 0)) + float(waits) + 10
        assert pod.get("terminationGracePeriodSeconds", 30) >= seconds
    for pod in workers:
        [container] = pod["containers"]
        [script] = container["lifecycle"]["preStop"]["exec"]["command"]
        assert os.access(REPOSITORY / Path(script).relative_to("/opt/nfnet_ray"), os.X_OK)


def test_redis_is_moved_as_little_as_the_head_which_ends_with_it() -> None:
    head = only("RayCluster", OVERLAYS[0])["spec"]["headGroupSpec"]["template"]["metadata"]["annotations"]
    redis = only("StatefulSet", OVERLAYS[0], "redis")["spec"]["template"]["metadata"]["annotations"]
    assert redis == head


@pytest.mark.parametrize(("answer", "lives"), [(0, True), (1, True), (2, False)])
def test_a_database_that_recovers_from_a_crash_is_left_to_it(
    tmp_path: Path, answer: int, lives: bool
) -> None:
    """pg_isready says 1 of a server that is starting up, and 2 of one that does not answer."""
    [container] = only("StatefulSet", OVERLAYS[0], "postgres")["spec"]["template"]["spec"]["containers"]
    program = tmp_path / "pg_isready"
    program.write_text(f"#!/bin/sh\nexit {answer}\n")
    program.chmod(0o755)
    command = container["livenessProbe"]["exec"]["command"]
    done = subprocess.run(command, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False)
    assert (done.returncode == 0) == lives


def test_spot_workers_are_asked_for_on_spot_nodes_alone() -> None:
    spot = dict(pod_specs(only("RayCluster", KUBERNETES / "overlays" / "spot")))
    assert spot["spot"]["nodeSelector"] == SITE["spotWorkers"]["nodeSelector"]
    assert spot["spot"]["tolerations"] == SITE["spotWorkers"]["tolerations"]
    assert spot["gpu"]["nodeSelector"] == SITE["gpuWorkers"]["nodeSelector"] != spot["spot"]["nodeSelector"]
    assert spot["gpu"]["tolerations"] == SITE["gpuWorkers"]["tolerations"]
    assert "tolerations" not in spot["head"]


@each_kustomization
def test_pods_run_as_nobody_special_and_say_what_they_need(folder: Path) -> None:
    for document in rendered(folder):
        for name, pod in pod_specs(document):
            assert pod["securityContext"]["runAsNonRoot"], name
            assert pod["securityContext"]["runAsUser"] > 0
            for container in (*pod["containers"], *pod.get("initContainers", [])):
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert {"cpu", "memory"} <= set(container["resources"]["requests"])
                image = container["image"]
                assert image == SITE["image"] or re.fullmatch(
                    r"(redis|postgres):\d+\.\d+[.\d]*-bookworm", image
                )
                assert not re.search(":latest$|^[^:]*$", image)


@each_kustomization
def test_the_namespace_refuses_pods_with_which_a_job_could_take_a_node_and_none_of_ours(folder: Path) -> None:
    """The head's account may change the Ray cluster, and so what its pods are."""
    for document in rendered(folder):
        if document["kind"] == "Namespace":
            assert document["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
        for name, pod in pod_specs(document):
            assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}, name
            assert not any("hostPath" in volume for volume in pod.get("volumes", [])), name
            for container in (*pod["containers"], *pod.get("initContainers", [])):
                assert "privileged" not in container["securityContext"]
                assert not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_what_is_referred_to_is_there(folder: Path) -> None:
    """Accounts, claims, secrets, services and selectors; the documentation tells how to make the secret."""
    documents = rendered(folder)
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    assert not any(kind == "Secret" for kind, _ in names)
    secrets = set(re.findall(r"'secretKeyRef': {'key': '(\w+)', 'name': '([\w-]+)'}", str(documents)))
    guide = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    assert secrets == {("redis", "nfnet-ray-passwords"), ("postgres", "nfnet-ray-passwords")}
    for key, secret in secrets:
        assert re.search(rf"create secret generic {secret}(.|\n)*--from-literal={key}=", guide)
    labels = []
    for document in documents:
        for _, pod in pod_specs(document):
            assert ("ServiceAccount", pod["serviceAccountName"]) in names
            for volume in pod.get("volumes", []):
                if "persistentVolumeClaim" in volume:
                    assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
        if document["kind"] in ("Deployment", "StatefulSet"):
            assert (
                document["spec"]["selector"]["matchLabels"]
                == document["spec"]["template"]["metadata"]["labels"]
            )
            labels.append(document["spec"]["selector"]["matchLabels"])
    for document in documents:
        if document["kind"] == "Service":
            assert document["spec"]["selector"] in labels
    assert {("Service", host) for host in ("redis", "postgres", "mlflow")} <= names


def test_every_value_of_the_site_is_carried_to_where_it_belongs(tmp_path: Path) -> None:
    """Each is changed to one that stands nowhere else, and is found in what is applied."""
    for folder in (KUBERNETES, REPOSITORY / "dashboards" / "grafana"):
        shutil.copytree(folder, tmp_path / folder.relative_to(REPOSITORY))
    copied = tmp_path / KUBERNETES.relative_to(REPOSITORY)
    file = copied / "site" / "site.yaml"
    site = yaml.safe_load(file.read_text())
    marks: list[str] = []

    def marked(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: marked(value) for name, value in tree.items()}
        if isinstance(tree, list):
            return [marked(item) for item in tree]
        if isinstance(tree, bool):  # kustomize takes nothing else for one
            return not tree
        marks.append(f"{70_000 + len(marks)}")
        return int(marks[-1]) if isinstance(tree, int) else f"mark-{marks[-1]}"

    site["spec"] = marked(site["spec"])
    file.write_text(yaml.safe_dump(site))
    applied = str([rendered(copied / folder.relative_to(KUBERNETES)) for folder in APPLIED])
    assert len(marks) > 40
    assert [mark for mark in marks if mark not in applied] == []
    assert "'suspend': True" in applied  # the backup's, the only bool
    assert not [value for value in ("registry.example.com", "example-bucket") if value in applied]


@pytest.mark.parametrize("folder", JOBS, ids=lambda folder: folder.name)
def test_a_job_does_not_fail_because_nobody_can_read_its_output(folder: Path) -> None:
    job = only("RayJob", folder)["spec"]
    assert job["submissionMode"] == "HTTPMode"
    assert job["backoffLimit"] > 0


def entrypoint(folder: Path) -> list[str]:
    return shlex.split(only("RayJob", folder)["spec"]["entrypoint"])


def test_the_study_job_asks_for_a_study_that_resumes_when_it_is_retried() -> None:
    python, file, *flags = entrypoint(KUBERNETES / "jobs" / "study")
    options = study_parser(StudyProgram(agc_sweep), REPOSITORY / file).parse_args(flags)
    assert python == "python"
    assert (options.address, options.name, options.may_continue) == ("auto", "agc-sweep", True)
    recipe = Recipe().with_values(dict(parse_setting(text) for text in options.settings))
    _, workers = options.workers_per_trial
    assert recipe.batch_size % workers == 0
    assert options.tracking_uri == "http://mlflow:5000"
    # A trial fits a node of the site, and the trials that are asked for fit what the cluster may grow to.
    per_node = {"gpus": SITE["gpuWorkers"]["gpus"], "cpus": int(SITE["gpuWorkers"]["cpu"])}
    assert workers * options.gpus_per_worker <= per_node["gpus"]
    assert workers * options.cpus_per_worker <= per_node["cpus"]
    nodes = SITE["gpuWorkers"]["maxReplicas"] + SITE["spotWorkers"]["maxReplicas"]
    assert 1 <= options.trials_at_once <= nodes
    assert only("RayJob", KUBERNETES / "jobs" / "study")["spec"]["backoffLimit"] > 0


def test_the_conversion_resumes_when_it_is_retried_and_makes_what_the_study_reads() -> None:
    python, _, module, *arguments = entrypoint(KUBERNETES / "jobs" / "convert")
    assert (python, module) == ("python", "data_prep")
    options = data_prep_parser().parse_args(arguments)
    assert (options.address, options.resume) == ("auto", True)
    study = entrypoint(KUBERNETES / "jobs" / "study")
    assert Path("/shared") / study[study.index("--data") + 1] == options.out
