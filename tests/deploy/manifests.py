"""Kubernetes manifests as they are applied, and all that can be known to be wrong with one without a cluster.

A document is rendered by kubectl's own kustomize. It is then held to a schema in which an unknown field is an
error: Kubernetes' own for its kinds (package kubernetes-validate), the CRDs' for KubeRay's, and for those of
Prometheus' operator and of Kueue one of what is used here of their APIs; and to what KubeRay's operator refuses
although the schema lets it pass.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from packaging.version import Version

Document = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
APPLIED = sorted(
    path.parent
    for pattern in ("overlays/*", "jobs/*", "monitoring", "queues")
    for path in KUBERNETES.glob(f"{pattern}/*zation.yaml")
)
MONITORING = KUBERNETES / "monitoring"
OVERLAYS = [path for path in APPLIED if path.parent.name == "overlays"]
JOBS = [path for path in APPLIED if path.parent.name == "jobs"]

# From one that was supported when KubeRay 1.7.0 came out to the newest that the package knows.
KUBERNETES_VERSIONS = ("1.34", "1.37")

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@functools.cache
def _rendered(folder: Path) -> str:
    installed = Path(sys.executable).with_name("kubectl")
    kubectl = str(installed) if installed.exists() else shutil.which("kubectl")
    assert kubectl, "no kubectl: it comes with the locked development packages on Linux, elsewhere install it"
    result = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rendered(folder: Path) -> list[Document]:
    """What ``kubectl apply -k folder`` sends."""
    # In C, where PyYAML was built with it: a tenth of the time.
    return list(yaml.load_all(_rendered(folder), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def quantity_bytes(text: str) -> int:
    """A quantity of Kubernetes in bytes: 4Gi."""
    [(number, unit)] = re.findall(r"^(\d+)([KMGT]i)?$", text)
    return int(number) * _UNITS.get(unit, 1)


def faults(document: Document) -> list[str]:
    """What is wrong with a document, as "where: what"; none if a cluster with KubeRay takes it."""
    if document["apiVersion"].startswith("ray.io/"):
        found = list(_schema_faults(document))
        return found or list(_operator_faults(document))  # the operator never sees what the schema refuses
    if document["apiVersion"].partition("/")[0] in ("monitoring.coreos.com", "kueue.x-k8s.io"):
        validator = jsonschema.Draft202012Validator(_OTHERS.get(document["kind"], False))
        return [f"{_path(error.absolute_path)}: {error.message}" for error in validator.iter_errors(document)]
    found = []
    for version in KUBERNETES_VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{_path(error.absolute_path)}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            found.append(error.message)
    return found


def pod_specs(document: Document) -> Iterator[tuple[str, Document]]:
    """(name, pod spec) of every kind of pod that a document asks for."""
    spec = document.get("spec", {})
    if document["kind"] in ("RayCluster", "RayJob"):
        cluster = spec.get("rayClusterSpec", spec)
        yield "head", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield group["groupName"], group["template"]["spec"]
    elif document["kind"] in ("Deployment", "StatefulSet"):
        yield document["metadata"]["name"], spec["template"]["spec"]
    elif document["kind"] == "CronJob":
        yield document["metadata"]["name"], spec["jobTemplate"]["spec"]["template"]["spec"]


# --- the CRDs' schemas ----------------------------------------------------------------------------------------------


@functools.cache
def _crd(kind: str) -> tuple[str, Document, jsonschema.Draft202012Validator]:
    file = REPOSITORY / "tests" / "fixtures" / "kuberay" / f"{kind.lower()}-v1.schema.json"
    crd = json.loads(file.read_text())
    schema = crd["schema"]
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("name", "namespace")}
        | {
            name: {"type": "object", "additionalProperties": {"type": "string"}}
            for name in ("labels", "annotations")
        },
        "required": ["name"],
    }
    strict = _strict(schema)
    strict["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return crd["apiVersion"], schema, jsonschema.Draft202012Validator(strict)


def _schema_faults(document: Document) -> Iterator[str]:
    try:
        api_version, schema, validator = _crd(document["kind"])
    except FileNotFoundError:
        yield f"kind: no schema of {document['kind']} is known"
        return
    if document["apiVersion"] != api_version:
        yield f"apiVersion: is {document['apiVersion']}, not {api_version}"
    for error in validator.iter_errors(_with_defaults(document, schema)):
        yield f"{_path(error.absolute_path)}: {error.message}"


def _strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema in which a field that is not named is an error."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: {name: _strict(field) for name, field in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("nullable", "format", "default", "description")
    }
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
        strict.pop("anyOf", None)
    if schema.get("nullable") and "type" in strict:
        strict["type"] = [*([strict["type"]] if isinstance(strict["type"], str) else strict["type"]), "null"]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


def _with_defaults(value: Any, schema: Document) -> Any:
    """The value as the API server completes it before it validates."""
    value = copy.copy(value)
    if isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            if name not in value and "default" in field:
                value[name] = field["default"]
            if name in value:
                value[name] = _with_defaults(value[name], field)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        value = [_with_defaults(item, schema["items"]) for item in value]
    return value


def _path(parts: Any) -> str:
    return ".".join(map(str, parts)) or "document"


# --- Prometheus' operator, Kueue -------------------------------------------------------------------------------------
# PodMonitor and PrometheusRule of monitoring.coreos.com/v1, and ResourceFlavor, ClusterQueue and LocalQueue of
# kueue.x-k8s.io/v1beta2, as their API references describe them.


def _object(required: str = "", **fields: Document) -> Document:
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


def _list(items: Document) -> Document:
    return {"type": "array", "items": items, "minItems": 1}


_TEXT: Document = {"type": "string", "minLength": 1}
_TEXTS: Document = {"type": "object", "additionalProperties": _TEXT}
_DURATION: Document = {"type": "string", "pattern": r"^\d+(ms|[smhdwy])$"}
_LABEL: Document = {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}
_SPECS: Document = {
    "PodMonitor": _object(
        "selector podMetricsEndpoints",
        selector=_object(matchLabels=_TEXTS),
        podMetricsEndpoints=_list(
            _object(
                "port",
                port=_TEXT,
                interval=_DURATION,
                relabelings=_list(_object(sourceLabels=_list(_LABEL), targetLabel=_LABEL)),
            )
        ),
    ),
    "PrometheusRule": _object(
        "groups",
        groups=_list(
            _object(
                "name rules",
                name=_TEXT,
                rules=_list(
                    _object(
                        "alert expr",
                        alert=_TEXT,
                        expr=_TEXT,
                        **{"for": _DURATION},
                        labels=_TEXTS,
                        annotations=_TEXTS,
                    )
                ),
            )
        ),
    ),
}
_NAME: Document = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
_QUANTITY: Document = {"type": "string", "pattern": r"^\d+([KMGT]i)?$"}


def _one_of(*values: str) -> Document:
    return {"enum": list(values)}


_CLUSTER_QUEUE = _object(
    # Without the namespaces no job of any is taken.
    "namespaceSelector resourceGroups",
    cohortName=_NAME,
    namespaceSelector=_object(matchLabels=_TEXTS),
    queueingStrategy=_one_of("StrictFIFO", "BestEffortFIFO"),
    preemption=_object(
        reclaimWithinCohort=_one_of("Never", "LowerPriority", "Any"),
        withinClusterQueue=_one_of("Never", "LowerPriority", "LowerOrNewerEqualPriority"),
    ),
    resourceGroups=_list(
        _object(
            "coveredResources flavors",
            coveredResources=_list(_TEXT),
            flavors=_list(
                _object(
                    "name resources",
                    name=_NAME,
                    resources=_list(_object("name nominalQuota", name=_TEXT, nominalQuota=_QUANTITY)),
                )
            ),
        )
    ),
)


def _of(group: str, kind: str, metadata: Document, **fields: Document) -> Document:
    return _object(
        " ".join(("apiVersion kind metadata", *fields)),
        apiVersion={"const": group},
        kind={"const": kind},
        metadata=metadata,
        **fields,
    )


_KUEUE = "kueue.x-k8s.io/v1beta2"
# ResourceFlavor and ClusterQueue belong to no namespace.
_OTHERS: dict[str, Document] = {
    kind: _of(
        "monitoring.coreos.com/v1",
        kind,
        _object("name namespace labels", name=_TEXT, namespace=_TEXT, labels=_TEXTS),
        spec=spec,
    )
    for kind, spec in _SPECS.items()
} | {
    "ResourceFlavor": _of(_KUEUE, "ResourceFlavor", _object("name", name=_NAME)),
    "ClusterQueue": _of(_KUEUE, "ClusterQueue", _object("name", name=_NAME), spec=_CLUSTER_QUEUE),
    "LocalQueue": _of(
        _KUEUE,
        "LocalQueue",
        _object("name namespace", name=_NAME, namespace=_NAME),
        spec=_object("clusterQueue", clusterQueue=_NAME),
    ),
}


# --- what the operator refuses --------------------------------------------------------------------------------------
# ray-operator/controllers/ray/utils/{validation,constant}.go of KubeRay 1.7

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = {"RayCluster": 53, "RayJob": 47}  # room for the suffixes of services, and of a job's cluster
_SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_BEHIND_FEATURE_GATES = ("networkPolicy", "tlsOptions", "historyServerOptions")
_TOKENS_SINCE = Version("2.52.0")
_RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}


def _operator_faults(document: Document) -> Iterator[str]:
    kind, name, spec = document["kind"], document["metadata"]["name"], document["spec"]
    if not _DNS_1035.fullmatch(name) or len(name) > _LONGEST_NAME[kind]:
        yield f"metadata.name: {name} is no DNS-1035 label of at most {_LONGEST_NAME[kind]} characters"
    if kind == "RayCluster":
        yield from _cluster_faults(spec, "spec")
    else:
        yield from _job_faults(spec)


def _job_faults(spec: Document) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    retries = spec.get("backoffLimit", 0)
    if mode not in _SUBMISSION_MODES:
        yield f"spec.submissionMode: {mode} is none of {', '.join(_SUBMISSION_MODES)}"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.ttlSecondsAfterFinished: needs shutdownAfterJobFinishes"
    if spec.get("suspend") and (not spec.get("shutdownAfterJobFinishes") or spec.get("clusterSelector")):
        yield "spec.suspend: needs shutdownAfterJobFinishes and a cluster of the job's own"
    if retries < 0 or (retries and (spec.get("clusterSelector") or mode == "InteractiveMode")):
        yield "spec.backoffLimit: only of a job with a cluster of its own that is not interactive"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"spec.{name}: must be above 0"
    if "deletionStrategy" in spec:
        yield "spec.deletionStrategy: is behind a feature gate"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec):
        yield "spec.submissionMode: a sidecar takes no submitterPodTemplate, submitterConfig or clusterSelector"
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "spec: one of rayClusterSpec and clusterSelector"
    if "rayClusterSpec" in spec:
        if spec["rayClusterSpec"].get("authOptions", {}).get("enableK8sTokenAuth"):
            yield "spec.rayClusterSpec.authOptions.enableK8sTokenAuth: not of a RayJob"
        yield from _cluster_faults(spec["rayClusterSpec"], "spec.rayClusterSpec")


def _cluster_faults(spec: Document, where: str) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    autoscaler = spec.get("autoscalerOptions", {})
    groups = [("headGroupSpec", head)]
    groups += [(f"workerGroupSpecs.{index}", group) for index, group in enumerate(workers)]
    for name, group in groups:
        parameters = group.get("rayStartParams", {})
        if group.get("resources") and _RESOURCE_PARAMETERS & set(parameters):
            yield f"{where}.{name}.resources: also in rayStartParams"
        if "labels" in parameters:
            yield f"{where}.{name}.rayStartParams.labels: belong into the group's labels"
        if not group["template"].get("spec", {}).get("containers"):
            yield f"{where}.{name}.template: has no container"
        elif spec.get("enableInTreeAutoscaling") and autoscaler.get("version") == "v2":
            policy = group["template"]["spec"].get("restartPolicy", "Never")
            if policy != "Never":
                yield f"{where}.{name}.template.spec.restartPolicy: Never or nothing with autoscaler v2"
    for name, group in groups[1:]:
        if not 0 <= group.get("minReplicas", 0) <= group.get("maxReplicas", 2**31):
            yield f"{where}.{name}.minReplicas: between 0 and maxReplicas"
        if group.get("suspend"):
            yield f"{where}.{name}.suspend: not with the autoscaler"
    if len({group["groupName"] for group in workers}) < len(workers):
        yield f"{where}.workerGroupSpecs: two groups of one name"
    if (
        spec.get("authOptions", {}).get("mode") == "token"
        and Version(spec.get("rayVersion", "0")) < _TOKENS_SINCE
    ):
        yield f"{where}.rayVersion: authOptions.mode token needs {_TOKENS_SINCE}"
    yield from (f"{where}.{name}: is behind a feature gate" for name in _BEHIND_FEATURE_GATES if name in spec)
    if "gcsFaultToleranceOptions" in spec:
        yield from _fault_tolerance_faults(spec["gcsFaultToleranceOptions"], head, where)


def _fault_tolerance_faults(options: Document, head: Document, where: str) -> Iterator[str]:
    if options.get("backend", "redis") != "redis" or "storage" in options:
        yield f"{where}.gcsFaultToleranceOptions.backend: rocksdb is behind a feature gate"
    containers = head["template"].get("spec", {}).get("containers") or [{}]
    environment = {variable["name"] for variable in containers[0].get("env", [])}
    twice = {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & environment
    twice |= {"redis-password", "redis-username"} & set(head.get("rayStartParams", {}))
    for name in sorted(twice):
        yield f"{where}.headGroupSpec: {name} belongs into gcsFaultToleranceOptions"
