"""Every private name of Ray that is used is in ray_internals.py, and is still what it says there.

Run with another Ray, this says what has to be looked at before pyproject.toml allows that Ray. No cluster is started.
About 3 s, most of it for importing Ray.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import importlib
import inspect
import json
import os
import pickle
import re
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from packaging.requirements import Requirement
from packaging.version import Version
from ray.core.generated import gcs_pb2, gcs_service_pb2

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.address import temporary_folder
from nfnet_ray.cluster.connection.local_ray import LocalRay
from nfnet_ray.cluster.driver import _JournalCallback
from nfnet_ray.cluster.forms import FormBook
from nfnet_ray.cluster.messages.tune_reports import epoch_result
from nfnet_ray.metric import METRIC

REPOSITORY = Path(__file__).resolve().parents[2]
INTERNALS = Path(ray_internals.__file__).relative_to(REPOSITORY)
RAY = Path(ray.__file__).parent


def source(path: str) -> str:
    """A file of the Ray that is installed."""
    return (RAY / path).read_text()


# --- nowhere else ---------------------------------------------------------------------------------

PRIVATE_MODULES = ("ray.core.generated", "ray.experimental.internal_kv")
# The words of Ray that ray_internals.py spells out; shorter ones are words of everybody.
WORDS = {
    word
    for value in vars(ray_internals).values()
    for word in (value if isinstance(value, dict) else [value])
    if isinstance(word, str) and word.startswith(("RAY_", "TUNE_", "node:", "/ray", "ray/", "timed out"))
} | {"AutoscalingCoordinator"}


def private_names(text: str) -> list[str]:
    """Each import, attribute and word in the source of a module that is not Ray's public API."""
    tree = ast.parse(text)
    found = []
    modules: set[str] = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {alias.asname or alias.name for alias in node.names if node.module.startswith("ray")}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in WORDS:
            found.append(node.value)
        found += [name for name in names if name.split(".")[0] == "ray" and is_private(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted.split(".")[0] in modules | {"ray"} and is_private(dotted):
                found.append(dotted)
    return found


def is_private(dotted: str) -> bool:
    return any(part.startswith("_") for part in dotted.split(".")) or dotted.startswith(PRIVATE_MODULES)


def modules() -> Iterator[Path]:
    for folder in ("nfnet_ray", "studies", "data_prep", "dashboards", "benchmarks", "deploy"):
        yield from (path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*.py"))


def test_no_other_file_uses_a_private_name_of_ray() -> None:
    found = {str(path): private_names((REPOSITORY / path).read_text()) for path in modules()}
    assert len(found.pop(str(INTERNALS))) > 10
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import worker",
        "from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE",
        "import ray._raylet",
        "from ray.experimental import internal_kv",
        "from ray.core.generated import gcs_pb2",
        "import ray\nray._private.worker.global_worker",
        "from ray import train\ntrain._internal",
        "name = 'RAY_TRAIN_HEALTH_CHECK_INTERVAL_S'",
        "name = 'AutoscalingCoordinator'",
    ],
)
def test_a_private_name_is_found(line: str) -> None:
    assert private_names(line) != []


def test_ray_is_bounded_to_the_version_in_which_they_were_seen() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (bound,) = (
        requirement.specifier
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == "ray"
    )
    seen = Version(ray_internals.VERSION)
    assert Version(ray.__version__) in bound
    assert seen in bound
    assert Version(f"{seen.major}.{seen.minor}.99") in bound
    assert Version(f"{seen.major}.{seen.minor + 1}.0") not in bound
    assert Version(f"{seen.major}.{seen.minor - 1}.99") not in bound


# --- the key-value store --------------------------------------------------------------------------


class Head:
    """In the place of Ray's client of the head: the values are in this process."""

    def __init__(self) -> None:
        self.values: dict[tuple[bytes, bytes], bytes] = {}

    def internal_kv_put(self, key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> int:
        assert overwrite
        self.values[namespace, key] = value
        return 1

    def internal_kv_get(self, key: bytes, namespace: bytes) -> bytes | None:
        return self.values.get((namespace, key))

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes) -> int:
        chosen = [
            known
            for known in self.values
            if known[0] == namespace and (known[1].startswith(key) if by_prefix else known[1] == key)
        ]
        for known in chosen:
            del self.values[known]
        return len(chosen)

    def internal_kv_keys(self, prefix: bytes, namespace: bytes) -> list[bytes]:
        return [key for space, key in self.values if space == namespace and key.startswith(prefix)]


def test_values_of_the_head_are_set_listed_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.experimental import internal_kv

    monkeypatch.setattr(internal_kv, "global_gcs_client", Head())
    ray_internals.put_value("run/a", "1")
    ray_internals.put_value("run/a", "2")
    ray_internals.put_value("run/b", "3")
    ray_internals.put_value("other/a", "4")
    assert ray_internals.get_value("run/a") == b"2"
    assert ray_internals.get_value("run/c") is None
    assert sorted(ray_internals.value_keys("run/")) == ["run/a", "run/b"]
    ray_internals.delete_value("run/a")
    assert ray_internals.value_keys("run/") == ["run/b"]
    ray_internals.delete_values("run/")
    assert ray_internals.value_keys("") == ["other/a"]


# --- Ray Train ------------------------------------------------------------------------------------


def test_callbacks_of_the_controller_are_called_with_these_arguments() -> None:
    from nfnet_ray.cluster.group_events import GroupEvents

    methods = {
        name: method
        for name, method in vars(GroupEvents).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert len(methods) == 6
    for name, method in methods.items():
        (base,) = (
            getattr(base, name)
            for base in (ray_internals.ControllerCallback, ray_internals.WorkerGroupCallback)
            if hasattr(base, name)
        )
        assert list(inspect.signature(method).parameters) == list(inspect.signature(base).parameters), name
    with pytest.raises(AttributeError, match="NoSuchCallback"):
        _ = ray_internals.NoSuchCallback


def test_what_the_callbacks_are_handed_has_what_they_read() -> None:
    from ray.train.v2._internal.execution.context import TrainRunContext
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupPollStatus

    def fields(kind: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    assert "run_id" in fields(TrainRunContext)
    assert "num_workers" in fields(ResizeDecision)
    assert {"execute", "__len__"} <= set(dir(WorkerGroup))
    status: Any = WorkerGroupPollStatus(worker_statuses={})
    assert status.errors == {}
    assert status.get_preemption_info() is None
    assert status.has_preempted_worker() is False


def test_a_trainer_starts_no_helpers() -> None:
    from ray.train.torch import TorchTrainer

    trainer: Any = TorchTrainer(lambda: None)
    usual = [type(callback).__name__ for callback in trainer._create_default_callbacks()]
    ray_internals.start_without_helpers(trainer)
    left = [type(callback).__name__ for callback in trainer._create_default_callbacks()]
    helpers = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert helpers < set(usual)
    assert left == [name for name in usual if name not in helpers]
    # The first one hands the workers one argument, and they can do without it.
    assert "dataset_shard_provider: Optional[" in source(
        "train/v2/_internal/execution/worker_group/worker.py"
    )


@pytest.mark.parametrize(
    ("processes", "workers", "asks"), [([1], 2, False), ([], 2, True), ([1], (1, 2), True)]
)
def test_a_group_of_one_size_asks_no_autoscaler_that_a_local_ray_does_not_have(
    monkeypatch: pytest.MonkeyPatch, processes: list[int], workers: Any, asks: bool
) -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    client = importlib.import_module(
        "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client"
    )
    asked: list[bool] = []
    started = SimpleNamespace(request_resources=SimpleNamespace(remote=lambda **_: asked.append(True)))
    monkeypatch.setattr(client, "get_or_create_autoscaling_coordinator", lambda: started)
    monkeypatch.setattr(ray, "get", lambda *_, **__: None)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray_internals, "started_processes", lambda: processes)
    trainer: Any = TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=workers))
    handed: list[Any] = []

    def run_controller(scaling_policy: Any, **_: Any) -> Any:
        handed.append(scaling_policy)
        return SimpleNamespace(error=None)

    trainer._initialize_and_run_controller = run_controller
    ray_internals.start_without_helpers(trainer)
    trainer.fit()
    policy = pickle.loads(pickle.dumps(handed[0]))
    policy.after_controller_start(SimpleNamespace(run_id="n"))
    assert bool(asked) == asks
    if not asks:
        decision = policy.make_decision_for_non_running_worker_group()
        assert (decision.num_workers, decision.resources_per_worker) == (2, {"CPU": 1})
        policy.make_decision_for_running_worker_group(None, None)
        asyncio.run(policy.before_controller_shutdown())
        assert asked == []


