"""The checks just before a study runs: the cores of this machine, the nodes of the cluster, and the journal."""

from __future__ import annotations

from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.errors import UserError
from nfnet_ray.processor import available_cpus
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.wording import count
from studies.running.execution.study_run import StudyRun
from studies.running.runner import WorkerDemand


def check_cores(run: StudyRun, demand: WorkerDemand) -> None:
    """Raises UserError, before Ray is started here, if this machine does not have enough cores."""
    least, cpus, here = demand.min_workers or demand.workers, demand.cpus or 1, available_cpus()
    if least * cpus > here:
        raise UserError(
            f"{least} x ({cpus} CPU) do not fit: this machine has {count(here, 'core')} for it; ask for fewer with "
            f"{run.runner.workers_flag} or --cpus-per-worker"
            + (", or resume it on a machine that has them" if run.progress.started else "")
        )


def check_nodes(run: StudyRun, address: str | None, resources: Resources, worker: WorkerResources) -> None:
    """Checks every node that may train, or this machine if there is no ``address``.

    Raises UserError if a node does not have this machine's data, if it has GPUs that torch cannot use, or if the
    workers do not fit on this machine.
    """
    from nfnet_ray.cluster.connection.nodes import check_gpus, check_nodes
    from nfnet_ray.cluster.connection.resources import check_workers_fit
    from nfnet_ray.command_line.progress import bytes_on_stderr

    if address is None:  # its data has been checked, and no node will be added
        check_workers_fit(resources, worker, run.runner.workers_flag)
        check_gpus(worker)
        return
    check_gpus(worker)
    check_nodes(run.data, worker, verify=run.verifies, progress=bytes_on_stderr)


def check_journal_is_as_it_was(run: StudyRun) -> None:
    """Raises UserError if another process has added to the journal since this one read it.

    Connecting to Ray takes seconds. In this time a driver that was being stopped may have recorded its last events.
    """
    if any(read_events(run.directory / JOURNAL_FILE, run.progress.journal_bytes)):
        raise UserError(
            f"another process has continued {run.study.name} meanwhile: give the same command again"
        )
