"""`siftune repro`: it hears signals, says why it ended, and gets over what a killed DVC left."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from waiting import until

from siftune import lock, processes

PIPELINE = """
stages:
  copy:
    cmd: cp before after
    deps: [before]
    outs: [after]
"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(PIPELINE)
    Path("before").write_text("content")
    dvc("init", "--no-scm", "--quiet")


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("dvc", *arguments)


def siftune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("siftune", *arguments, **environment)


def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_entries_of_the_run_cache_are_used():
    assert siftune("repro").returncode == 0
    for made in ("after", "dvc.lock"):
        Path(made).unlink()
    assert "is cached - skipping run" in siftune("repro").stdout
    assert Path("after").read_text() == "content"


def test_all_arguments_and_the_code_are_those_of_dvc():
    done = siftune("repro", "--force", "--dry", "copy")
    assert (done.returncode, "cp before after" in done.stdout) == (0, True)
    assert not Path("after").exists()
    assert "usage: dvc repro" in siftune("repro", "--help").stdout
    Path("before").unlink()
    assert siftune("repro").returncode == 255


STAGE = """
import os, signal, sys, time
from pathlib import Path
from siftune import lock, stage
from siftune.resume import stopping
def save_when_told():
    with stopping.watched() as stop:
        Path("at-work").touch()
        while stop.reason() is None:
            time.sleep(0.01)
    Path("saved").write_text(stop.reason())
    raise stage.RunAgain("saved at step 3")
def main():
    with lock.workspace("work"):
        Path("pid").write_text(str(os.getpid()))
{body}
        Path("after").write_text("made")
stage.run(main)
"""


def write_stage(body: str) -> None:
    Path("work.py").write_text(STAGE.format(body=textwrap.indent(body, " " * 8)))
    cmd = f"{sys.executable} -P work.py"
    Path("dvc.yaml").write_text(
        f"stages:\n  work:\n    cmd: {cmd}\n    deps: [work.py]\n    outs: [after]\n"
    )