def test_a_group_starts_no_actor_for_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    state = importlib.import_module("ray.train.v2._internal.execution.worker_group.state")
    group = importlib.import_module("ray.train.v2._internal.execution.worker_group.worker_group")
    killed: list[object] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(ray, "put", lambda value: value)
    for module, name in ((group, "SynchronizationActor"), (state, "_shutdown_sync_actor")):
        monkeypatch.setattr(module, name, getattr(module, name))  # and put back
    ray_internals.start_no_barrier()
    barrier = group.SynchronizationActor.options(label_selector={}).remote(timeout_s=1, warn_interval_s=1)
    state._shutdown_sync_actor(pickle.loads(pickle.dumps(barrier)))
    assert killed == []
    # What the controller calls of it, but for groups whose workers are replaced one by one.
    text = source("train/v2/_internal/execution/worker_group/worker_group.py")
    called = set(re.findall(r"sync_actor\.(\w+)\.remote", text))
    assert called == {"set_required_ranks", "reset"}
    assert text.index("sync_actor.reset.remote") > text.index("def replace_replica_group")
    assert barrier.set_required_ranks.remote([0]) is True


def test_no_worker_waits_at_a_barrier_of_ray_train() -> None:
    for path in (REPOSITORY / "nfnet_ray").rglob("*.py"):
        text = path.read_text()
        assert not re.search(
            r"^(?!.*``).*ray\.train\.(report|collective|get_preemption_info)", text, re.MULTILINE
        ), path


