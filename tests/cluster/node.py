"""One node of Ray in the foreground: ``python node.py {FIELD OF RayParams: VALUE}``, as JSON.

That is ``ray start --block`` without what nobody asks here, for 4 s of a core less on a head and 1 s on another node:
the import of all of Ray's commands, the server of Ray's client, and the dashboard's server, which
``--include-dashboard=false`` starts without its pages. ``tests/deploy/test_job_submission.py`` starts a head by the
command itself.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ray._private import services
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.experimental import internal_kv


def _open_store(node: Any, **_: Any) -> None:
    """In the place of the dashboard's start, which also opens the key-value store."""
    internal_kv._initialize_internal_kv(node.get_gcs_client())


def main(fields: dict[str, Any]) -> int:
    """Prints the cluster's address, and returns when a process of the node has ended; the others end with this one."""
    Node.start_api_server = _open_store  # type: ignore[method-assign]
    # As the command does: the others ask for the head at this machine's own address, whatever it is given.
    if "node_ip_address" in fields:
        fields["node_ip_address"] = services.resolve_ip_for_localhost(fields["node_ip_address"])
    if "gcs_address" in fields:
        fields["gcs_address"] = services.canonicalize_bootstrap_address_or_die(fields["gcs_address"])
    # Workers take any port that is free. By default each node gives its own those from 10002 on, and here all nodes are
    # on one machine.
    params = RayParams(min_worker_port=0, max_worker_port=0, include_log_monitor=False, **fields)
    node = Node(params, head="gcs_address" not in fields, shutdown_at_exit=True, spawn_reaper=True)
    print(node.address, flush=True)
    while not node.dead_processes():
        time.sleep(1)
    return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