@contextmanager
def supervised(body: str, **environment: str) -> Iterator[subprocess.Popen]:
    """`siftune repro` of a stage, in a process group of its own."""
    write_stage(body)
    process = subprocess.Popen(
        [sys.executable, "-m", "siftune", "repro"],
        env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code, and the last line."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err.splitlines()[-1]


def assert_it_works_again() -> None:
    write_stage("")
    done = siftune("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path("after").read_text() == "made"


@pytest.mark.parametrize(
    ("body", "code", "why"),
    [
        ("raise stage.UserError('x: wrong')", 78, "x: wrong"),
        ("raise stage.RunAgain('saved at step 3')", 75, "saved at step 3"),
        ("raise RuntimeError('bug')", 1, "RuntimeError: bug"),
        ("import errno; raise OSError(errno.ENOSPC, 'x', 'after')", 78, "after: the disk is full"),
    ],
)
def test_the_code_is_the_stages_own_and_the_last_line_says_why(body, code, why):
    with supervised(body) as process:
        found, last = ended(process)
    assert found == code
    assert last.startswith(f"siftune: work ended with code {code}: {why}")


def test_a_stage_that_was_killed_leaves_dvcs_word():
    with supervised("os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert ended(process) == (255, "siftune: DVC ended with code 255; what it said is above.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda one: one.name)
def test_a_signal_is_told_to_the_stage(number):
    with supervised("save_when_told()") as process:
        until(Path("at-work").exists)
        process.send_signal(number)
        assert ended(process) == (75, "siftune: work ended with code 75: saved at step 3")
    assert Path("saved").read_text() == f"signal {number.name}"
    assert_it_works_again()


def test_a_signal_to_all_processes_harms_none():
    """As a cluster with proctrack/linuxproc sends it."""
    with supervised("save_when_told()") as process:
        until(Path("at-work").exists)
        for _ in range(3):
            os.killpg(process.pid, signal.SIGTERM)
        assert ended(process) == (75, "siftune: work ended with code 75: saved at step 3")
    assert_it_works_again()


def test_a_stage_that_begins_after_the_signal_is_told_too():
    body = "save_when_told()"
    with supervised(body) as process:
        until(lambda: signal_is_caught(process.pid, signal.SIGUSR1))
        process.send_signal(signal.SIGUSR1)
        assert ended(process)[0] == 75
    assert Path("pid").exists()


def signal_is_caught(pid: int, number: int) -> bool:
    """Whether there is a DVC below it already, and the process has a handler of ours."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return bool(caught & (1 << (number - 1))) and bool(children)


def test_nothing_outlives_a_killed_supervisor():
    with supervised("save_when_told()") as process:
        until(Path("at-work").exists)
        its_dvc, its_stage = lock.holder().starter, lock.holder().pid
        process.kill()
        process.wait()
        until(Path("saved").exists)
        until(lambda: processes.start_time(its_stage) is None)
        until(lambda: not Path(f"/proc/{its_dvc}").exists())  # also as a zombie: DVC asks for that
    assert_it_works_again()


def test_where_another_job_works_dvc_is_not_started():
    with supervised("save_when_told()") as first:
        until(Path("at-work").exists)
        before = Path("after").exists(), Path("dvc.lock").exists()
        second = siftune("repro")
        assert second.returncode == 75
        assert "this workspace is in use: work on" in second.stderr
        assert "Running stage" not in second.stdout
        assert (Path("after").exists(), Path("dvc.lock").exists()) == before
        first.send_signal(signal.SIGTERM)
        assert ended(first)[0] == 75


@pytest.mark.parametrize(
    ("told", "is_wish"),
    [
        ([signal.SIGUSR1], True),
        (["warned"], True),
        ([signal.SIGTERM], False),
        (["warned", signal.SIGTERM], False),
        ([signal.SIGINT], False),
    ],
)
def test_only_what_the_cluster_asked_for_is_queued_again(told, is_wish, tmp_path_factory):
    notes = tmp_path_factory.mktemp("notes of a job")
    body = "save_when_told()" if len(told) == 1 else "time.sleep(2)\nsave_when_told()"
    with supervised(body, SIFTUNE_JOB=str(notes)) as process:
        until(Path("pid").exists)
        for one in told:
            if one == "warned":
                (notes / "warned").touch()
            else:
                process.send_signal(one)
        assert ended(process)[0] == 75
    assert (notes / "requeue").exists() is is_wish


def test_a_job_that_ends_soon_is_queued_again(tmp_path_factory):
    notes = tmp_path_factory.mktemp("notes")
    soon = str(int(time.time()) + 30)
    with supervised("save_when_told()", SIFTUNE_JOB=str(notes), SLURM_JOB_END_TIME=soon) as process:
        assert ended(process)[0] == 75
    assert (notes / "requeue").exists()


def test_a_stage_that_stops_for_itself_is_not_queued_again(tmp_path_factory):
    notes = tmp_path_factory.mktemp("notes")
    body = "Path('work/stop').touch()\nraise stage.RunAgain('work/stop asks for it')"
    with supervised(body, SIFTUNE_JOB=str(notes)) as process:
        assert ended(process)[0] == 75
    assert not (notes / "requeue").exists()


def test_of_several_processes_the_one_that_failed_is_told():
    ranks = """
from siftune import ranks
def main():
    ranks.launch()
    if os.environ["RANK"] == "1":
        raise stage.UserError("the loss is no number")
    time.sleep(60)
stage.run(main)
"""
    write_stage("")
    Path("work.py").write_text(f"import os, time\nfrom siftune import stage\n{ranks}")
    done = siftune("repro", SIFTUNE_PROCESSES="2")
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1] == (
        "siftune: work ended with code 78: the loss is no number"
    )


def test_params_that_are_set_make_an_experiment():
    """Values are what they are, whatever a shell would make of them."""
    for path, text in {
        "conf/config.yaml": "defaults: [_self_]\nwork: {text: none}\n",
        "dvc.yaml": "stages:\n  work:\n    cmd: cp params.yaml after\n    params: [work]\n"
        "    outs: [after]\n",
    }.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    Path("params.yaml").write_text("work:\n  text: none\n")
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-f", "-q"],
        [sys.executable, "-m", "dvc", "config", "hydra.enabled", "true"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start"],
    ):
        subprocess.run(command, check=True)
    evil = "$(touch evil); `touch evil` \\; -rf"
    done = siftune("repro", "--name", "first", "work", "-S", f"work.text='{evil}'")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(Path("after").read_text())["work"]["text"] == evil
    assert not Path("evil").exists()
    assert "first" in dvc("exp", "list").stdout


def test_a_job_that_gets_nowhere_is_not_queued_again_for_ever(tmp_path_factory):
    """Its time is shorter than the warning: each start would be stopped as soon as it begins."""
    notes = tmp_path_factory.mktemp("notes")
    checkpoint = Path("work/0123456789abcdef/checkpoints/step-00000005/published")
    for start in range(5):
        (notes / "requeue").unlink(missing_ok=True)
        (notes / "warned").touch()
        with supervised("save_when_told()", SIFTUNE_JOB=str(notes), SLURM_JOB_ID="7") as process:
            if start == 1:
                until(Path("pid").exists)
                checkpoint.parent.mkdir(parents=True)
                checkpoint.touch()
            code, last = ended(process)
        Path("pid").unlink()
        assert (notes / "requeue").exists() is (start < 4)
        assert code == (75 if start < 4 else 78)
    assert last.startswith("siftune: the last 3 starts of job 7 were stopped before anything new")