def test_the_death_of_a_worker_is_told_from_an_error_in_it() -> None:
    from ray.train.v2._internal import exceptions

    assert ray_internals.is_death(exceptions.WorkerHealthCheckFailedError("x", ValueError()))
    assert ray_internals.is_death(exceptions.WorkerHealthCheckTimeoutError("x"))
    assert not ray_internals.is_death(RuntimeError("x"))


def test_ranks_on_machines_that_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext
    from ray.train.v2.api.preemption import PreemptionInfo

    assert "preemption_context" in {field.name for field in dataclasses.fields(context.TrainContext)}
    told = PreemptionContext()
    monkeypatch.setattr(context, "get_train_context", lambda: SimpleNamespace(preemption_context=told))
    assert ray_internals.preempted_ranks() == []
    told.preemption_info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [1], "b": [3]})
    assert sorted(ray_internals.preempted_ranks()) == [1, 3]


def test_reservations_of_machines_have_this_name_and_are_cancelled_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

    policy = source("train/v2/_internal/execution/scaling_policy/scaling_policy.py")
    assert 'self._requester_id = f"train-{train_run_context.run_id}"' in policy
    assert ray_internals.reservation_name("17") == "train-17"
    actor = inspect.getsource(coordinator.get_or_create_autoscaling_coordinator)
    assert 'name="AutoscalingCoordinator",\n        namespace="AutoscalingCoordinator"' in actor
    cancel = coordinator._AutoscalingCoordinatorActor.cancel_request
    assert list(inspect.signature(cancel).parameters) == ["self", "requester_id"]

    def none_is_there(*_: Any, **__: Any) -> None:
        raise ValueError("Failed to look up actor")

    monkeypatch.setattr(ray, "get_actor", none_is_there)
    ray_internals.cancel_reservation("train-17")


def test_settings_of_ray_train() -> None:
    from ray.train.v2._internal import constants

    assert constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR == ray_internals.TRAIN_HEALTH_CHECK_INTERVAL
    assert constants.PREEMPTION_POLL_INTERVAL_S_ENV_VAR == ray_internals.TRAIN_PREEMPTION_POLL_INTERVAL
    assert constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR == ray_internals.TRAIN_GROUP_START_TIMEOUT


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_are_handed_over_every_ten_seconds_and_a_gauge_is_kept_for_twenty() -> None:
    """docs/monitoring.md and the PodMonitor of deploy/kubernetes/monitoring count on it."""
    from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

    assert ray_internals.metrics_interval_seconds() == 10
    assert OpenTelemetryMetricRecorder._resolve_gauge_ttl_seconds(None) == 20


# --- nodes, placement groups, processes -----------------------------------------------------------


