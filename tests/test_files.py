import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from siftune import files
from siftune.stage import UserError

DEAD = 4_000_000_000  # no process has such an id


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_folder(target: Path, content: str) -> None:
    with files.published_folder(target) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "file").write_text(content)
        (aside / "last").write_text(content)


def contents(path: Path) -> dict[str, str]:
    return {str(one.relative_to(path)): one.read_text() for one in path.rglob("*") if one.is_file()}


def test_a_folder_takes_its_place_whole(tmp_path):
    target = tmp_path / "out"
    for content in ("old", "new"):
        write_folder(target, content)
    assert contents(target) == {"sub/file": "new", "last": "new"}
    assert names(tmp_path) == ["out"]
    (tmp_path / "made").mkdir()
    assert target.stat().st_mode == (tmp_path / "made").stat().st_mode


def test_after_an_error_the_old_one_stays(tmp_path):
    files.write_json(tmp_path / "folder" / "a.json", 1)
    with pytest.raises(ZeroDivisionError), files.published_folder(tmp_path / "folder") as aside:
        (aside / "b").write_text(str(1 / 0))
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "folder" / "a.json", float("nan"))
    assert files.read_json(tmp_path / "folder" / "a.json") == 1
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["a.json"]


def test_when_the_new_one_cannot_take_its_place_the_old_one_comes_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    write_folder(target, "old")
    rename = os.rename

    def fail_for_the_new_one(source, place, **kwargs):
        if str(place) == str(target) and str(source).endswith(f".{os.getpid()}.tmp"):
            raise OSError(errno.EIO, "no")
        rename(source, place, **kwargs)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="no"):
        write_folder(target, "new")
    assert contents(target) == {"sub/file": "old", "last": "old"}
    assert names(tmp_path) == ["out"]


# What changes files, or opens one.
OPERATIONS = (
    "open", "mkdir", "rename", "replace", "fsync", "unlink", "remove", "rmdir", "scandir",
)  # fmt: skip


def die_at(number: int) -> None:
    """Let this process be killed at the n-th moment: each file operation has one on either side."""
    count = 0

    def moment() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable) -> Callable:
        def call(*args, **kwargs):
            moment()
            result = function(*args, **kwargs)
            moment()
            return result

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    io.open = counted(io.open)


def killed_at_every_moment(write: Callable[[], None], check: Callable[[], None]) -> int:
    """Run `write` in a child, killed at the n-th moment, until none is left."""
    for number in range(1, 200):
        child = os.fork()
        if child == 0:
            die_at(number)
            write()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        check()
        if status == 0:
            return number - 1
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("it never came to its end")


def test_a_file_is_old_or_new_wherever_its_writer_is_killed(tmp_path):
    target = tmp_path / "a.json"
    seen = set()

    def check() -> None:
        seen.add(target.read_text())
        assert target.read_text() in ("1\n", "2\n")
        files.write_json(target, 1)
        assert names(tmp_path) == ["a.json"]  # the next writer has swept

    files.write_json(target, 1)
    assert killed_at_every_moment(lambda: files.write_json(target, 2), check) >= 10
    assert seen == {"1\n", "2\n"}


def test_a_folder_is_old_or_new_or_absent_wherever_its_writer_is_killed(tmp_path):
    target = tmp_path / "out"
    seen = []

    def check() -> None:
        found = contents(target) if target.exists() else None
        seen.append(found)
        whole = [{"sub/file": content, "last": content} for content in ("old", "new")]
        assert found in (None, *whole)
        write_folder(target, "old")
        assert names(tmp_path) == ["out"]

    write_folder(target, "old")
    assert killed_at_every_moment(lambda: write_folder(target, "new"), check) >= 30
    assert seen.count(None) == 2  # between two renames
    assert seen[0]["last"] == "old"
    assert seen[-1]["last"] == "new"


def test_leftovers_of_dead_writers_are_swept_and_nothing_else(tmp_path):
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    kept = {f".a.{living.pid}.tmp", f".a.b.{DEAD}.tmp", ".a.x.tmp", "a.tmp", f".b.{DEAD}.tmp"}
    swept = {f".a.{DEAD}.tmp", f".a.{DEAD}.old.tmp", f".a.{os.getpid()}.tmp"}
    for name in kept | swept:
        (tmp_path / name).write_text("")
    files.write_json(tmp_path / "a", 1)
    assert set(names(tmp_path)) == kept | {"a"}
    for name in swept:
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / "a").unlink()
    write_folder(tmp_path / "a", "new")
    assert set(names(tmp_path)) == kept | {"a"}
    living.communicate(b"\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_error_names_what_was_being_written(tmp_path):
    with (
        pytest.raises(OSError, match="model") as caught,
        files.published_folder(tmp_path / "model"),
    ):
        Path("/dev/full").write_text("x")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "model")


def test_jsonl_keeps_every_character(tmp_path):
    rows = [{"text": "為\u2028\n\t🎉"}, {"text": ""}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert list(files.read_jsonl(tmp_path / "rows.jsonl")) == rows


def test_a_log_goes_on_after_half_a_line(tmp_path):
    log = tmp_path / "log.jsonl"
    assert files.read_lines(log) == []
    files.append_line(log, {"a": "為"})
    with log.open("a") as file:
        file.write('{"b": "ha')
    files.append_line(log, {"c": 1})
    files.append_line(log, {"d": 2})
    assert files.read_lines(log) == [{"a": "為"}, {"c": 1}, {"d": 2}]


def test_a_folder_is_described_by_content_alone(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_bytes(b"abc")
        os.utime(tmp_path / folder / "x", (len(folder), ord(folder)))
    described = files.describe_folder(tmp_path / "a")
    assert described == files.describe_folder(tmp_path / "b")
    assert described["x"]["size"] == 3
    assert described["x"]["sha256"].startswith("ba7816bf")


def test_a_missing_input_says_what_writes_it(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        files.read_json(tmp_path / "no.json")
    with pytest.raises(UserError, match="dvc repro"):
        list(files.read_jsonl(tmp_path / "no.jsonl"))
