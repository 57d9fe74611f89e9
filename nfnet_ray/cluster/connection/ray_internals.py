"""Everything of Ray that is used here and is not its public API: each name once, and why the public API does not do.

All was seen in Ray 2.60.0, and ``pyproject.toml`` allows no later minor version. Before that bound is raised,
``tests/quick/test_ray_internals.py`` has to pass with the new version: it looks for each name below in the installed
Ray, and for private names in all other files. Paths are relative to Ray's package, or to its repository
where they begin with ``src``.

Ray is imported in the functions: some of these facts are needed before, or in place of, a connection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

    from ray.train.torch import TorchTrainer

    # Classes to derive from, for :mod:`nfnet_ray.cluster.group_events`. Public callbacks of Ray Train are called for
    # reports and exceptions only, and not when workers are lost or a group is about to be resized. They are Ray's
    # developer API, and ``RunConfig(callbacks=...)`` takes them.
    from ray.train.v2._internal.execution.callback import ControllerCallback as ControllerCallback
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback as WorkerGroupCallback
    from ray.tune.experiment import Trial

VERSION = "2.60.0"
"""The Ray in which all of this was seen."""

# --- the key-value store of the head --------------------------------------------------------------
# Publicly, values are kept in objects, which end with their owner, and in actors, which are processes that can die.


_NAMESPACE = "nfnet_ray"


def put_value(key: str, value: str) -> None:
    """Sets the value of a key (experimental/internal_kv.py)."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value, True, namespace=_NAMESPACE)


def put_first_value(key: str, value: str) -> None:
    """Sets the value of a key that has none."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value, False, namespace=_NAMESPACE)


def get_value(key: str) -> bytes | None:
    """The value of a key, None if it has none."""
    from ray.experimental import internal_kv

    found: bytes | None = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
    return found


def delete_value(key: str) -> None:
    """Removes a key."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def delete_values(prefix: str) -> None:
    """Removes all keys with a prefix."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(prefix, del_by_prefix=True, namespace=_NAMESPACE)


def value_keys(prefix: str) -> list[str]:
    """All keys with a prefix, in any order."""
    from ray.experimental import internal_kv

    return [key.decode() for key in internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE)]


# --- Ray Train's controller and workers -----------------------------------------------------------


def __getattr__(name: str) -> Any:
    """Imports the two callback classes above when they are needed."""
    if name not in ("ControllerCallback", "WorkerGroupCallback"):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from ray.train.v2._internal.execution import callback

    return getattr(callback, name)


def start_without_helpers(trainer: TorchTrainer) -> None:
    """Has a trainer start no actors whose work is not needed here: each takes 2 to 4 s of a core to start.

    One serves datasets of Ray Data, through which nothing is read; Ray Train starts it with every group of workers.
    The other one frees the workers' resources if the controller dies, which :func:`remove_orphaned_placement_groups`
    does; it asks Ray's dashboard every second whether the controller is alive, and a local Ray has no dashboard.
    A local Ray has no autoscaler either, so the one that tells it what is wanted is of use to an elastic group alone,
    which learns from it for how many workers there is room. There is no public switch
    (train/v2/api/data_parallel_trainer.py, train/v2/_internal/callbacks/datasets.py and placement_group_callback.py,
    train/v2/_internal/execution/scaling_policy/scaling_policy.py).
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    own: Any = trainer
    run = own._initialize_and_run_controller

    def run_controller(scaling_policy: Any, **others: Any) -> Any:
        if isinstance(scaling_policy, FixedScalingPolicy) and started_processes():
            own_policy: Any = scaling_policy  # these travel to the controller with it
            own_policy.after_controller_start = own_policy._maybe_send_resource_request = _nothing
        return run(scaling_policy=scaling_policy, **others)

    own._initialize_and_run_controller = run_controller
    create = own._create_default_callbacks
    own._create_default_callbacks = lambda: [
        callback
        for callback in create()
        if not isinstance(callback, DatasetsCallback | PlacementGroupCleanerCallback)
    ]


class _Answers:
    """In the place of a method of an actor."""

    def remote(self, *_: Any) -> Any:
        import ray

        return ray.put(True)


class _NoBarrier:
    """In the place of the actor at which the workers of a group wait for each other; the workers are handed it too."""

    set_required_ranks = _Answers()