def test_bundles_of_a_job_and_free_resources_of_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.state import GlobalState, state

    states = gcs_pb2.PlacementGroupTableData

    def group(job: bytes, placed: int, *cores: float, orphaned: bool = False, creator: bytes = b"") -> bytes:
        table = states(
            creator_job_id=job, state=placed, creator_actor_dead=orphaned, creator_actor_id=creator
        )
        table.placement_group_id = bytes([placed]) * 18
        for cpus in cores:
            table.bundles.add().unit_resources["CPU"] = cpus
        serialised: bytes = table.SerializeToString()
        return serialised

    groups = [
        group(b"\1\0\0\0", states.CREATED, 2.0, 3.0, creator=b"\7"),
        group(b"\1\0\0\0", states.PENDING, 4.0, creator=b"\x08"),
        group(b"\2\0\0\0", states.CREATED, 5.0, orphaned=True),
        group(b"\1\0\0\0", states.RESCHEDULING, 5.0, orphaned=True),
        group(b"\1\0\0\0", states.REMOVED, 5.0, orphaned=True),
    ]
    accessor = SimpleNamespace(get_placement_group_table=lambda: groups)
    monkeypatch.setattr(GlobalState, "_connect_and_get_accessor", lambda _self: accessor)
    assert [dict(bundle) for bundle in ray_internals.placed_bundles("01000000")] == [
        {"CPU": 2.0},
        {"CPU": 3.0},
    ]
    removed: list[str] = []
    groups_of_ray = importlib.import_module("ray.util.placement_group")  # a function has the same name
    monkeypatch.setattr(groups_of_ray, "remove_placement_group", lambda group: removed.append(group.id.hex()))
    ray_internals.remove_orphaned_placement_groups("01000000")
    assert removed == [bytes([states.RESCHEDULING] * 18).hex()]
    removed.clear()
    controller = SimpleNamespace(get_job_id=lambda: "01000000", get_actor_id=lambda: "07")
    monkeypatch.setattr("ray.get_runtime_context", lambda: controller)
    ray_internals.remove_placement_groups_of_this_actor()
    assert removed == [bytes([states.CREATED] * 18).hex()]
    monkeypatch.setattr(state, "available_resources_per_node", lambda: {"a": {"CPU": 1.0}})
    assert ray_internals.free_resources() == {"a": {"CPU": 1.0}}


def test_the_controllers_of_a_job_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.state import GlobalState
    from ray._private.worker import global_worker
    from ray._raylet import CoreWorker
    from ray.train.v2._internal.execution.controller import TrainController

    tables = gcs_pb2.ActorTableData

    def actor(number: int, class_name: str, state: int) -> bytes:
        table = tables(actor_id=bytes([number]) * 16, job_id=b"\1\0\0\0", class_name=class_name, state=state)
        serialised: bytes = table.SerializeToString()
        return serialised

    actors = [
        actor(1, TrainController.__name__, tables.ALIVE),
        actor(2, TrainController.__name__, tables.DEAD),
        actor(3, "RayTrainWorker", tables.ALIVE),
        actor(4, TrainController.__name__, tables.PENDING_CREATION),
    ]
    asked: list[Any] = []
    accessor = SimpleNamespace(get_actor_table=lambda job, _state: asked.append(job.hex()) or actors)
    monkeypatch.setattr(GlobalState, "_connect_and_get_accessor", lambda _self: accessor)
    killed: list[tuple[str, bool]] = []
    worker = SimpleNamespace(kill_actor=lambda actor, no_restart: killed.append((actor.hex(), no_restart)))
    assert hasattr(CoreWorker, "kill_actor")
    monkeypatch.setattr(global_worker, "core_worker", worker, raising=False)
    ray_internals.end_controllers("01000000")
    assert asked == ["01000000"]
    assert killed == [(bytes([number] * 16).hex(), True) for number in (1, 4)]


def test_a_node_that_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.state import state

    assert "drained" in (type(state).get_draining_nodes.__doc__ or "")
    monkeypatch.setattr(state, "get_draining_nodes", lambda: {"ab": 0})
    for node, is_drained in (("ab", True), ("cd", False)):
        context = SimpleNamespace(get_node_id=lambda node=node: node)
        monkeypatch.setattr(ray, "get_runtime_context", lambda context=context: context)
        assert ray_internals.is_being_drained() == is_drained


def stub_trial(folder: Path, **further: Any) -> Any:
    """A trial of Tune that no actor runs."""
    from ray.train._internal.storage import StorageContext
    from ray.tune.experiment import Trial

    storage = StorageContext(str(folder), experiment_dir_name="e", trial_dir_name="t")
    return Trial("x", storage=storage, stub=True, trial_name_creator=lambda _trial: "a", **further)


