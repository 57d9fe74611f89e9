#!/usr/bin/env bash
# What a worker pod does when Kubernetes ends it (preStop): tells Ray that this node is about to be lost, then waits until
# no task or actor is left here, DRAIN_SECONDS at most. Training sees the notice, saves a checkpoint and resumes elsewhere.
set -uo pipefail

seconds=${DRAIN_SECONDS:-90}
end=$((SECONDS + seconds))
timeout "$seconds" ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "Kubernetes ends pod ${HOSTNAME:-}" --deadline-remaining-seconds "$seconds" ||
    echo "leave_node: Ray did not take the notice; waiting all the same" >&2
# Ray names a worker process after what it runs; one that runs nothing is ray::IDLE.
while [ "$SECONDS" -lt "$end" ] && pgrep --full '^ray::([^I]|I[^D])' >/dev/null; do
    sleep 1
done
