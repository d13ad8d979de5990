"""One writer in a workspace: who holds it, who waits, whose lock is broken."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until

from siftune import lock, processes
from siftune.stage import RunAgain, UserError

HOLD = """
import sys, time
from pathlib import Path
from siftune import lock, stage
def main():
    with lock.workspace("sft"):
        Path("holds").touch()
        time.sleep(60)
stage.run(main)
"""
# Many of these are started at once. What a holder finds and leaves shows whether it was alone.
TAKE_TURNS = """
import os, sys, time
from siftune import lock
from siftune.stage import RunAgain
while True:
    try:
        with lock.workspace("sft"):
            os.close(os.open("alone", os.O_CREAT | os.O_EXCL))
            time.sleep(0.02)
            os.unlink("alone")
            if "killed" in sys.argv:
                os.kill(os.getpid(), 9)
        break
    except RunAgain:
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def held_by_another(**environment: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-P", "-c", HOLD]
    with subprocess.Popen(command, env=os.environ | environment) as process:
        until(Path("holds").exists)
        try:
            yield process
        finally:
            process.kill()


def left_by(**facts: object) -> None:
    """A lock that another process has left, which differs from this one in `facts`."""
    with lock.workspace("merge"):
        record = json.loads(lock.FILE.read_text())
    lock.FILE.write_text(json.dumps(record | facts))


ELSEWHERE = {"host": "node7", "boot_id": "other", "namespace": "pid:[1]"}


def test_a_holder_is_shown_while_it_holds(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert lock.holder() is None
    with lock.workspace("sft"):
        found = lock.holder()
        assert (found.stage, found.pid, found.job) == ("sft", os.getpid(), "7")
        assert lock.alive(found)
        assert not lock.is_stopping(found)
    assert lock.holder() is None
    assert [path.name for path in Path("work").iterdir()] == ["lock.guard"]


def test_it_is_given_back_after_an_error():
    with pytest.raises(ZeroDivisionError), lock.workspace("sft"):
        raise ZeroDivisionError
    assert lock.holder() is None


def test_a_second_one_is_told_who_holds_it():
    with held_by_another(SLURM_JOB_ID="7") as process:
        before = lock.FILE.read_bytes()
        with pytest.raises(RunAgain) as caught, lock.workspace("merge"):
            raise AssertionError
        assert f"sft on {lock.holder().host} (Slurm job 7), process {process.pid}, since 20" in str(
            caught.value
        )
        assert "One workspace has one writer" in str(caught.value)
        assert lock.FILE.read_bytes() == before


def test_the_lock_of_a_killed_holder_is_broken():
    with held_by_another() as process:
        process.kill()
        process.wait()
        assert not lock.alive(lock.holder())
        with lock.workspace("merge"):
            assert lock.holder().pid == os.getpid()


def test_a_pid_that_was_given_again_is_another_process():
    left_by(start_time=1)
    with lock.workspace("sft"):
        pass


def test_a_lock_from_before_a_reboot_is_broken():
    left_by(boot_id="other")
    with lock.workspace("sft"):
        pass


@pytest.mark.parametrize(
    "facts",
    [ELSEWHERE, {"namespace": "pid:[1]"}, ELSEWHERE | {"job": "7"}],
    ids=["another host", "another container on this host", "a Slurm job, but no squeue here"],
)
def test_what_cannot_be_known_is_not_broken(facts, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    left_by(pid=4_000_000, **facts)
    assert lock.alive(lock.holder()) is None
    before = lock.FILE.read_bytes()
    with pytest.raises(RunAgain, match=r"if it does not, remove work/lock\.json"):
        lock.workspace("sft").__enter__()
    assert lock.FILE.read_bytes() == before


def test_a_requeued_job_goes_on_on_another_host(monkeypatch):
    left_by(job="7", restart=None, **ELSEWHERE)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(RunAgain):  # the same run of the job: another node of it
        lock.workspace("sft").__enter__()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with lock.workspace("sft"):
        assert (lock.holder().job, lock.holder().restart) == ("7", "1")


@pytest.mark.parametrize(
    ("answer", "is_alive"),
    [
        ("echo RUNNING", True),
        ("echo COMPLETING", True),
        ("echo PENDING", True),
        ("echo TIMEOUT", False),
        ("echo COMPLETED; echo RUNNING", True),  # an array
        ("true", False),  # no longer listed
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", None),
        ("sleep 5", None),
    ],
)
def test_slurm_is_asked_about_a_job_elsewhere(answer, is_alive, monkeypatch):
    squeue = Path("bin/squeue")
    squeue.parent.mkdir()
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "-h -j 7 -o %T" ] || exit 3\n{answer}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent.resolve()}:{os.environ['PATH']}")
    monkeypatch.setattr(lock, "SQUEUE_SECONDS", 1)
    left_by(job="7", **ELSEWHERE)
    assert lock.alive(lock.holder()) is is_alive
    if is_alive is False:
        with lock.workspace("sft"):
            assert lock.holder().pid == os.getpid()
    else:
        with pytest.raises(RunAgain):
            lock.workspace("sft").__enter__()


def test_a_holder_that_is_stopping_is_waited_for(capfd):
    """It was told to stop, and takes its time to save."""
    slow = HOLD.replace("time.sleep(60)", "\n        ".join([
        "try:", "    time.sleep(60)", "finally:", "    time.sleep(2)",
    ]))  # fmt: skip
    with subprocess.Popen([sys.executable, "-P", "-c", slow]) as process:
        until(Path("holds").exists)
        process.send_signal(signal.SIGTERM)
        until(lambda: lock.holder() is None or lock.is_stopping(lock.holder()))
        assert lock.holder().pid == process.pid
        with lock.workspace("merge"):
            assert process.wait() == 75
    assert capfd.readouterr().err.count("siftune: waiting for sft on ") == 1


def test_a_stage_whose_dvc_was_killed_before_it_took_the_lock_is_stopping(monkeypatch):
    for dvc, is_stopping in ((None, True), (os.getppid(), False)):
        monkeypatch.setenv(processes.OF_DVC, "prepare")
        monkeypatch.setattr(processes, "dvc_process", lambda dvc=dvc: dvc)
        with lock.workspace("prepare"):
            assert lock.is_stopping(lock.holder()) is is_stopping
    monkeypatch.delenv(processes.OF_DVC)  # started by hand, it may outlive its shell
    with lock.workspace("prepare"):
        assert not lock.is_stopping(lock.holder())


def test_a_holder_whose_starter_is_gone_is_waited_for_but_not_for_ever(monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    left_by(pid=os.getpid(), starter=gone.pid, starter_start_time=5)
    assert lock.is_stopping(lock.holder())
    with pytest.raises(RunAgain, match="It is still running"):
        lock.workspace("sft").__enter__()
    lock.FILE.unlink()
    left_by(stopping=True, **ELSEWHERE)
    assert not lock.is_stopping(lock.holder())  # it cannot be seen how far it is


def test_a_lock_that_was_not_seen_is_not_overwritten(monkeypatch):
    """A network file system may hide for a while what another host has just written."""
    left_by(**ELSEWHERE)
    before = lock.FILE.read_bytes()
    views = iter([None, None])
    see = lock.holder
    monkeypatch.setattr(lock, "holder", lambda: next(views, see()))
    with pytest.raises(RunAgain, match="on node7"):
        lock.workspace("sft").__enter__()
    assert lock.FILE.read_bytes() == before


def test_eight_at_once_are_alone_in_turn():
    left_by(start_time=1)  # and a dead one's lock is there to be broken
    commands = [[sys.executable, "-P", "-c", TAKE_TURNS] for _ in range(8)]
    turns = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in turns] == [0] * 8
    assert lock.holder() is None


def test_eight_at_once_are_alone_though_each_leaves_its_lock():
    command = [sys.executable, "-P", "-c", TAKE_TURNS, "killed"]
    turns = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait(timeout=120) for process in turns] == [-signal.SIGKILL] * 8


def test_a_sign_of_life_is_given(monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_SIGNS", 0.1)
    with lock.workspace("sft"):
        os.utime(lock.FILE, (1, 1))
        assert lock.holder().heartbeat > 1e6
        until(lambda: lock.holder().heartbeat < 1e6)


def test_a_lock_that_was_removed_by_hand_stays_removed(monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_SIGNS", 0.1)
    with lock.workspace("sft"):
        lock.FILE.unlink()
        time.sleep(1)
        assert not lock.FILE.exists()
        left_by(start_time=1)
    assert lock.holder() is not None  # another's is not taken away


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"stage": "sft"}', "\udcff"])
def test_what_is_no_lock_is_refused(text):
    Path("work").mkdir()
    lock.FILE.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="is not a lock that siftune wrote"):
        lock.workspace("sft").__enter__()


def test_a_holder_is_told_apart_by_its_process():
    with lock.workspace("sft"):
        found = lock.holder()
        assert lock.alive(dataclasses.replace(found, pid=4_000_000)) is False
        assert found.start_time == processes.start_time(os.getpid())
