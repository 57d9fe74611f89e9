"""The image, run as the manifests say: MLflow, a head and a worker, and a study that is submitted, ended and resumed.

Not in the default run, for the image has to be there: ``make test-image`` builds it with deploy/build_here.sh first.
The manifests are rendered with a small site; pods are chroots with namespaces of their own (tests/deploy/pods.py), as
user 1000. Redis and PostgreSQL are this machine's packages, with the commands and passwords of the manifests.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.state import StudyState
from tests.cluster.hosts import Hosts, why_not
from tests.deadlines import HANG_SECONDS, wait_until
from tests.deploy.manifests import KUBERNETES, REPOSITORY, Document, faults, pod_specs, rendered
from tests.deploy.pods import SERVICES_DOMAIN, Pod, ray_pod, start_database

pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(3 * HANG_SECONDS)]

IMAGE = os.environ.get("IMAGE", "nfnet-ray:here")
TOKEN = "0123456789abcdef" * 4
SECRETS = {
    ("nfnet-ray", "auth_token"): TOKEN,
    ("nfnet-ray-passwords", "redis"): "5ec1e7",
    ("nfnet-ray-passwords", "postgres"): "ba5e",
}
STUDY = "agc_sweep-agc-1"
# Of a second or more: the study has to outlast the end of its worker.
EPOCHS = 50
# What a machine with two cores has: all that differs from site.yaml, as a user would write it there.
SMALL_SITE = {
    "image": IMAGE,
    "head": {"cpu": "1", "memory": "2Gi"},
    # The hook and its period are those of the group that components/cpu-workers takes the GPUs from.
    "gpuWorkers": {"drainSeconds": "15", "gracePeriodSeconds": 40},
    "cpuWorkers": {"cpu": "2", "memory": "4Gi", "sharedMemory": "1Gi", "replicas": 1},
}


def why_no_image() -> str | None:
    """Why the test cannot run on this machine; None if it can."""
    if reason := why_not():
        return reason
    for program, package in (
        ("buildah", "buildah"),
        ("redis-server", "redis-server"),
        ("setpriv", "util-linux"),
    ):
        if shutil.which(program) is None:
            return f"no {program} here: apt-get install {package}"
    if postgres_programs() is None:
        return "no PostgreSQL here: apt-get install postgresql"
    found = subprocess.run(["buildah", "inspect", "--type", "image", IMAGE], capture_output=True, check=False)
    return None if found.returncode == 0 else f"no image {IMAGE} here: make test-image builds it"


def postgres_programs() -> Path | None:
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def site(folder: Path) -> Path:
    """The manifests with a small site, and an overlay whose workers have no GPU."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    file = folder / "kubernetes/site/site.yaml"
    values = yaml.safe_load(file.read_text())
    for name, value in SMALL_SITE.items():
        values["spec"][name] = values["spec"][name] | value if isinstance(value, dict) else value
    file.write_text(yaml.safe_dump(values))
    overlay = folder / "kubernetes/overlays/here"
    overlay.mkdir()
    kustomization = yaml.safe_load((KUBERNETES / "overlays/pvc/kustomization.yaml").read_text())
    kustomization["components"].append("../../components/cpu-workers")
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return overlay


