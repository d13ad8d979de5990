"""In the image, on a node, the same comes out as natively."""

import promise


def test_train_leaves_the_native_adapter(cluster, checkout, golden):
    number = checkout.sbatch("slurm/train.sh")
    job = cluster.wait(number)
    assert job["JobState"] == "COMPLETED", cluster.log(number)
    promise.check_finished(checkout.path, golden, most_redone=0)