def start_no_barrier() -> None:
    """Has the controller in this process start no actor at which its workers wait for each other.

    It would take 2 s of a core at each start of a worker group. Workers of Ray Train meet there in
    ``ray.train.report``, ``ray.train.get_preemption_info`` and ``ray.train.collective``, which ours do not call. There
    is no public switch (train/v2/_internal/execution/worker_group/worker_group.py and state.py).
    """
    from ray.train.v2._internal.execution.worker_group import state, worker_group

    group: Any = worker_group
    group.SynchronizationActor = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=_no_barrier))
    own: Any = state
    own._shutdown_sync_actor = _nothing


def _no_barrier(**_: Any) -> _NoBarrier:
    return _NoBarrier()


def is_death(error: Exception) -> bool:
    """Whether an error in the status of a worker group says that the worker's process died or does not answer.

    The public ``WorkerGroupError`` holds the same errors, but only after the group has ended.
    """
    from ray.train.v2._internal.exceptions import (
        WorkerHealthCheckFailedError,
        WorkerHealthCheckTimeoutError,
    )

    return isinstance(error, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError)


def preempted_ranks() -> list[int]:
    """Workers whose machines are about to be taken back, as far as this worker of Ray Train knows.

    The public ``ray.train.get_preemption_info`` is a barrier of all workers at every call; this reads what it returns.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return list(info.preempted_ranks) if info else []


def reservation_name(run_id: str) -> str:
    """Under which name the controller of a Ray Train run reserves machines for elastic workers.

    train/v2/_internal/execution/scaling_policy/scaling_policy.py. There is no public way to reserve or release.
    """
    return f"train-{run_id}"


def cancel_reservation(name: str) -> None:
    """Releases the machines that a controller has reserved; if it was killed, they stay reserved for minutes.

    The actor is of data/_internal/cluster_autoscaler/default_autoscaling_coordinator.py.
    """
    import ray

    # ValueError: there is no such actor, and nothing is reserved.
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.cancel_request.remote(requester_id=name), timeout=10)


TRAIN_HEALTH_CHECK_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
TRAIN_PREEMPTION_POLL_INTERVAL = "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"
TRAIN_GROUP_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Environment variables of train/v2/_internal/constants.py; ``RunConfig`` has no fields for them."""

# --- nodes and placement groups -------------------------------------------------------------------


def free_resources() -> dict[str, dict[str, float]]:
    """{node id: {resource: amount that is free}}. The public ``available_resources`` is the sum over all nodes."""
    from ray._private.state import state

    free: dict[str, dict[str, float]] = state.available_resources_per_node()
    return free


def is_being_drained() -> bool:
    """Whether the node of this process is about to be taken back. Publicly a node is up or gone (_private/state.py)."""
    import ray
    from ray._private.state import state

    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()


def placed_bundles(job_id: str) -> Iterator[Mapping[str, float]]:
    """The resources of each bundle that has a place, of one job's placement groups."""
    for group in _placement_groups(job_id):
        if group.state == group.CREATED:
            yield from (bundle.unit_resources for bundle in group.bundles)


def remove_orphaned_placement_groups(job_id: str) -> None:
    """Frees the resources of workers whose controller died; Ray keeps them reserved until the job ends."""
    for group in _placement_groups(job_id):
        if group.creator_actor_dead and group.state != group.REMOVED:
            _remove(group)


def remove_placement_groups_of_this_actor() -> None:
    """Frees what a controller's workers hold, and ends them.

    Where a worker dies after Ray Train has recorded the state of its group, but before the group has started, the
    controller forgets the others and their placement group: no later group of it finds that place
    (train/v2/_internal/execution/worker_group/worker_group.py, ``_start``).
    """
    import ray

    context = ray.get_runtime_context()
    actor = bytes.fromhex(context.get_actor_id() or "")
    for group in _placement_groups(context.get_job_id()):
        if group.creator_actor_id == actor and group.state != group.REMOVED:
            _remove(group)


def _remove(group: Any) -> None:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def _placement_groups(job_id: str) -> Iterator[Any]:
    """The placement groups of a job, as messages of protobuf, which have no types (core/generated/gcs_pb2.py).

    The public ``placement_group_table`` does not say whose a group is, and jobs of the same shape may share a cluster.
    """
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    tables: Any = gcs_pb2
    for table in state._connect_and_get_accessor().get_placement_group_table():
        group = tables.PlacementGroupTableData.FromString(table)
        if group.creator_job_id == bytes.fromhex(job_id):
            yield group