class Cluster:
    """What was applied, and runs: Redis, PostgreSQL, MLflow, a head and a worker."""

    def __init__(self, folder: Path, hosts: Hosts, stack: ExitStack) -> None:
        self.documents = rendered(site(folder))
        assert [fault for document in self.documents for fault in faults(document)] == []
        self._folder, self._hosts, self._stack = folder, hosts, stack
        self.shared = folder / "claims/shared"
        [self._cluster] = [document for document in self.documents if document["kind"] == "RayCluster"]
        self._started = 0
        self._start_databases()
        self.mlflow = self.pod("mlflow", self._spec("mlflow"))
        self.head = self.start_head()
        self.worker = self.start_worker()

    def _spec(self, name: str) -> Document:
        [pod] = [pod for document in self.documents for found, pod in pod_specs(document) if found == name]
        return pod

    def pod(self, name: str, spec: Document) -> Pod:
        self._started += 1
        services = {f"nfnet-ray-head-svc.{SERVICES_DOMAIN} nfnet-ray-head-svc": self._hosts.ip("head")}
        services |= {host: self._hosts.ip(host) for host in ("mlflow", "redis", "postgres")}
        folder = self._folder / f"{name}-{self._started}"
        claims = {claim: self._folder / "claims" / claim for claim in ("shared", "mlflow-artifacts")}
        pod = Pod(name, spec, IMAGE, self._hosts, SECRETS, claims, services, folder)
        self._stack.callback(pod.remove)
        pod.start()
        return pod

    def start_head(self) -> Pod:
        return self.pod("head", ray_pod(self._cluster))

    def start_worker(self) -> Pod:
        [group] = self._cluster["spec"]["workerGroupSpecs"]
        return self.pod("worker", ray_pod(self._cluster, group))

    def _start_databases(self) -> None:
        """With the commands of the manifests; their volumes are folders here."""
        [redis] = self._spec("redis")["containers"]
        user = self._spec("redis")["securityContext"]["runAsUser"]
        data = self._database_folder("redis", user)
        command = [argument.replace("/data", str(data)) for argument in redis["command"]]
        password = SECRETS["nfnet-ray-passwords", "redis"]
        self._run_database("redis", command, user, REDIS_PASSWORD=password)
        self._wait_for("redis", redis["readinessProbe"]["exec"]["command"], REDIS_PASSWORD=password)

        [postgres] = self._spec("postgres")["containers"]
        variables = {variable["name"]: variable.get("value", "") for variable in postgres["env"]}
        # initdb wants a user that has a name, and in the manifest's image 999 is called postgres.
        user = pwd.getpwnam("postgres").pw_uid
        data = self._database_folder("postgres", user)
        programs = postgres_programs()
        assert programs is not None
        password_file = data / "password"
        password_file.write_text(SECRETS["nfnet-ray-passwords", "postgres"])
        # What the image's entrypoint does.
        script = (
            f"cd {data} && {programs}/initdb --pgdata={data}/pgdata --username={variables['POSTGRES_USER']} "
            f"--pwfile={password_file} --auth=scram-sha-256 && "
            f"echo 'host all all all scram-sha-256' >> {data}/pgdata/pg_hba.conf && "
            f"echo 'CREATE DATABASE {variables['POSTGRES_DB']}' | "
            f"{programs}/postgres --single -D {data}/pgdata postgres && "
            f"exec {programs}/postgres -D {data}/pgdata --listen_addresses='*' --unix_socket_directories={data}"
        )
        self._run_database("postgres", ["bash", "-c", script], user)
        probe = [*postgres["readinessProbe"]["exec"]["command"], f"--host={data}"]
        self._wait_for("postgres", probe, PATH=f"{programs}:{os.environ['PATH']}")

    def _database_folder(self, name: str, user: int) -> Path:
        folder = self._folder / name
        folder.mkdir()
        os.chown(folder, user, user)
        return folder

    def _run_database(self, name: str, command: list[str], user: int, **variables: str) -> None:
        process = start_database(
            command, self._hosts.inside(name), user, self._folder / f"{name}.log", **variables
        )
        self._stack.callback(process.wait, 30)
        self._stack.callback(process.kill)

    def _wait_for(self, name: str, probe: list[str], **variables: str) -> None:
        command = [*self._hosts.inside(name), *probe]
        environment = os.environ | variables
        wait_until(
            lambda: (
                subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
            ),
            f"{name} is ready",
        )

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``ray …`` on a laptop to which the head's dashboard is forwarded, as docs/kubernetes.md says."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_API_SERVER_ADDRESS": f"http://{self._hosts.ip('head')}:8265",
            "HOME": str(self._folder),
        }
        return subprocess.run(
            [*self._hosts.inside("laptop"), sys.executable, "-m", "ray.scripts.scripts", *arguments],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )

    def events(self) -> list[Event]:
        journal = self.shared / "runs" / STUDY / JOURNAL_FILE
        return [event for event, _ in read_events(journal)] if journal.exists() else []

    def epochs(self) -> list[int]:
        return [event["epoch"] for event in self.events() if event["event"] == "epoch"]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        while not condition():
            status = said(self.ray("job", "status", "agc-1")).lower()
            if "failed" in status or time.monotonic() > deadline:
                pytest.fail(f"{what}: {status}\n{said(self.ray('job', 'logs', 'agc-1'))[-6000:]}")
            # A command of Ray takes seconds of a core that the study could have.
            time.sleep(5)


