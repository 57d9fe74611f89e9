"""Pods without Kubernetes: containers of the rendered manifests, each a chroot into the image in namespaces of its own.

A container gets the mounts, the environment, the user and the rights that its manifest says, and its own network,
process and mount namespaces; what is missing of Kubernetes is the scheduler, limits of memory and cores, seccomp, and
the autoscaler's container, which talks to the API server. ``ray_pod`` adds what KubeRay's operator adds to a Ray pod.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Hosts
from tests.deadlines import HANG_SECONDS
from tests.deploy.manifests import Document, quantity_bytes

SERVICES_DOMAIN = "nfnet-ray.svc.cluster.local"
# Mounts, then the container's own process as the first of its process namespace, as the user that the manifest names.
_START = """
set -eu
root=$1; name=$2; shift 2
mount --make-rprivate /
hostname "$name"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount --bind /sys "$root/sys"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    case "$1" in
        memory) mount -t tmpfs -o "mode=1777,size=$3" tmpfs "$root$2" ;;
        *) mount --bind "$1" "$root$2" ;;
    esac
    shift 3
done
shift
exec chroot "$root" "$@"
"""


def ray_pod(cluster: Document, group: Document | None = None) -> Document:
    """The pod that KubeRay makes of a group of workers, or of the head (controllers/ray/common/pod.go of KubeRay 1.7).

    ``cluster`` is the rendered RayCluster. Left out is the container of the autoscaler.
    """
    name, spec = cluster["metadata"]["name"], cluster["spec"]
    head = group is None
    template = copy.deepcopy((spec["headGroupSpec"] if group is None else group)["template"]["spec"])
    container = template["containers"][0]
    parameters = dict((spec["headGroupSpec"] if group is None else group).get("rayStartParams", {}))
    service = f"{name}-head-svc.{SERVICES_DOMAIN}"
    environment = container.setdefault("env", [])

    def add(**variables: str) -> None:
        environment.extend({"name": key, "value": value} for key, value in variables.items())

    secret = {"secretKeyRef": {"name": name, "key": "auth_token"}}
    add(RAY_AUTH_MODE=spec["authOptions"]["mode"])
    environment.append({"name": "RAY_AUTH_TOKEN", "valueFrom": secret})
    options = spec["gcsFaultToleranceOptions"]
    if head:
        parameters |= {"dashboard-host": "0.0.0.0", "no-monitor": "true", "redis-password": "$REDIS_PASSWORD"}
        add(
            RAY_external_storage_namespace="00000000-uid-of-the-cluster",
            RAY_REDIS_ADDRESS=options["redisAddress"],
        )
        environment.append({"name": "REDIS_PASSWORD", **options["redisPassword"]})
        add(RAY_enable_autoscaler_v2="true", RAY_ADDRESS="127.0.0.1:6379")
    else:
        parameters |= {"address": f"{service}:6379"}
        add(RAY_gcs_rpc_server_reconnect_timeout_s="600", FQ_RAY_IP=service, RAY_IP=service.partition(".")[0])
        add(RAY_ADDRESS=f"{service}:6379")
    add(RAY_CLUSTER_NAME=name, RAY_CLOUD_INSTANCE_ID=f"{name}-pod", RAY_PORT="6379")
    add(RAY_NODE_TYPE_NAME="headgroup" if group is None else group["groupName"])
    parameters |= {"metrics-export-port": "8080", "block": "true", "dashboard-agent-listen-port": "52365"}
    resources = container["resources"]
    parameters.setdefault("num-cpus", resources.get("limits", {}).get("cpu", resources["requests"]["cpu"]))
    parameters.setdefault("memory", str(quantity_bytes(resources["limits"]["memory"])))
    flags = " ".join(
        f"--{key}" if value == "true" else f"--{key}={value}" for key, value in sorted(parameters.items())
    )
    start = f"ray start {'--head ' if head else ''}{flags}"
    container["command"] = ["/bin/bash", "-c", "--"]
    container["args"] = [f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {start}"]
    probe = {"httpGet": {"path": "/api/healthz", "port": 52365}}
    container.setdefault("readinessProbe", probe)
    container.setdefault("livenessProbe", probe)
    if not head:
        wait = f"until ray health-check --address {service}:6379; do sleep 5; done"
        first = copy.deepcopy(container) | {"command": ["/bin/bash", "-c", "--"], "args": [wait]}
        template.setdefault("initContainers", []).append(first)
    return template


class Pod:
    """One pod's one container, on a host of its own.

    Args:
        spec: the pod's specification.
        secrets: (name, key) of each secret, and its value.
        volumes: where the claims and the other volumes of this pod lie, by their names in the manifest.
        services: names that /etc/hosts has, and their addresses.
        folder: where the log and emptyDir volumes are made.
    """

    def __init__(
        self,
        name: str,
        spec: Document,
        image: str,
        hosts: Hosts,
        secrets: Mapping[tuple[str, str], str],
        claims: Mapping[str, Path],
        services: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.name, self._spec, self._hosts, self._secrets = name, spec, hosts, secrets
        [self._container] = spec["containers"]
        self._image = json.loads(_output("buildah", "inspect", "--type", "image", image))["OCIv1"]["config"]
        self._id = _output("buildah", "from", "--pull=never", image)
        self._root = Path(_output("buildah", "mount", self._id))
        names = "".join(f"{address} {service}\n" for service, address in services.items())
        # The pod's own name comes last: a service's address is the one that others know.
        (self._root / "etc/hosts").write_text(
            f"127.0.0.1 localhost\n{names}{hosts.ip(name)} {self.hostname}\n"
        )
        self._claims, self._folder = claims, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def hostname(self) -> str:
        return f"{self.name}-pod"

    @property
    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.log")))

    def start(self) -> None:
        """Init containers one after the other, then the container; returns when its probes say that it is ready."""
        for number, container in enumerate(self._spec.get("initContainers", [])):
            with open(self._folder / f"init-{number}.log", "wb") as log:
                subprocess.run(
                    self._command(container), stdout=log, stderr=log, check=True, timeout=HANG_SECONDS
                )
        with open(self._folder / "pod.log", "wb") as log:
            self._process = subprocess.Popen(self._command(self._container), stdout=log, stderr=log)
        deadline = time.monotonic() + HANG_SECONDS
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            while kind in self._container and not self.probe(kind):
                assert self._process.poll() is None, f"{self.name} has ended:\n{self.log[-4000:]}"
                assert time.monotonic() < deadline, f"{self.name}: {kind} failed:\n{self.log[-4000:]}"
                time.sleep(1)

    def probe(self, kind: str) -> bool:
        """As kubelet asks: HTTP from outside, to the pod's address."""
        http = self._container[kind]["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in self._container.get("ports", [])}
        url = f"http://{self._hosts.ip(self.name)}:{ports.get(http['port'], http['port'])}{http['path']}"
        ask = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)"
        command = (*self._hosts.inside("laptop"), sys.executable, "-c", ask, url)
        return subprocess.run(command, capture_output=True, check=False, env=_NO_PROXY).returncode == 0

    def execute(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """``kubectl exec``."""
        enter = (
            "nsenter",
            "--target",
            str(self._first_process()),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
        )
        return subprocess.run(
            (*enter, "chroot", str(self._root), *self._as_user(self._container), *command),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def end(self) -> float:
        """As Kubernetes ends a pod: preStop, SIGTERM to the first process, SIGKILL when the grace period is over.

        Returns how many seconds were left of the grace period; below zero, and it had to be killed.
        """
        assert self._process is not None
        deadline = time.monotonic() + self._spec.get("terminationGracePeriodSeconds", 30)
        if hook := self._container.get("lifecycle", {}).get("preStop"):
            result = self.execute(*hook["exec"]["command"], timeout=max(1, deadline - time.monotonic()))
            assert result.returncode == 0, result.stderr
        os.kill(self._first_process(), signal.SIGTERM)
        try:
            self._process.wait(max(2, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.kill(self._first_process(), signal.SIGKILL)
            self._process.wait(30)
            return -1
        return deadline - time.monotonic()

    def remove(self) -> None:
        """Kills what still runs, and removes the container."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)
        subprocess.run(["buildah", "umount", self._id], capture_output=True, check=False)
        subprocess.run(["buildah", "rm", self._id], capture_output=True, check=False)

    def _first_process(self) -> int:
        assert self._process is not None
        # ip netns exec becomes unshare, whose one child is the container's first process.
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def _command(self, container: Document) -> list[str]:
        mounts: list[str] = []
        volumes = {volume["name"]: volume for volume in self._spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            volume = volumes[mount["name"]]
            empty = volume.get("emptyDir")
            if empty and empty.get("medium") == "Memory":
                mounts += ["memory", mount["mountPath"], str(quantity_bytes(empty["sizeLimit"]))]
                continue
            source = (
                self._folder / mount["name"]
                if empty is not None
                else self._claims[volume["persistentVolumeClaim"]["claimName"]]
            )
            source.mkdir(parents=True, exist_ok=True)
            # fsGroup
            shutil.chown(source, group=self._spec["securityContext"]["fsGroup"])
            source.chmod(0o2775)
            mounts += [str(source), mount["mountPath"], "bind"]
        return [
            *self._hosts.inside(self.name),
            *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
            *("bash", "-c", _START, "pod", str(self._root), self.hostname, *mounts, "--"),
            *self._as_user(container),
            *container["command"],
            *(
                self._expanded(argument, self._environment(container))
                for argument in container.get("args", [])
            ),
        ]

    def _as_user(self, container: Document) -> list[str]:
        security = self._spec["securityContext"]
        variables = (f"{name}={value}" for name, value in self._environment(container).items())
        command = ["/usr/bin/env", "-i", f"--chdir={self._image['WorkingDir']}", *variables]
        command += ["setpriv", f"--reuid={security['runAsUser']}", f"--regid={security['runAsGroup']}"]
        command += [f"--groups={security['fsGroup']}", "--inh-caps=-all", "--bounding-set=-all"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        return [*command, "--no-new-privs"]

    def _environment(self, container: Document) -> dict[str, str]:
        environment = dict(variable.split("=", 1) for variable in self._image["Env"])
        environment |= {"HOME": "/home/ray", "HOSTNAME": self.hostname}
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                secret = variable["valueFrom"]["secretKeyRef"]
                environment[variable["name"]] = self._secrets[secret["name"], secret["key"]]
            else:
                environment[variable["name"]] = self._expanded(variable["value"], environment)
        return environment

    @staticmethod
    def _expanded(text: str, environment: Mapping[str, str]) -> str:
        return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), text)


_NO_PROXY = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return result.stdout.strip()


def start_database(
    command: Sequence[str], inside: Sequence[str], user: int, log: Path, **variables: Any
) -> Any:
    """A program of this machine's own packages, as ``user``, on a host."""
    with open(log, "wb") as file:
        return subprocess.Popen(
            [*inside, "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command],
            stdout=file,
            stderr=file,
            env=_NO_PROXY | variables,
        )