def test_failures_do_not_count_once_the_trial_has_come_further(tmp_path: Path) -> None:
    trial = stub_trial(tmp_path, config={"trial": {"name": "a"}}, max_failures=3)
    recorded: list[Any] = []
    recorder: Any = SimpleNamespace(
        state=SimpleNamespace(trials={"a": SimpleNamespace(state="running")}),
        record_epoch=lambda *of_epoch: recorded.append(of_epoch),
    )
    callback = _JournalCallback(recorder, FormBook(recorder), recorder, threading.Event())
    lost = SimpleNamespace(preempted=False)
    for epoch in range(1, 4):
        for _ in range(3):
            trial._handle_ray_actor_error(lost)
            assert trial.should_recover()
        callback.on_trial_result(epoch, [trial], trial, epoch_result({"epoch": epoch, METRIC: 0.5}))
    assert len(recorded) == 3
    for _ in range(4):
        trial._handle_ray_actor_error(lost)
    assert not trial.should_recover()


def test_a_released_trial_of_tune_keeps_its_state_and_little_else(tmp_path: Path) -> None:
    from ray.tune.execution.placement_groups import PlacementGroupFactory
    from ray.tune.experiment import Trial

    trial = stub_trial(
        tmp_path,
        config={"trial": {"name": "a", "long": "c" * 999}},
        evaluated_params={"long": "c" * 999},
        experiment_tag="c" * 999,
        placement_group_factory=PlacementGroupFactory([{"CPU": 1}]),
    )
    trial._default_result_or_future = {"long": "c" * 999}
    for step in range(1, 4):
        trial.update_last_result({"training_iteration": step, "top1": 0.5, "long": "c" * 999})
    trial.set_status(Trial.TERMINATED)
    state = json.dumps(trial.get_json_state())
    assert state.count("c" * 999) >= 3
    ray_internals.release(trial)
    assert "c" * 999 not in str(vars(trial)) + str(vars(trial.run_metadata))
    assert (trial.metric_analysis, trial.metric_n_steps, trial.placement_group_factory) == ({}, {}, None)
    # What Tune still asks when all have ended.
    assert (str(trial), trial.status, trial.is_finished()) == ("a", Trial.TERMINATED, True)
    assert trial.last_result == {"trial_id": trial.trial_id}
    assert not trial.get_error()
    assert len(json.dumps(trial.get_json_state())) < len(state) - 3 * 999


def test_a_trial_is_released_once_tune_has_done_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[Any] = []
    monkeypatch.setattr("nfnet_ray.cluster.driver.release", released.append)
    states = {"a": SimpleNamespace(state="finished")}
    recorder: Any = SimpleNamespace(state=SimpleNamespace(trials=states))
    callback = _JournalCallback(recorder, FormBook(recorder), recorder, threading.Event())
    over = threading.Event()
    trial: Any = SimpleNamespace(config={"trial": {"name": "a"}}, is_finished=over.is_set)
    callback.on_trial_complete(1, [trial], trial)
    callback.on_step_end(1, [trial])
    assert released == []
    over.set()
    callback.on_step_end(2, [trial])
    callback.on_step_end(3, [trial])
    assert released == [trial]