def said(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout + result.stderr


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if reason := why_no_image():
        pytest.skip(reason)
    # Other users than root reach the volumes: not in pytest's own folder, which is closed to them.
    with tempfile.TemporaryDirectory(prefix="nfnet_ray_image") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        hosts = stack.enter_context(Hosts("head", "worker", "mlflow", "redis", "postgres", "laptop"))
        yield Cluster(Path(folder), hosts, stack)


def test_a_study_runs_from_the_image_is_ended_with_its_pods_and_resumes(cluster: Cluster) -> None:
    for pod in (cluster.mlflow, cluster.head, cluster.worker):
        owners = pod.execute("ps", "-e", "-o", "uid=").stdout.split()
        assert len(owners) > 1
        assert set(owners) == {"1000"}, owners
        # The image is root's; what is written lies in volumes.
        assert pod.execute("touch", "/opt/nfnet_ray/x").returncode != 0
    assert "_nfnet_ray_jpeg" in cluster.worker.execute(
        "python",
        "-c",
        "from nfnet_ray.data.decoding import compiled; print(compiled.box_function() and '_nfnet_ray_jpeg')",
    ).stdout  # fmt: skip

    submit = ["job", "submit", "--submission-id", "agc-1", "--no-wait", "--working-dir", ".", "--"]
    study = ["python", "studies/agc_sweep.py", "--address", "auto", "--tracking-uri", "http://mlflow:5000"]
    study += ["--trials", "1", "--epochs", str(EPOCHS), "--trials-at-once", "1"]
    study += ["--cpus-per-worker", "1", "--gpus-per-worker", "0"]
    submitted = cluster.ray(*submit, *study)
    assert submitted.returncode == 0, said(submitted)
    cluster.wait_until(lambda: len(cluster.epochs()) >= 2, "the first epochs")

    # The worker's node is wanted back: its hook waits for the trial to leave, and a new pod takes it up.
    assert cluster.worker.end() >= 0, cluster.worker.log
    before = len(cluster.epochs())
    cluster.worker = cluster.start_worker()
    cluster.wait_until(lambda: len(cluster.epochs()) > before, "an epoch on the new worker")

    # The head's pod is ended: the driver goes with it. A new head knows the job from Redis; its id is submitted again.
    assert cluster.head.end() >= 0, cluster.head.log
    ended_at = cluster.epochs()
    assert max(ended_at) < EPOCHS
    cluster.head = cluster.start_head()
    # It takes a while until the new head says that the job has failed.
    wait_until(lambda: cluster.ray("job", "delete", "agc-1").returncode == 0, "the ended job is deleted")
    resumed = cluster.ray(*submit, *study)
    assert resumed.returncode == 0, said(resumed)
    cluster.wait_until(
        lambda: "succeeded" in said(cluster.ray("job", "status", "agc-1")), "the resumed study ends"
    )
    [trial] = StudyState.read(cluster.shared / "runs" / STUDY)[0].trials.values()
    assert (trial.state, trial.epoch) == ("finished", EPOCHS)
    assert cluster.epochs()[: len(ended_at)] == ended_at
    assert sorted(set(cluster.epochs())) == list(range(1, EPOCHS + 1))
    # The same numbers are with MLflow, which the study reached by its service's name.
    count = "import mlflow; runs = mlflow.search_runs(search_all_experiments=True); print(list(runs.status), len(runs))"
    counted = cluster.mlflow.execute("env", "MLFLOW_TRACKING_URI=http://mlflow:5000", "python", "-c", count)
    assert "FINISHED" in counted.stdout, counted
    assert cluster.mlflow.end() >= 0, cluster.mlflow.log
