"""The end of a job's time, three times over."""

import promise
import pytest
from rows.jobs import check_store

# So much slower is each of the 80 micro batches, that a training outlives three warnings.
SECONDS = 1.6


@pytest.mark.long
def test_a_time_limit_costs_nothing(cluster, checkout, golden):
    checkout.slow_down(SECONDS)
    number = checkout.sbatch("--time=60 slurm/train.sh")
    for start in (1, 2, 3):
        checkout.started(start, number)
        checkout.trained(checkout.steps_begun()[-1] + 1, number)
        # Slurm warns when 5 minutes or fewer are left (train.sh), and looks every 30 seconds.
        minutes = int(cluster.job(number)["RunTime"].split(":")[1]) + 3
        limit(cluster, number, minutes)
        cluster.until_restarted(number, start)
        limit(cluster, number, 60)
    job = cluster.wait(number)
    log = cluster.log(number)
    assert job["JobState"] == "COMPLETED", log
    assert job["Restarts"] == "3", log
    steps = checkout.steps_begun()
    assert len(steps) == 4
    assert steps == sorted(set(steps)), f"the starts began at {steps}"
    promise.check_finished(checkout.path, golden, most_redone=0)
    check_store(checkout.path / "mlflow.db", golden)
    # One log, in which each start appended what it did.
    [path] = (checkout.path / "slurm/logs").glob("*.log")
    assert path.name == f"siftune-train-{number}.log"
    for start in range(1, len(steps) + 1):
        assert f"job {number}, start {start}, on" in log


def limit(cluster, number: int, minutes: int) -> None:
    cluster.as_root("scontrol", "update", f"jobid={number}", f"timelimit={minutes}")