def end_controllers(job_id: str) -> None:
    """Kills the controllers of a job's TorchTrainers; their workers end with them.

    There is no public way: ``fit`` keeps the handle of its controller to itself, and gives it no name
    (train/v2/api/data_parallel_trainer.py).
    """
    from ray import ActorID, JobID
    from ray._private.state import state
    from ray._private.worker import global_worker

    core: Any = vars(global_worker)["core_worker"]
    actors: Any = state.actor_table(None, JobID.from_hex(job_id))
    for actor in actors.values():
        if actor["ActorClassName"] == "TrainController" and actor["State"] != "DEAD":
            core.kill_actor(ActorID.from_hex(actor["ActorID"]), True)


# --- trials of Ray Tune that have ended -----------------------------------------------------------


def release(trial: Trial) -> None:
    """Frees what Tune keeps of an ended trial until the last one has ended, for a result that nobody reads here.

    That is 70 kB: its configuration, its last report, statistics of each metric, and what it asked of the cluster
    (tune/experiment/trial.py, tune/trainable/metadata.py). Its state and its errors stay.
    """
    own: Any = trial
    kept = own.run_metadata
    for values in (
        *(own.config, own.evaluated_params),
        *(kept.last_result, kept.metric_analysis, kept.metric_n_steps),
    ):
        values.clear()
    own.placement_group_factory = own._default_placement_group_factory = own._default_result_or_future = None
    own.experiment_tag = ""
    kept.invalidate_cache()
    own.invalidate_json_state()


def forget_failures(trial: Trial) -> None:
    """Has a trial's failures so far not count towards ``FailureConfig(max_failures)``.

    Tune counts over all of a trial's time, however much progress it made between two failures
    (tune/experiment/trial.py, ``should_recover``).
    """
    own: Any = trial
    own.run_metadata.num_failures = 0


# --- metrics --------------------------------------------------------------------------------------


def metrics_interval_seconds() -> float:
    """How often this process hands its metrics to the node's agent, which keeps a gauge for two of these intervals.

    It is set by an environment variable. ``ray.util.metrics`` does not tell it. No less than a second
    (_private/telemetry/open_telemetry_metric_recorder.py, src/ray/stats/stats.h).
    """
    import ray

    return max(1.0, ray._config.metrics_report_interval_ms() / 1000)


# --- the processes of a local Ray -----------------------------------------------------------------


def started_processes() -> list[subprocess.Popen[bytes]]:
    """The processes that ``ray.init`` started itself (_private/worker.py, _private/node.py). Publicly unknown."""
    from ray._private import worker

    node: Any = worker._global_node
    if node is None:
        return []
    return [described.process for alike in node.all_processes.values() for described in alike]


RAYLET, GCS_SERVER = "raylet", "gcs_server"
"""Names of two of these processes (_private/ray_constants.py): the node's, and the head's."""


def own_servers() -> dict[str, subprocess.Popen[bytes]]:
    """{name: process} of those that ``ray.init`` started and without which no Ray is left (_private/node.py)."""
    from ray._private import worker

    node: Any = worker._global_node
    if node is None:
        return {}
    return {name: node.all_processes[name][0].process for name in (RAYLET, GCS_SERVER)}


def logs_folder() -> Path:
    """Where the processes of this Ray on this machine keep their logs (_private/node.py)."""
    from ray._private import worker

    node: Any = worker._global_node
    return Path(node.get_logs_dir_path())


