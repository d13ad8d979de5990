"""kill -9, of a training and of what it starts, at a random time or at each operation of a save."""

import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import operations
import process
import promise
from promise import Silent, must
from trial import HANG, Trial
from workspace import SAVE_EVERY

# Importing takes most of a new process's time; forked ones have imported.
FRESH_SECONDS = 14.0


def at_a_random_time(trial: Trial) -> None:
    """Once or twice, then it must come to its end alone; one in ten is a process of its own."""
    draw = random.Random(trial.seed)
    fresh = trial.seed % 10 == 9
    longest = FRESH_SECONDS if fresh else trial.template.seconds
    trial.copy()
    for _ in range(2 if trial.seed % 4 == 3 else 1):
        running = trial.start(fresh=fresh)
        if not running.runs_for(draw.uniform(0, longest)):
            must(running.code == 0, f"it ended with {running.code}: {running.err[-400:]}")
            promise.check_finished(trial.folder, trial.template.golden)
        running.kill()
    trial.finish(resumed_from=trial.newest())


def after_its_end(trial: Trial) -> None:
    """DVC was killed before it took note of a training that had finished; it is started again."""
    folder = trial.copy()
    must(trial.start().wait(HANG) == 0, "without any fault it fails")
    again = trial.start()
    code = again.wait(HANG)
    must(code == 0, f"started again after its end, it ended with {code}: {again.err[-600:]}")
    for name, found in promise.published(folder).items():
        must(found == trial.template.golden[name], f"the {name} is not the golden one")
    promise.check_nothing_left(folder)


def at_every_operation_of_a_save(trial: Trial) -> None:
    """A real trainer saves its third checkpoint, and dies before each operation or in it."""
    trial.copy(half=True)
    saver = trial.call(lambda: _die_everywhere(trial), "saver")
    code = saver.wait(4 * HANG)
    must(code == 0, f"after a kill within a save: {saver.err[-800:]}")
    trial.num_tried = int(saver.out.split()[-1])
    must(trial.num_tried >= 40, f"only {trial.num_tried} operations were found", Silent)
    # Some of what was left behind is trained to the end.
    for number, left in enumerate(sorted(trial.base.glob("left-*"))):
        shutil.rmtree(trial.folder, ignore_errors=True)
        trial.copy(half=True, name=f"end-{number}")
        shutil.rmtree(promise.checkpoints(trial.folder))
        shutil.copytree(left, promise.checkpoints(trial.folder))
        trial.finish(resumed_from=trial.newest())


def _die_everywhere(trial: Trial) -> None:
    """In a forked child: the real script, up to its next save."""
    from siftune.resume.trainer import Resumable

    keep = Resumable._keep

    def everywhere(self: Resumable, **facts: bool) -> None:
        if self.state.global_step != 3 * SAVE_EVERY:
            return keep(self, **facts)
        num_tried = 0
        for die in (operations.die_at, operations.torn_at):
            num_tried += _each(lambda: keep(self, **facts), die, trial)
        print(num_tried, flush=True)
        os._exit(0)

    Resumable._keep = everywhere
    process.script("train/sft.py")()


def _each(save: Callable[[], None], die: Callable[[int], None], trial: Trial) -> int:
    folder = promise.checkpoints(Path.cwd())
    before = folder.with_name("before")
    shutil.copytree(folder, before)
    draw = random.Random(trial.seed)
    for number in range(1, 1000):
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            die(number)
            save()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _check(folder, f"{die.__name__}({number})")
        if status == 0:
            shutil.rmtree(before)
            return number - 1
        assert os.WIFSIGNALED(status), status
        if draw.random() < 0.03 and len(list(trial.base.glob("left-*"))) < 4:
            shutil.copytree(folder, trial.base / f"left-{die.__name__}-{number}")
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
    raise AssertionError("it never came to its end")


def _check(folder: Path, where: str) -> None:
    """The product's own eyes and ours see the old checkpoint or the new one."""
    from siftune import files
    from siftune.resume.checkpoints import Store

    whole = promise.newest_whole(folder)
    must(whole in (10, 15), f"{where}: the newest whole checkpoint is that of step {whole}")
    parts = files.read_json(folder.parent / "fingerprint.json")
    found = Store(folder, parts).newest()
    must(found and found.step == whole, f"{where}: Store.newest() is {found}")
    must(not list(folder.glob("broken-*")), f"{where}: a checkpoint was published broken")
    must(not list(folder.glob(".step-*")), f"{where}: not swept: {list(folder.iterdir())}")


def crash_at_step_7(trial: Trial) -> None:
    """The same crash at each start: tried three times without progress, and no more."""
    trial.copy()

    def crash() -> None:
        from siftune.resume.trainer import Resumable

        step = Resumable.training_step

        def training_step(self: Resumable, *args: object, **kwargs: object) -> object:
            if self.state.global_step == 7:
                raise RuntimeError("always at step 7")
            return step(self, *args, **kwargs)

        Resumable.training_step = training_step

    codes, last = [], None
    for _ in range(6):
        last = trial.start(patch=crash)
        codes.append(last.wait(HANG))
        if codes[-1] == 78:
            break
    # The first made progress to step 5; three died there.
    must(codes == [1, 1, 1, 78] or codes == [1, 1, 1, 1, 78], f"the starts ended with {codes}")
    must("always at step 7" in last.err, f"the cause is not told: {last.err[-400:]}", Silent)
    must(trial.newest() == SAVE_EVERY, f"the newest checkpoint is {trial.newest()}")
    (promise.trainings(trial.folder)[0] / "starts.jsonl").unlink()
    trial.finish(resumed_from=SAVE_EVERY)


def at_every_place_where_it_polls(trial: Trial) -> None:
    """Told to stop at the place `seed`, between two micro batches or in an evaluation."""
    trial.copy()

    def stop_there() -> None:
        from siftune.resume.stopping import StopRequest

        asked = 0

        def reason(self: StopRequest) -> str | None:
            nonlocal asked
            asked += 1
            return "test" if asked == trial.seed + 1 else None

        StopRequest.reason = reason

    stopped = trial.start(patch=stop_there)
    code = stopped.wait(HANG)
    if code == 0:
        trial.num_tried = 0  # there are fewer places
        return promise.check_finished(trial.folder, trial.template.golden)
    must(code == 75, f"it ended with {code}: {stopped.err[-400:]}")
    must("stopped at step" in stopped.err, "it does not say where it stopped", Silent)
    trial.finish(resumed_from=trial.newest(), most_redone=0)
