"""The cluster takes a node away: to another job, or since it broke."""

import promise
import pytest
from workspace import SAVE_EVERY

# What one of them requeues, Slurm may offer the node that the other switches off.
pytestmark = pytest.mark.one_at_a_time("takes nodes away")


def test_a_job_that_is_pushed_aside_goes_on_later(cluster, checkout, golden):
    checkout.slow_down(0.5)
    number = checkout.sbatch("--partition=rough --exclusive slurm/train.sh")
    checkout.trained(7, number)
    node = cluster.job(number)["NodeList"]
    urgent = cluster.sbatch(
        f"--partition=urgent --nodelist={node} --output=/dev/null --wrap 'sleep 5'"
    )
    assert cluster.wait(urgent)["JobState"] == "COMPLETED"
    job = cluster.wait(number)
    log = cluster.log(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
    steps = checkout.steps_begun()
    assert len(steps) == 2, log
    assert steps[1] >= 7
    promise.check_finished(checkout.path, golden, most_redone=0)


def test_a_dead_node_costs_one_save_interval_at_most(cluster, checkout, golden):
    checkout.slow_down(0.5)
    number = checkout.sbatch("--partition=rough slurm/train.sh")
    checkout.trained(12, number)
    node = cluster.job(number)["NodeList"]
    cluster.switch(node, "off")
    try:
        cluster.as_root("scontrol", "update", f"node={node}", "state=down", "reason=plug")
        job = cluster.wait(number)
    finally:
        cluster.switch(node, "on")
        cluster.as_root("scontrol", "update", f"node={node}", "state=resume")
    log = cluster.log(number)
    # Slurm may offer it the dead node once more, where nothing of it begins.
    assert job["JobState"] == "COMPLETED", log
    assert job["NodeList"] not in (node, "(null)")
    begun = checkout.steps_begun()
    assert len(begun) == 2, log
    assert begun[1] >= 10
    promise.check_finished(checkout.path, golden, most_redone=SAVE_EVERY)
