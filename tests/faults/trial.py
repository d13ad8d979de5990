"""One trial: a copy of the workspace, its processes, and that none of them is left at the end."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import process
import promise
import workspace
from process import Hang, Process
from promise import Lost, must

# No process may hang for longer; a whole training takes seconds.
HANG = 60.0
# A follower that looks for its stage, or waits for a store.
GRACE = 15.0
SFT = "train/sft.py"
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    0x20000,
    1,
    32,
    4096,
    16384,
    1 << 18,
)


class Skip(Exception):  # noqa: N818 (it is no error)
    """It cannot be tried on this machine; the message says why."""


@dataclass(frozen=True)
class Template:
    """A workspace to copy, and what its uninterrupted training leaves."""

    folder: Path
    golden: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # of a forked training
    half: Path | None = None  # the same, killed when two checkpoints were there


@dataclass
class Trial:
    """Give it to `with`; it cleans up, and raises what is wrong at the end."""

    template: Template
    base: Path  # for its files
    seed: int
    bug: Callable[[], None] | None = None  # put into each forked child, to try the trials
    folder: Path = field(init=False)
    num_tried: int = 1
    notes: list[str] = field(default_factory=list)
    _processes: list[Process] = field(default_factory=list)
    _mounts: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.base / "workspace"

    def __enter__(self) -> "Trial":
        self.base.mkdir(parents=True)
        return self

    def copy(self, *, half: bool = False, name: str = "workspace") -> Path:
        """The workspace of this trial: at the beginning, or with two checkpoints in it."""
        source = self.template.half if half else self.template.folder
        assert source is not None
        self.folder = workspace.copy(source, self.base / name)
        return self.folder

    def on_own_disk(self, size: int = 64 << 20) -> None:
        """Put what is copied next onto a small file system of its own."""
        target = self.base / "disk"
        target.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise Skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        self._mounts.append(target)

    def start(
        self,
        path: str = SFT,
        *,
        fresh: bool = False,
        patch: Callable[[], None] | None = None,
        folder: Path | None = None,
        **environment: str,
    ) -> Process:
        """Start a stage; `patch` is called in the forked child before its script."""
        here = folder or self.folder
        run = process.script(path)

        def patched() -> None:
            if patch:
                patch()
            run()

        if fresh:
            assert patch is None
            command = [sys.executable, "-P", path]
            return self._started(
                process.fresh(command, name=path, **self._surroundings(here, environment))
            )
        return self.call(patched, path, folder=here, **environment)

    def call(
        self, run: Callable[[], object], name: str, folder: Path | None = None, **environment: str
    ) -> Process:
        """Run anything in a forked child."""
        here = folder or self.folder

        def body() -> None:
            if self.bug:
                self.bug()
            run()

        return self._started(process.fork(body, name=name, **self._surroundings(here, environment)))

    def siftune(self, *arguments: str, **environment: str) -> Process:
        """The command line, in a forked child, to its end."""
        started = self._command_line(arguments, **environment)
        started.wait(HANG)
        return started

    def repro(self, stage: str, patch: Callable[[], None] | None = None) -> Process:
        """`siftune repro` of one stage, in a forked child; the stage is a new process."""
        return self._command_line(("repro", "--single-item", stage), patch)

    def dvc(self, *arguments: str) -> Process:
        """DVC, in a forked child."""

        def run() -> None:
            sys.argv = ["dvc", *arguments]
            from dvc.cli import main

            sys.exit(main(list(arguments)))

        return self.call(run, f"dvc {arguments[0]}")

    def finish(
        self,
        *,
        resumed_from: int | None = None,
        most_redone: int = workspace.SAVE_EVERY,
        **start: Any,
    ) -> Process:
        """The next start needs no human step, and leaves what an uninterrupted training leaves."""
        ended = self.start(**start)
        code = ended.wait(2 * HANG)
        must(code == 0, f"the next start ended with {code}: {ended.err[-600:]}")
        if resumed_from is not None:
            told = f"Going on from step {resumed_from}:"
            must(
                told in ended.out if resumed_from else "Going on" not in ended.out,
                f"it did not go on from step {resumed_from}: {ended.out[:200]!r}",
            )
        promise.check_finished(self.folder, self.template.golden, most_redone=most_redone)
        return ended

    def newest(self) -> int:
        """The step of the newest whole checkpoint."""
        return promise.newest_whole(promise.checkpoints(self.folder))

    def orphans(self) -> list[int]:
        """What runs still, though all that this trial started has ended."""
        return process.children(os.getpid())

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        for one in self._processes:
            with contextlib.suppress(Hang):
                one.kill()
        process.until(lambda: not self.orphans(), GRACE)
        left = {pid: process.command_line(pid) for pid in self.orphans()}
        while found := self.orphans():
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        for path in reversed(self._mounts):
            subprocess.run(["umount", "-l", str(path)], check=True)
        if kind is None or kind is Skip:
            shutil.rmtree(self.base, ignore_errors=True)
        if kind is None and left:
            raise Lost(f"still running {GRACE:.0f} s after all had ended: {left}")

    def _command_line(
        self,
        arguments: tuple[str, ...],
        patch: Callable[[], None] | None = None,
        **environment: str,
    ) -> Process:
        def run() -> None:
            if patch:
                patch()
            sys.argv = ["siftune", *arguments]
            from siftune import __main__

            __main__.main()

        return self.call(run, f"siftune {arguments[0]}", **environment)

    def _started(self, one: Process) -> Process:
        self._processes.append(one)
        return one

    def _surroundings(self, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
        return {
            "folder": folder,
            "environment": workspace.environment(folder) | environment,
            "log": self.base / f"log{len(self._processes)}",
        }


def become_read_only(folder: Path) -> None:
    """For this process and what it starts, the folder is on a read-only file system from now on."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(done: int) -> None:
        if done:
            raise RuntimeError(os.strerror(ctypes.get_errno()))

    name = str(folder).encode()
    call(libc.unshare(CLONE_NEWNS))
    call(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    call(libc.mount(name, name, None, MS_BIND, None))
    call(libc.mount(None, name, None, MS_REMOUNT | MS_BIND | MS_RDONLY, None))
    os.chdir(folder)