def test_processes_that_ray_started(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker
    from ray._private.services import ProcessInfo

    assert worker._global_node is None
    assert ray_internals.started_processes() == []
    assert "self.all_processes: dict = {}" in source("_private/node.py")
    described = ProcessInfo("a process", *[None] * (len(ProcessInfo._fields) - 1))
    monkeypatch.setattr(
        worker, "_global_node", SimpleNamespace(all_processes={"raylet": [described], "other": []})
    )
    assert ray_internals.started_processes() == ["a process"]


def test_the_servers_and_the_logs_of_a_local_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants, worker

    assert ray_internals.own_servers() == {}
    assert ray_constants.PROCESS_TYPE_RAYLET == ray_internals.RAYLET
    assert ray_constants.PROCESS_TYPE_GCS_SERVER == ray_internals.GCS_SERVER
    assert "return self._logs_dir\n" in source("_private/node.py")
    processes = {name: [SimpleNamespace(process=name)] for name in ("raylet", "gcs_server", "other")}
    node = SimpleNamespace(all_processes=processes, get_logs_dir_path=lambda: "/x/logs")
    monkeypatch.setattr(worker, "_global_node", node)
    assert ray_internals.own_servers() == {"raylet": "raylet", "gcs_server": "gcs_server"}
    assert ray_internals.logs_folder() == Path("/x/logs")


def test_the_variable_for_a_head_that_has_gone_is_one_of_rays() -> None:
    assert ray_internals.HEAD_TIMEOUT.encode() in (RAY / "_raylet.so").read_bytes()


def test_a_local_ray_starts_without_attendants(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import utils
    from ray._private.node import Node
    from ray.experimental import internal_kv

    started: list[str] = []
    for name in (
        "start_gcs_server",
        "start_raylet",
        "start_monitor",
        "start_log_monitor",
        "start_api_server",
    ):
        assert callable(getattr(Node, name))
        monkeypatch.setattr(Node, name, lambda _self, *_args, name=name, **_options: started.append(name))
    monkeypatch.setattr(Node, "_write_cluster_info_to_kv", lambda _self: None)
    monkeypatch.setattr(internal_kv, "global_gcs_client", None)
    node: Any = Node.__new__(Node)
    node._logs_dir, node._gcs_address, node._gcs_client, node.head = "", None, None, True
    node._ray_params = SimpleNamespace(no_monitor=False, ray_client_server_port=None, include_dashboard=False)
    monkeypatch.setattr(Node, "get_gcs_client", lambda _self: client)
    client = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "ray.dashboard.optional_deps", None)  # importing it would raise
    assert utils.get_dashboard_dependency_error() is not None
    with ray_internals.without_attendants():
        node.start_head_processes()
        node.start_log_monitor()
        assert utils.get_dashboard_dependency_error() is None
    assert started == ["start_gcs_server"]
    assert internal_kv.global_gcs_client is client
    node.start_head_processes()
    assert started[1:] == ["start_gcs_server", "start_monitor", "start_api_server"]


def test_tune_counts_no_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.air._internal import usage

    assert "air_usage.tag_callbacks(callbacks)" in source("tune/tune.py")
    monkeypatch.setattr(usage, "tag_callbacks", usage.tag_callbacks)  # and put back
    monkeypatch.setitem(sys.modules, "ray.air.integrations.mlflow", None)  # importing it would raise
    with pytest.raises(ImportError):
        usage.tag_callbacks([1])
    ray_internals.count_no_callbacks()
    usage.tag_callbacks([1])


def test_messages_and_paths_of_a_start() -> None:
    node = source("_private/node.py")
    assert ray_internals.STARTUP_TIMEOUT in node
    session = re.search(r'strftime\(\s*"(.+?)"\s*\)', node)
    assert session is not None
    assert session[1] == "%Y-%m-%d_%H-%M-%S_%f"
    for part in ('f"session_{date_str}_{os.getpid()}"', 'self._session_dir, "sockets"', '="plasma_store"'):
        assert part in node
    longest = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert longest == ray_internals.LONGEST_SOCKET


@pytest.mark.parametrize("name", [*ray_internals.SETTINGS, *ray_internals.LOCAL_SETTINGS])
def test_setting_is_read_by_ray(name: str) -> None:
    folders = ("tune", "_common", "_private", "train", "air")
    programs = (RAY / "core/src/ray/raylet/raylet",)
    assert any(
        name.encode() in path.read_bytes()
        for path in (*programs, *(path for folder in folders for path in (RAY / folder).rglob("*.py")))
    )


# --- asking a head, and a submitted job -----------------------------------------------------------


@pytest.mark.parametrize("path", [ray_internals.CHECK_ALIVE, ray_internals.READ_VALUE])
def test_calls_of_the_head(path: str) -> None:
    service, method = path.removeprefix("/ray.rpc.").split("/")
    assert gcs_service_pb2.DESCRIPTOR.package == "ray.rpc"
    assert method in gcs_service_pb2.DESCRIPTOR.services_by_name[service].methods_by_name


def test_fields_of_its_answers() -> None:
    def numbers(message: Any) -> dict[str, int]:
        return {field.name: field.number for field in message.DESCRIPTOR.fields}

    alive = numbers(gcs_service_pb2.CheckAliveReply)
    assert alive["ray_version"] == ray_internals.CHECK_ALIVE_RAY_VERSION
    assert alive["raylet_alive"] == ray_internals.CHECK_ALIVE_RAYLET_ALIVE
    assert numbers(gcs_service_pb2.CheckAliveRequest)["node_ids"] == 1
    assert numbers(gcs_service_pb2.InternalKVGetReply)["value"] == ray_internals.READ_VALUE_VALUE
    asked = numbers(gcs_service_pb2.InternalKVGetRequest)
    assert (asked["key"], asked["namespace"]) == (1, 2)


def test_where_the_head_keeps_its_versions() -> None:
    from ray._common.usage import usage_constants, usage_lib
    from ray._private import ray_constants

    assert usage_constants.CLUSTER_METADATA_KEY == ray_internals.METADATA_KEY
    assert ray_constants.KV_NAMESPACE_CLUSTER == ray_internals.METADATA_NAMESPACE
    metadata = usage_lib._generate_cluster_metadata(ray_init_cluster=True)
    assert ray_internals.METADATA_PYTHON_VERSION in metadata
    assert ray_internals.METADATA_OF_A_PROGRAM in json.dumps(metadata).encode()


def test_where_ray_notes_the_cluster_of_this_machine() -> None:
    from ray._common.utils import get_default_system_temp_dir, get_ray_address_file

    assert get_default_system_temp_dir() == str(temporary_folder())
    assert get_ray_address_file(None) == os.path.join(temporary_folder(), ray_internals.CURRENT_CLUSTER_FILE)


@pytest.mark.parametrize(
    "argument",
    [
        ray_internals.RAYLET_HEAD_ARGUMENT,
        ray_internals.RAYLET_NODE_ARGUMENT,
        ray_internals.RAYLET_SOCKET_ARGUMENT,
    ],
)
def test_arguments_of_a_raylet(argument: str) -> None:
    from ray._private import services

    assert f'f"{argument}=' in inspect.getsource(services.start_raylet)


def test_what_a_submitted_job_is_told() -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY

    assert RAY_JOB_CONFIG_JSON_ENV_VAR == ray_internals.JOB_CONFIG_VARIABLE
    assert JOB_ID_METADATA_KEY == ray_internals.JOB_SUBMISSION_ID


def test_a_local_ray_is_started_without_strict_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``PYTHONWARNINGS=error`` its own processes end at their first warning, and Ray after a minute."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    seen: list[str | None] = []
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get("PYTHONWARNINGS")))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_internals, "started_processes", list)
    local = LocalRay()
    local.start()
    assert (seen, os.environ["PYTHONWARNINGS"]) == ([None], "error")
    local.end()


