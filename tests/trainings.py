"""Trainings of seconds: what they log and leave, killed, stopped, or in several processes."""

import contextlib
import os
import shutil
import socket
import traceback
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from siftune.resume import best, checkpoints, trainer

ADAPTER = "adapter_model.safetensors"
STATE = ("optimizer.pt", "scheduler.pt", trainer.STATE)
WEIGHTS = {ADAPTER, "model.safetensors", best.STATE, best.WEIGHTS}


class Sink:
    """Takes what a run would log."""

    def __init__(self):
        self.rows = {}

    def log(self, values, *, step):
        for name, value in values.items():
            assert (step, name) not in self.rows, "logged twice"
            self.rows[step, name] = value

    def learned(self) -> dict[tuple[int, str], float]:
        """What does not depend on the clock."""
        clock = ("tokens_per_second", "examples_per_second", "peak_memory_mb")
        return {place: value for place, value in self.rows.items() if place[1] not in clock}

    def curve(self, name: str) -> list[float]:
        return [value for (_, its), value in sorted(self.rows.items()) if its == name]


def uninterrupted(make, section, new_folder, num_steps: int):
    """A function: the log of a training that nothing stopped, and its checkpoint of each step."""
    known = {}

    def run(**changed) -> tuple[dict, dict[int, Path]]:
        key = repr(changed)
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(new_folder())
                patch.setattr(checkpoints, "KEPT", num_steps)
                made, log, start = make(section(**changed))
                made.train_from(start.begin())
                folders = start.checkpoints.folder.resolve().glob("step-*")
                known[key] = log.learned(), {int(path.name[5:]): path for path in folders}
        return known[key]

    return run


def put(checkpoint: Path, start) -> None:
    """What an earlier start, which died later, had published."""
    start.checkpoints.folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkpoint, start.checkpoints.folder / checkpoint.name)


def state(folder: Path) -> dict[str, str]:
    """What the training goes on from, as sha256."""
    files = checkpoints.verify(folder).manifest["files"]
    names = [*STATE, *sorted(WEIGHTS & set(files))]
    return {name: files[name]["sha256"] for name in names}


def losses(log: dict) -> list[float]:
    return [value for (_, name), value in sorted(log.items()) if name.endswith("_loss")]


def kill_after(made, start, step: int) -> None:
    """Train until this step's first micro batch, and die there."""

    class Killed(BaseException):
        pass

    def die() -> None:
        if made.state.global_step == step:
            raise Killed

    start.stop.reason = die
    with contextlib.suppress(Killed):
        made.train_from(start.begin())
    start.ended("stopped")  # or it counts as a crash


def in_ranks(num_ranks: int, work) -> None:
    """Run `work(rank)` in processes that train together, in copies of this one."""
    children = []
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}
                os.environ.update({name: str(value) for name, value in local.items()})
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                AcceleratorState._reset_state(reset_partial_state=True)
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * num_ranks
