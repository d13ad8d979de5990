"""How a stage ends with the DVC that runs it: real processes, really killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import until

from siftune import processes

STAGE = """
import os, sys, time
from pathlib import Path
from siftune import stage
Path("pid").write_text(str(os.getpid()))
if "late" in sys.argv:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.01)
def main():
    Path("runs").touch()
    try:
        time.sleep(60)
    finally:
        Path("closed").touch()
stage.run(main)
"""
# What DVC 3.67 does (dvc/stage/run.py): $SHELL -c, its own variable, its own process group.
FAKE_DVC = """
import os, subprocess, sys
from pathlib import Path
Path("dvc").write_text(str(os.getpid()))
subprocess.Popen(sys.argv[1:], env=os.environ | {"DVC_STAGE": "sft"}).wait()
"""


def number_in(path: Path) -> int:
    until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


@contextmanager
def running(folder: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen]:
    """A process in `folder`; it and the stage that it may have started are ended afterwards."""
    (folder / "stage.py").write_text(STAGE)
    (folder / "fake_dvc.py").write_text(FAKE_DVC)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    process = subprocess.Popen(
        command, cwd=folder, env=kept | environment, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if (folder / "pid").exists():
            stage = number_in(folder / "pid")
            if processes.start_time(stage) is not None:
                os.kill(stage, signal.SIGKILL)


def script(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "stage.py", *arguments]


def test_a_process_is_the_same_only_with_its_start_time():
    first = processes.start_time(os.getpid())
    assert first is not None
    assert first == processes.start_time(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert processes.start_time(child.pid) >= first
    child.kill()
    until(lambda: processes.start_time(child.pid) is None)  # though nobody has waited for it
    child.wait()
    child.stdin.close()
    assert processes.start_time(child.pid) is None


@pytest.mark.parametrize(
    "between",
    [
        [],
        ["/bin/bash", "--noprofile", "--norc", "-c", "exec \"$0\" \"$@\""],
        ["/bin/sh", "-c", '"$0" "$@"; exit $?'],  # stays, as fish does
    ],
    ids=["none", "shell that becomes it", "shell that stays"],
)  # fmt: skip
def test_a_stage_ends_with_a_killed_dvc(tmp_path, between):
    command = [sys.executable, "fake_dvc.py", *between, *script()]
    with running(tmp_path, *command) as dvc:
        until((tmp_path / "runs").exists)
        stage = number_in(tmp_path / "pid")
        assert processes.start_time(stage) is not None
        dvc.kill()
        until(lambda: processes.start_time(stage) is None)
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    "between",
    [[], ["/bin/sh", "-c", '"$0" "$@"; exit $?']],
    ids=["none", "shell that stays"],
)
def test_a_stage_whose_dvc_was_dead_before_it_could_say_so_does_nothing(tmp_path, between):
    late = script() if between else script("late")
    wait = [sys.executable, "-c", WAIT_FOR_DVC, *late] if between else late
    with running(tmp_path, sys.executable, "fake_dvc.py", *between, *wait) as dvc:
        number_in(tmp_path / "dvc")
        if not between:
            number_in(tmp_path / "pid")
        else:
            until((tmp_path / "waits").exists)
        dvc.kill()
        dvc.wait()
        stage = number_in(tmp_path / "pid")
        until(lambda: processes.start_time(stage) is None)
    assert not (tmp_path / "runs").exists()


WAIT_FOR_DVC = """
import os, sys, time
from pathlib import Path
Path("waits").touch()
dvc = int(Path("dvc").read_text())
while Path(f"/proc/{dvc}").exists():
    time.sleep(0.01)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_stage_that_was_started_by_hand_outlives_its_shell(tmp_path):
    shell = [sys.executable, "-c", "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"]
    with running(tmp_path, *shell, *script()) as process:
        until((tmp_path / "runs").exists)
        process.kill()
        process.wait()
        time.sleep(0.3)
        assert processes.start_time(number_in(tmp_path / "pid")) is not None


def test_a_stage_that_leads_its_own_group_is_no_orphan(tmp_path):
    """As `srun` starts it, in a DVC stage: who started it is not of its group."""
    starter = [
        sys.executable, "-c",
        "import os, subprocess, sys\n"
        "environment = os.environ | {'DVC_STAGE': 'sft'}\n"
        "subprocess.Popen(sys.argv[1:], start_new_session=True, env=environment).wait()",
    ]  # fmt: skip
    with running(tmp_path, *starter, *script()):
        until((tmp_path / "runs").exists)


def test_a_rank_ends_with_its_launcher_even_if_that_is_gone_already(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with running(tmp_path, *script(), SIFTUNE_LAUNCHER=str(gone.pid)) as rank:
        assert rank.wait() != 0
    assert not (tmp_path / "runs").exists()


def test_a_stage_ends_with_a_killed_real_dvc(tmp_path):
    quiet = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "cache")}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    command = f"{sys.executable} -P stage.py"
    (tmp_path / "dvc.yaml").write_text(f"stages: {{sft: {{cmd: {command}}}}}\n")
    with running(tmp_path, *dvc, "repro", **quiet) as process:
        until((tmp_path / "runs").exists)
        stage = number_in(tmp_path / "pid")
        process.kill()
        until(lambda: processes.start_time(stage) is None)
    assert (tmp_path / "closed").exists()
