"""Who may connect to what by the network policies of the manifests. Two seconds.

No cluster is there to enforce them: :func:`may_connect` reads them by the rules of Kubernetes' reference, and the pods
have the labels that their manifests, KubeRay 1.7 and Prometheus' operator give them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.deploy.manifests import KUBERNETES, REPOSITORY, Document, rendered

OVERLAY = KUBERNETES / "overlays" / "pvc"
POLICIES = [document for document in rendered(OVERLAY) if document["kind"] == "NetworkPolicy"]
EVERY_PORT = (5000, 5432, 6379, 8080, 8265, 10001, 10002, 52365)


@dataclass(frozen=True)
class Pod:
    """What policies see of a pod; its namespace has the label with its name that Kubernetes gives to each."""

    labels: dict[str, str]
    namespace: str = "nfnet-ray"
    namespace_labels: dict[str, str] = field(default_factory=dict)


def ray_pod(node_type: str, cluster: str = "nfnet-ray") -> Pod:
    """The labels of ray-operator/controllers/ray/common/pod.go of KubeRay 1.7 that are of use here."""
    return Pod({"ray.io/is-ray-node": "yes", "ray.io/node-type": node_type, "ray.io/cluster": cluster})


def of_the_platform(name: str) -> Pod:
    [spec] = [
        document["spec"]
        for document in rendered(OVERLAY)
        if document["kind"] in ("Deployment", "StatefulSet", "CronJob")
        and document["metadata"]["name"] == name
    ]
    return Pod(spec.get("jobTemplate", {}).get("spec", spec)["template"]["metadata"]["labels"])


PODS = {
    "head": ray_pod("head"),
    "worker": ray_pod("worker"),
    "head of a RayJob": ray_pod("head", "agc-sweep-x7k2p"),
    "redis cleanup": ray_pod("redis-cleanup"),
    "redis": of_the_platform("redis"),
    "postgres": of_the_platform("postgres"),
    "mlflow": of_the_platform("mlflow"),
    "backup": of_the_platform("mlflow-backup"),
    # As the Helm chart and as KubeRay's own kustomization label it, wherever it was installed.
    "operator": Pod(
        {
            "app.kubernetes.io/name": "kuberay-operator",
            "app.kubernetes.io/component": "kuberay-operator",
        },
        "kuberay",
    ),
    "operator by kustomize": Pod(
        {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}, "ray-system"
    ),
    "submitter": Pod({"ray.io/originated-from-crd": "RayJob", "ray.io/originated-from-cr-name": "mine"}),
    "prometheus": Pod({"app.kubernetes.io/name": "prometheus"}, "monitoring"),
    "notebook": Pod({"app": "notebook"}, "notebooks", {"nfnet-ray/clients": "true"}),
    "stranger": Pod({"app": "shop"}, "default"),
    "stranger in the namespace": Pod({"app": "debug"}),
}


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def may_connect(source: str, target: str, port: int) -> bool:
    """Whether the policies let one pod open a connection to a port of another: both its end and the other's decide."""
    return _is_let("Egress", PODS[source], PODS[target], port) and _is_let(
        "Ingress", PODS[target], PODS[source], port
    )


def _is_let(direction: str, pod: Pod, peer: Pod, port: int) -> bool:
    rules_of = [
        policy["spec"].get(direction.lower(), [])
        for policy in POLICIES
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    peers = "from" if direction == "Ingress" else "to"
    return not rules_of or any(
        (peers not in rule or any(_is_peer(entry, peer) for entry in rule[peers]))
        and ("ports" not in rule or any(entry["port"] == port for entry in rule["ports"]))
        for rules in rules_of
        for rule in rules
    )


def _is_peer(entry: Document, pod: Pod) -> bool:
    """Without a selector for namespaces, pods of the policy's own are meant."""
    assert entry.keys() <= {"namespaceSelector", "podSelector"}
    in_namespace = (
        selects(entry["namespaceSelector"], pod.namespace_labels)
        if "namespaceSelector" in entry
        else pod.namespace == "nfnet-ray"
    )
    return in_namespace and selects(entry.get("podSelector", {}), pod.labels)


# {pod: {who may connect: to which ports}}
RAY = ("head", "worker", "head of a RayJob", "redis cleanup")
EVERYTHING: dict[str, tuple[int, ...]] = dict.fromkeys(RAY, EVERY_PORT)
HEAD = EVERYTHING | {
    "operator": (8265,),
    "operator by kustomize": (8265,),
    "submitter": (8265,),
    "prometheus": (8080,),
    "notebook": (8265, 10001),
}
ALLOWED: dict[str, dict[str, tuple[int, ...]]] = {
    "head": HEAD,
    "head of a RayJob": HEAD,
    "worker": EVERYTHING | {"prometheus": (8080,)},
    "mlflow": dict.fromkeys((*RAY, "notebook"), (5000,)),
    "redis": dict.fromkeys(("head", "head of a RayJob", "redis cleanup"), (6379,)),
    "postgres": dict.fromkeys(("mlflow", "backup"), (5432,)),
}


@pytest.mark.parametrize("target", ALLOWED)
def test_a_pod_can_be_reached_by_those_who_need_it_and_by_nobody_else(target: str) -> None:
    found = {
        source: ports
        for source in PODS
        if source != target
        and (ports := tuple(port for port in EVERY_PORT if may_connect(source, target, port)))
    }
    assert found == {source: ports for source, ports in ALLOWED[target].items() if source != target}


@pytest.mark.parametrize("source", ["redis", "postgres"])
def test_the_databases_call_nobody(source: str) -> None:
    assert not [(target, port) for target in PODS for port in EVERY_PORT if may_connect(source, target, port)]


def test_what_ray_has_to_reach_outside_is_not_cut_off() -> None:
    """The API server (the autoscaler), buckets, webhooks and name servers have addresses that only the site knows."""
    restricted = [policy for policy in POLICIES if "Egress" in policy["spec"]["policyTypes"]]
    assert {policy["metadata"]["name"] for policy in restricted} == {"redis", "postgres"}


def test_the_ports_are_those_of_the_pods_and_the_services() -> None:
    """A policy is asked for the port of the pod, not for that of the service."""
    named: dict[str, Any] = {}
    for document in rendered(OVERLAY):
        for container in re.findall(r"'containerPort': (\d+), 'name': '(\w+)'", str(document)):
            named[container[1]] = int(container[0])
    allowed = {
        entry["port"]
        for policy in POLICIES
        for rule in policy["spec"].get("ingress", [])
        for entry in rule.get("ports", [])
    }
    assert allowed == {
        named[name] for name in ("http", "postgres", "redis", "metrics", "dashboard", "client")
    }


def test_the_documentation_names_the_label_and_every_policy() -> None:
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    [label] = {
        f"{key}={value}"
        for key, value in re.findall(
            r"'namespaceSelector': {'matchLabels': {'([\w/-]+)': '(\w+)'}}", str(POLICIES)
        )
    }
    assert f"kubectl label namespace NAME {label}" in page
    assert [
        policy["metadata"]["name"] for policy in POLICIES if f"`{policy['metadata']['name']}`" not in page
    ] == []
