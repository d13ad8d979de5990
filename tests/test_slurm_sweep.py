"""A sweep's clones and tasks, what is brought home, and the list of jobs; with stand-ins."""

import shutil
import subprocess
from pathlib import Path

import pytest
import stand_ins
from stand_ins import arguments, in_job, run

LINES = (
    "sft.learning_rate=1e-4 'sft.lora.targets=[a, b]'\n\nx=$(touch${IFS}evil) y=`touch${IFS}evil`\n"
)


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    return stand_ins.checkout(tmp_path, monkeypatch)


@pytest.fixture
def checkout(clone) -> Path:
    """The clone as a repository, with what a sweep copies and commits."""
    for name in ("conf", "src", "train", "eval", "export", ".dvc", "containers"):
        (clone / name).mkdir(exist_ok=True)
        (clone / name / "file").touch()
    (clone / "params.yaml").write_text("a: 1\n")
    (clone / "dvc.yaml").write_text("stages: {}\n")
    (clone / ".gitignore").write_text(
        "work/\nslurm/sites/mine.sh\n.dvc/cache\n.dvc/config.local\n*.sif\nimage.lock\n"
    )
    git(clone, "init", "-q")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "start")
    (clone / "slurm/sites/mine.sh").write_text("SBATCH_PARTITION=p\n")
    (clone.parent / "rates.txt").write_text(LINES)
    return clone


def git(folder: Path, *command: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", "-C", folder, *identity, *command], check=True, capture_output=True, text=True
    ).stdout


