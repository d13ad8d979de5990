"""What a killed DVC leaves, and DVC itself fails on for ever: `siftune repro` does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    run("dvc", "init", "--no-scm", "--quiet")


@pytest.fixture
def left_behind() -> Path:
    """As if DVC was killed while it copied an output."""
    path = Path("folder/.SVl4HyjRfEm_Q4uxaEB1SQ.tmp")
    path.parent.mkdir()
    path.touch()
    return path


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def must_be_mended(dvcs_words: str) -> None:
    # Once DVC gets over it itself, this need not.
    assert dvcs_words in run("dvc", "repro").stderr
    done = run("siftune", "repro")
    assert done.returncode == 0, done.stderr
    assert Path("after").read_text() == "content"


def note_writer(pid: int) -> None:
    """As if a DVC of this process id wrote `after`."""
    writer = {"pid": pid, "cmd": "dvc repro"}
    Path(".dvc/tmp").mkdir(exist_ok=True)
    Path(".dvc/tmp/rwlock").write_text(
        json.dumps({"write": {str(Path("after").resolve()): writer}})
    )


def test_killed_before_it_wrote_an_entry_of_the_run_cache(tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared")
    run("dvc", "cache", "dir", str(shared))
    assert run("siftune", "repro").returncode == 0
    (entry,) = shared.glob("runs/*/*/*")
    for written_later in (entry, Path("after"), Path("dvc.lock")):
        written_later.unlink()
    must_be_mended("join() argument must be str")
    assert len(list(shared.glob("runs/*/*/*"))) == 1


def test_killed_while_it_noted_who_writes():
    note_writer(1)
    notes = Path(".dvc/tmp/rwlock")
    notes.write_text(notes.read_text()[:40])
    must_be_mended("Unable to read RWLock-file")


def test_its_process_id_is_another_ones_now():
    with subprocess.Popen(["sleep", "60"]) as other:
        note_writer(other.pid)
        must_be_mended("is being blocked by")
        other.kill()


def test_a_dvc_that_works_here_is_respected(left_behind):
    command = [sys.executable, "-c", "import time; time.sleep(60)", "dvc"]
    with subprocess.Popen(command) as other:
        note_writer(other.pid)
        assert "is being blocked by" in run("siftune", "repro").stderr
        assert left_behind.exists()
        other.kill()


def test_killed_while_it_copied_an_output(left_behind):
    others = [".hidden/.SVl4HyjRfEm_Q4uxaEB1SQ.tmp", "folder/.after.1234.tmp", "folder/mine.tmp"]
    for path in map(Path, others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert run("siftune", "repro").returncode == 0
    assert not left_behind.exists()
    assert all(Path(path).exists() for path in others)


def test_dvc_still_names_what_it_copies_so(monkeypatch):
    from dvc_objects.fs import utils

    from siftune import killed_dvc

    for prefix in ("", "after"):
        assert killed_dvc._ASIDE.fullmatch(utils.tmp_fname(prefix))


def test_what_another_dvc_copies_now_stays(left_behind):
    # While it checks out or commits it holds this lock, and while a stage runs it is noted.
    hold = (
        "import zc.lockfile, time; held = zc.lockfile.LockFile('.dvc/tmp/lock'); print(flush=True)"
    )
    command = [sys.executable, "-c", f"{hold}; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        assert "Unable to acquire lock" in run("siftune", "repro").stderr
        assert left_behind.exists()
        other.kill()


def test_a_file_that_dvc_cannot_write_to_its_end_stays_as_it_was():
    code = (
        "from siftune import killed_dvc; killed_dvc.mend()\n"
        "from dvc.utils.serialize import modify_yaml\n"
        "with modify_yaml('dvc.lock') as notes: notes['copy'] = {}"
    )
    assert run_code(code).returncode == 0
    assert Path("dvc.lock").read_text() == "copy: {}\n"
    assert "cannot represent" in run_code(code.replace("{}", "object()")).stderr
    assert Path("dvc.lock").read_text() == "copy: {}\n"


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
