"""What SLURM does with jobs, where the workflow relies on it."""

from __future__ import annotations

import pytest

from tests.slurm.cluster import NODES, Cluster, wait_until

pytestmark = pytest.mark.slurm
# Says each SIGTERM with the second it came in; goes on, so that what follows the signal is seen, too.
SAYS_SIGNALS = "trap 'echo SIGTERM $SECONDS' TERM; echo started; while sleep 0.2; do :; done"


@pytest.mark.parametrize("node", NODES)
def test_a_job_runs_on_each_node(cluster: Cluster, node: str) -> None:
    job = cluster.submit("echo $SLURMD_NODENAME", f"--nodelist={node}")
    assert cluster.wait_for(job, "COMPLETED") and cluster.output(job).split() == [node]