def task(checkout: Path, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of the array, as Slurm runs it."""
    array = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "11"}
    return in_job(checkout, "sweep.sh", "work/sweeps/rates", *arguments, **array)


def test_each_line_gets_a_clone_that_shares_the_cache(checkout):
    done = run("slurm/sweep.sh", "../rates.txt", "sft")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("siftune: job 12 has 2 tasks; job 13 then brings"), done.stdout
    assert (checkout.parent / "submitted").read_text().splitlines() == [
        "--parsable --array=1-2 slurm/sweep.sh work/sweeps/rates sft",
        "--parsable --dependency=afterany:12 slurm/collect.sh rates",
    ]
    clones = [checkout / f"work/sweeps/rates/{number}" for number in (1, 2)]
    for one in clones:
        assert git(one, "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")
        assert f"dir = {checkout}/.dvc/cache" in (one / ".dvc/config.local").read_text()
        assert (one / "slurm/sites/mine.sh").exists()
        assert (one / "containers/siftune-cpu.sif").read_bytes() == b"image"
    # Again: what is there stays.
    (clones[0] / "mine").touch()
    assert run("slurm/sweep.sh", "../rates.txt", "sft").returncode == 0
    assert (clones[0] / "mine").exists()


def test_a_cache_elsewhere_is_used_by_the_clones_too(checkout):
    (checkout / ".dvc/config.local").write_text("[cache]\n    dir = /shared\n")
    assert run("slurm/sweep.sh", "../rates.txt").returncode == 0
    config = (checkout / "work/sweeps/rates/2/.dvc/config.local").read_text()
    assert config == "[cache]\n    dir = /shared\n"


def test_a_task_sets_its_own_line_and_evaluates_nothing(checkout):
    run("slurm/sweep.sh", "../rates.txt")
    for number, values in (
        (1, ["sft.learning_rate=1e-4", "sft.lora.targets=[a, b]"]),
        (2, ["x=$(touch${IFS}evil)", "y=`touch${IFS}evil`"]),
    ):
        done = task(checkout, number, "sft")
        assert done.returncode == 0, done.stderr
        passed = arguments(checkout, "apptainer")
        assert passed[passed.index("siftune") + 1 :] == [
            "repro", "--name", f"rates-{number}", "-S", values[0], "-S", values[1], "sft",
        ]  # fmt: skip
        assert f"{checkout}/work/sweeps/rates/{number}" == passed[passed.index("--pwd") + 1]
    assert not list(checkout.rglob("evil"))


def test_a_task_that_failed_says_to_submit_the_sweep_again(checkout, monkeypatch):
    run("slurm/sweep.sh", "../rates.txt")
    monkeypatch.setenv("CODE", "1")
    done = task(checkout, 1)
    assert done.returncode == 1
    assert "To go on from the last checkpoint: slurm/sweep.sh with the same file" in done.stderr


def test_a_task_with_a_result_is_not_run_again_and_collect_brings_it(checkout):
    run("slurm/sweep.sh", "../rates.txt")
    first = checkout / "work/sweeps/rates/1"
    git(first, "update-ref", "refs/exps/aa/bb/rates-1", "HEAD")
    (first / "work/runs/one").mkdir(parents=True)
    (first / "work/runs/one/metrics.jsonl").write_text("{}\n")
    assert "rates-1 is done" in task(checkout, 1).stderr
    assert not (checkout.parent / "apptainer.arguments").exists()
    done = run("slurm/collect.sh", "rates")
    assert done.returncode == 1
    assert "no result of the tasks 2:" in done.stderr
    assert "refs/exps/aa/bb/rates-1" in git(checkout, "for-each-ref")
    assert (checkout / "work/runs/one/metrics.jsonl").read_text() == "{}\n"
    assert arguments(checkout, "apptainer")[-1] == "sync"
    git(checkout / "work/sweeps/rates/2", "update-ref", "refs/exps/aa/bb/rates-2", "HEAD")
    assert run("slurm/collect.sh", "rates").returncode == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda here: (here / "params.yaml").write_text("a: 2\n"), "git commit first"),
        (lambda here: (here.parent / "rates.txt").write_text(" \n\n"), "one line for each task"),
        (lambda here: (here.parent / "rates.txt").unlink(), "one line for each task"),
        (
            lambda here: shutil.copytree(here / "src", here / "work/sweeps/rates"),
            "is of other lines than",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_before_submission(spoil, message, checkout):
    spoil(checkout)
    done = run("slurm/sweep.sh", "../rates.txt")
    assert done.returncode == 78
    assert message in done.stderr
    assert not (checkout.parent / "sbatch.arguments").exists()


def test_a_file_whose_name_is_no_name_is_refused(checkout):
    (checkout.parent / "rates.txt").rename(checkout.parent / "a b;c.txt")
    done = run("slurm/sweep.sh", "../a b;c.txt")
    assert done.returncode == 78
    assert "it must be of letters, digits" in done.stderr


def test_the_list_shows_why_a_job_waits_how_far_it_is_and_its_gpus(clone):
    (clone / "slurm/logs/siftune-train-7.log").write_text(
        "step 1/9  train_loss 4\nother\nstep 2/9  train_loss 3  left 5 s\na step back\n"
    )
    nvidia = clone.parent / "bin/nvidia-smi"
    nvidia.write_text("#!/bin/sh\necho H100, 97 %, 70000 MiB, 81559 MiB\n")
    nvidia.chmod(0o755)
    queue = (
        f"7|siftune-train|RUNNING|1:00|4-00:00:00|1|n1|{clone}\n"
        f"8_[1-9]|siftune-sweep|PENDING|0:00|1:00:00|2|(QOSMaxJobs)|{clone}\n"
    )
    lines = run("slurm/status.sh", QUEUE=queue).stdout.splitlines()
    assert lines[0].split()[:2] == ["JOB", "NAME"]
    assert lines[1].split() == ["7", "siftune-train", "RUNNING", "1:00", "4-00:00:00", "1", "n1"]
    assert lines[2:4] == [
        "    step 2/9  train_loss 3  left 5 s",
        "    GPU: H100, 97 %, 70000 MiB, 81559 MiB",
    ]
    assert lines[4].split()[0] == "8_[1-9]"
    assert lines[4].endswith("(QOSMaxJobs)")
    assert len(lines) == 5
    assert "--jobid=7" in arguments(clone, "srun")
