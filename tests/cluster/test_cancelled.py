"""What scancel means: it is over, or only saved."""

import re

import promise


def test_scancel_is_the_end_and_leaves_nothing_partial(cluster, checkout, golden):
    checkout.slow_down(0.5)
    number = checkout.sbatch("slurm/train.sh")
    checkout.trained(7, number)
    jobs = cluster.ok(f"cd {checkout.name} && slurm/status.sh")
    assert re.search(rf"^{number} +siftune-train +RUNNING .*\n    step \d+/40 ", jobs, re.M), jobs
    cluster.ok(f"scancel {number}")
    job = cluster.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    assert not (checkout.path / "models/sft").exists()
    assert not (checkout.path / "work/lock.json").exists(), cluster.log(number)
    saved = promise.newest_whole(promise.checkpoints(checkout.path))
    assert saved >= 7, cluster.log(number)
    assert "to go on: sbatch slurm/train.sh sft" in cluster.log(number)
    again = checkout.sbatch("slurm/train.sh")
    assert cluster.wait(again)["JobState"] == "COMPLETED", cluster.log(again)
    assert checkout.steps_begun() == [0, saved]
    promise.check_finished(checkout.path, golden, most_redone=0)


def test_a_signal_by_hand_saves_and_queues_again(cluster, checkout, golden):
    checkout.slow_down(0.5)
    number = checkout.sbatch("slurm/train.sh")
    for count in (1, 2, 3):
        checkout.trained(7 * count, number)
        cluster.ok(f"scancel --signal=USR1 --batch {number}")
    job = cluster.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "3"), cluster.log(number)
    steps = checkout.steps_begun()
    assert len(steps) == 4
    assert steps == sorted(set(steps))
    promise.check_finished(checkout.path, golden, most_redone=0)
