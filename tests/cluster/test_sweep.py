"""Many jobs for one question: an array, each task in a clone of its own."""

import re
import sqlite3

import promise
import pytest
import workspace
from cluster import OVER, until

NUM = 8


@pytest.mark.long
def test_eight_of_eight_tasks_finish_and_are_brought_home(cluster, checkout, golden):
    # The first line is what the golden training is.
    rates = [0.01 / (task + 1) for task in range(NUM)]
    lines = [" ".join([*workspace.OVERRIDES, f"sft.learning_rate={rate!r}"]) for rate in rates]
    (cluster.home / "rates.txt").write_text("".join(f"{line}\n" for line in lines))
    sweep = f"cd {checkout.name} && slurm/sweep.sh ~/rates.txt sft"
    said = cluster.ok(sweep, SIFTUNE_SITE="test", SBATCH_PARTITION="many")
    array, collect = map(int, re.findall(r"job (\d+)", said))
    cluster.note(collect)

    def is_over() -> bool:
        return cluster.job(collect)["JobState"] in OVER

    until(is_over, "the results are collected", 540)
    logs = {path.name: path.read_text() for path in (checkout.path / "slurm/logs").glob("*.log")}
    assert len([name for name in logs if f"-{array}_" in name]) == NUM
    assert cluster.job(collect)["JobState"] == "COMPLETED", logs
    clones = [checkout.path / f"work/sweeps/rates/{task + 1}" for task in range(NUM)]
    adapters = [promise.describe(clone / "models/sft") for clone in clones]
    assert adapters[0] == golden["adapter"]
    assert len({tuple(adapter.items()) for adapter in adapters}) == NUM
    refs = "for-each-ref --format='%(refname:lstrip=-1)' refs/exps"
    listed = cluster.ok(f"git -C {checkout.name} {refs}")
    assert set(listed.split()) >= {f"rates-{task + 1}" for task in range(NUM)}
    with sqlite3.connect(checkout.path / "mlflow.db") as store:
        query = "SELECT status, count(*) FROM runs WHERE name = 'sft' GROUP BY status"
        assert store.execute(query).fetchall() == [("FINISHED", NUM)]
