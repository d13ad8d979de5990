"""A job's log is printed while it grows, until Slurm says that the job is over."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siftune import logs
from siftune.stage import UserError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    logs.FOLDER.mkdir(parents=True)
    for job in ("7", "12", "12_3"):
        (logs.FOLDER / f"siftune-train-{job}.log").write_text(f"log of {job}\n")


@pytest.mark.parametrize("job", ["12", "12_3"])
def test_the_log_of_a_job_that_is_over_is_printed_whole(job, capsys, monkeypatch):
    monkeypatch.setattr(logs.lock, "is_job_alive", lambda asked: False if asked == job else None)
    logs.follow(job)
    assert capsys.readouterr().out == f"log of {job}\n"


def test_what_is_added_is_printed_until_the_job_is_over():
    squeue = Path("bin/squeue")
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\n[ -e over ] || echo RUNNING\n")
    squeue.chmod(0o755)
    code = "from siftune import logs\nlogs.SECONDS_BETWEEN_QUESTIONS = 0.5\nlogs.follow('7')\n"
    path = f"{squeue.parent.resolve()}:{os.environ['PATH']}"
    command = [sys.executable, "-P", "-c", code]
    with subprocess.Popen(
        command, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "log of 7\n"
        with (logs.FOLDER / "siftune-train-7.log").open("a") as file:
            file.write("step 5/10\n")
        assert process.stdout.readline() == "step 5/10\n"
        time.sleep(0.6)
        assert process.poll() is None
        Path("over").touch()
        assert process.wait(timeout=30) == 0


def test_a_job_without_a_log_is_said():
    with pytest.raises(UserError, match=r"no log of job 8. Jobs that have one: .*12_3.*status\.sh"):
        logs.follow("8")