@contextlib.contextmanager
def without_attendants() -> Generator[None]:
    """Within it ``ray.init`` starts a Ray without three processes that have nothing to do on one machine.

    They are the autoscaler's monitor, the monitor that sends workers' output to the driver (``log_to_driver=False``
    still starts it), and the dashboard's server (``include_dashboard=False`` starts it without its pages, and waits for
    it). Together they take 3 s of a core. Publicly only ``ray start`` has a switch, for one of the three
    (_private/node.py). Nor does this process import what the dashboard needs, for 0.4 s, to see whether it is there:
    ``ray[default]`` brings it (_private/utils.py).
    """
    from ray._private import utils
    from ray._private.node import Node
    from ray.experimental import internal_kv

    def connect(node: Any, **_: Any) -> None:
        # The dashboard's start also opens the key-value store, which ray.init uses next.
        internal_kv._initialize_internal_kv(node.get_gcs_client())

    replaced: list[tuple[Any, str, Any]] = [
        (Node, "start_monitor", _nothing),
        (Node, "start_log_monitor", _nothing),
        (Node, "start_api_server", connect),
        (utils, "get_dashboard_dependency_error", _nothing),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, replacement in replaced:
            setattr(owner, name, replacement)
        yield
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


def _nothing(*_: Any) -> None:
    pass


STARTUP_TIMEOUT = "timed out during startup"
"""Part of the message when Ray's processes are late (_private/node.py, ``Node.__init__``), a plain Exception."""

HEAD_TIMEOUT, HEAD_TIMEOUT_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
"""The variable that says how long a process waits for a head that has gone before it ends itself, and its default
(src/ray/common/ray_config_def.h)."""

LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket below the temporary folder (_private/node.py), with Linux' largest process id."""

# Read by Ray and Tune when they are imported or started, and named in no public signature. A study prints its own
# table, keeps its own journal and handles Ctrl-C itself.
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The final report of a trial that diverged has no accuracy.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune's own state, of which nothing is read: 20 kB for each trial, written again and again. Never, in seconds.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # When a driver connects, a node would start a process for each of its cores, and each takes 1.3 s of a core to
    # start. No trial ever runs in one: Tune gives trials an environment (tune/execution/class_cache.py), which needs
    # processes of their own. Read by the node's process, so it is for a local Ray (src/ray/common/ray_config_def.h).
    "RAY_prestart_worker_first_driver": "0",
}

LOCAL_SETTINGS = {
    # A process that asks whether the machine is taken back: it takes 2 s of a core for each start of a worker group. A
    # Ray that ends with its driver is never drained (train/v2/_internal/constants.py).
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Of a Ray on this machine alone, and only while it is up: the same process may connect to a cluster later."""


def count_no_callbacks() -> None:
    """Has Tune not count, for Ray's usage statistics, which of its own callbacks a run has.

    The statistics are off, and Tune counts all the same: it imports MLflow and three other trackers for it, which takes
    a second before the first trial (air/_internal/usage.py).
    """
    from ray.air._internal import usage

    own: Any = usage
    own.tag_callbacks = _nothing


# --- asking a head before Ray is imported ----------------------------------------------------------
# ``ray.init`` waits minutes for a head that has ended.

# src/ray/protobuf/gcs_service.proto.
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
READ_VALUE = "/ray.rpc.InternalKVGcsService/InternalKVGet"
# Numbers of fields of CheckAliveReply and InternalKVGetReply.
CHECK_ALIVE_RAY_VERSION, CHECK_ALIVE_RAYLET_ALIVE = 2, 3
READ_VALUE_VALUE = 2

METADATA_KEY, METADATA_NAMESPACE = b"CLUSTER_METADATA", b"cluster"
"""Where the head keeps its versions, as JSON (_common/usage/usage_constants.py, _private/ray_constants.py)."""
METADATA_PYTHON_VERSION = "python_version"
METADATA_OF_A_PROGRAM = b'"ray_init_cluster": true'
"""In the metadata of a Ray that ``ray.init`` started, and that ends with its program (_common/usage/usage_lib.py)."""


def sends_token() -> bool:
    """Whether this process shows a token to the cluster that it connects to.

    ``RAY_AUTH_MODE`` says so, and is read once, when Ray is imported (_private/authentication/authentication_utils.py).
    """
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


CURRENT_CLUSTER_FILE = "ray/ray_current_cluster"
"""Below the temporary folder: the address of the last ``ray start`` (_common/utils.py)."""

RAYLET_HEAD_ARGUMENT, RAYLET_NODE_ARGUMENT = "--gcs-address", "--node_id"
RAYLET_SOCKET_ARGUMENT = "--raylet_socket_name"
"""Arguments of a node's raylet process that name its head, its own id, and the socket at which drivers reach it
(_private/services.py). A driver that may not write to the socket is aborted (src/ray/core_worker/core_worker.cc)."""

# --- a submitted job ------------------------------------------------------------------------------

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What the job supervisor tells a job of itself (dashboard/modules/job/job_supervisor.py). The public
``ray.get_runtime_context`` knows it only after ``ray.init``."""
JOB_SUBMISSION_ID = "job_submission_id"
"""A key in its metadata (dashboard/modules/job/common.py)."""