def test_nothing_watches_for_the_end_of_a_machine_while_a_local_ray_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cluster that the same process connects to later is watched; so is a local Ray if a person says so."""
    constants = importlib.import_module("ray.train.v2._internal.constants")
    assert constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR in constants.ENV_VARS_TO_PROPAGATE
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_internals, "started_processes", list)
    monkeypatch.delenv(constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR, raising=False)
    local = LocalRay()
    for said in (None, "1"):
        if said:
            monkeypatch.setenv(constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR, said)
        local.start()
        assert os.environ[constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR] == (said or "0")
        local.end()
        assert os.environ.get(constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR) == said


def test_each_worker_of_a_group_has_its_own_gpu_also_where_there_are_more_than_ten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray Train sorts the numbers of a node's GPUs as texts, and each worker finds its own in that same list."""
    accelerators = importlib.import_module("ray.train.v2._internal.callbacks.accelerators")
    workers = importlib.import_module("ray.train.v2._internal.execution.worker_group.worker")
    manager = importlib.import_module("ray.air._internal.device_manager.nvidia_gpu").CUDATorchDeviceManager()
    gpus = [str(number) for number in range(16)]
    group = [workers.ActorMetadata("host", "node", "::1", 1, {"GPU": [gpu]}) for gpu in reversed(gpus)]
    seen = accelerators._get_visible_accelerator_ids_per_worker(
        worker_metadatas=group, accelerator_name="GPU"
    )
    assert set(seen) == {",".join(sorted(gpus))}  # "0,1,10,11,…,2": cuda:2 is GPU 10
    for worker, visible in zip(group, seen, strict=True):
        own = worker.accelerator_ids["GPU"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(ray, "get_gpu_ids", lambda own=own: [int(own[0])])
        (device,) = manager.get_devices()
        assert visible.split(",")[device.index] == own[0]
