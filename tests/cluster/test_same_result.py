"""In the image, on a node, the same comes out as natively."""

import itertools
import json
import math
import re
import shutil
import sys

import prepared
import promise
import pytest
import workspace
from prepared import natively
from rows.jobs import check_store

# Dropout draws other numbers in each process.
TOLERANCE = 1e-5


def test_train_leaves_the_native_adapter(cluster, checkout, golden):
    number = checkout.sbatch("slurm/train.sh")
    assert cluster.wait(number)["JobState"] == "COMPLETED", cluster.log(number)
    promise.check_finished(checkout.path, golden, most_redone=0)
    check_store(checkout.path / "mlflow.db", golden)


@pytest.mark.long
def test_the_whole_pipeline_leaves_the_native_files(cluster, checkout, tiny_model):
    # Its tokenizer is one that llama.cpp's converter knows, as gguf_check wants it.
    shutil.copytree(tiny_model, checkout.path / "work/base")
    preset = checkout.path / "conf/model/tiny.yaml"
    text = re.sub(r"source: .*", "source: ./work/base", preset.read_text())
    preset.unlink()  # a link
    preset.write_text(text)
    compose = [sys.executable, "-P", "-m", "siftune.presets", *workspace.OVERRIDES]
    natively(cluster.home, checkout.name, *compose)
    native = workspace.copy(checkout.path, cluster.home / "native_pipeline")
    prepared.own(checkout.path)
    number = checkout.sbatch("slurm/repro.sh")
    # The registry is a store; the job has the one in its folder.
    natively(cluster.home, native.name, "env", "--unset=MLFLOW_TRACKING_URI", "dvc", "repro")
    assert cluster.wait(number)["JobState"] == "COMPLETED", cluster.log(number)
    for name in ("models/sft", "models/merged", "models/gguf"):
        assert promise.describe(checkout.path / name) == promise.describe(native / name)
    image = json.loads((checkout.path / prepared.LOCK).read_text())["cpu"]["sha256"]
    assert image in (checkout.path / "report/card.md").read_text()
    # In a chain there is nothing left to do, and each waits for the one before all the same.
    jobs = [cluster.wait(number) for number in checkout.chain()]
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 3
    for before, after in itertools.pairwise(jobs):
        assert before["EndTime"] <= after["StartTime"]


def test_what_waits_for_a_failed_training_leaves_the_queue(cluster, checkout):
    train, *others = checkout.chain("-S", "sft.lora.rank=0")
    assert (cluster.wait(train)["ExitCode"], "sft.lora.rank" in cluster.log(train)) == (
        "78:0",
        True,
    )
    assert [cluster.wait(number)["JobState"] for number in others] == ["CANCELLED"] * 2


def test_two_nodes_train_as_one_process(cluster, checkout):
    compose = [sys.executable, "-P", "-m", "siftune.presets", *workspace.OVERRIDES]
    natively(cluster.home, checkout.name, *compose, "sft.lora.dropout=0.0")
    alone = workspace.copy(checkout.path, cluster.home / "one_process")
    natively(cluster.home, alone.name, "dvc", "repro", "sft")
    prepared.own(checkout.path)
    number = checkout.sbatch("--nodes=2 slurm/train.sh")
    job = cluster.wait(number)
    assert job["JobState"] == "COMPLETED", cluster.log(number)
    assert job["NumNodes"] == "2"
    two, one = promise.outcome(checkout.path)["history"], promise.outcome(alone)["history"]
    assert len(two) == workspace.NUM_STEPS
    for step, row in one.items():
        for name, value in row.items():
            assert math.isclose(two[step][name], value, rel_tol=TOLERANCE), (step, name)
