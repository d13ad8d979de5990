"""Several processes of one training: started, told, ended together. No training is needed."""

import json
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

from siftune import processes, ranks, stage
from siftune.stage import UserError

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from siftune import ranks, stage
def at_work(seconds=60):
    Path(f"work-{{rank}}").touch()
    for _ in range(int(seconds * 100)):
        time.sleep(0.01)
def save_when_told(seconds=0):
    told = []
    for number in stage.STOP_SIGNALS:
        signal.signal(number, lambda number, frame: told.append(number))
    Path(f"work-{{rank}}").touch()
    while not told:
        time.sleep(0.01)
    time.sleep(seconds)
    Path(f"saved-{{rank}}").touch()
    raise stage.RunAgain("saved")
def main():
    global rank
    ranks.launch()
    rank = int(os.environ["RANK"])
    with open("started", "a") as file:
        file.write(json.dumps({{"pid": os.getpid(), "rank": rank}}) + "\\n")
{body}
stage.run(main)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "CUDA_VISIBLE_DEVICES", ranks.NUM_PROCESSES):
        monkeypatch.delenv(name, raising=False)


def started() -> list[dict]:
    return [json.loads(line) for line in Path("started").read_text().splitlines()]


def nobody_is_left() -> bool:
    return all(processes.start_time(one["pid"]) is None for one in started())


@contextmanager
def launched(body: str, *, num: int = 3, grace: float = 20, at_work: bool = True, **kwargs: object
) -> Iterator[subprocess.Popen]:  # fmt: skip
    script = Path("script.py")
    text = SCRIPT.format(body="".join(f"    {line}\n" for line in body.splitlines()))
    script.write_text(text.replace("def at_work", f"ranks.GRACE = {grace}\ndef at_work", 1))
    command = [sys.executable, "-P", str(script), "an argument"]
    environment = os.environ | {ranks.NUM_PROCESSES: str(num)}
    process = subprocess.Popen(command, env=environment, **kwargs)
    try:
        if at_work:
            until(lambda: all(Path(f"work-{rank}").exists() for rank in range(num)))
        yield process
    finally:
        process.kill()
        process.wait()
        if Path("started").exists():
            until(nobody_is_left)


def exit_code(body: str, **kwargs: object) -> int:
    with launched(body, at_work=False, **kwargs) as process:
        return process.wait(timeout=60)


def test_each_rank_knows_its_place():
    body = """
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
facts = {name: os.environ[name] for name in names} | {"arguments": sys.argv[1:]}
Path(f"facts-{rank}.json").write_text(json.dumps(facts))
"""
    assert exit_code(body) == 0
    facts = [json.loads(Path(f"facts-{rank}.json").read_text()) for rank in range(3)]
    assert [fact["RANK"] for fact in facts] == [fact["LOCAL_RANK"] for fact in facts]
    assert [fact["RANK"] for fact in facts] == ["0", "1", "2"]
    assert {fact["WORLD_SIZE"] for fact in facts} == {"3"}
    assert {fact["LOCAL_WORLD_SIZE"] for fact in facts} == {"3"}
    assert len({(fact["MASTER_ADDR"], fact["MASTER_PORT"]) for fact in facts}) == 1
    assert facts[0]["MASTER_ADDR"] == "127.0.0.1"
    assert facts[0]["arguments"] == ["an argument"]


def test_one_process_trains_itself(monkeypatch):
    assert ranks.launch() is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(ranks.NUM_PROCESSES, "4")
    assert ranks.launch() is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise stage.RunAgain('saved')", 75),
        ("if rank == 0: raise stage.RunAgain('the workspace is in use')\nat_work()", 75),
        ("if rank == 1: raise stage.UserError('wrong')\nat_work()", 78),
        ("if rank == 2:\n"
         "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
         "    Path('deaf').touch()\n"
         "    time.sleep(0.5)\n"
         "    raise stage.UserError('wrong')\n"
         "while not Path('deaf').exists(): pass\n"
         "os._exit(3)", 78),
        ("if rank == 1: os._exit(3)\nat_work()", 3),
        ("if rank == 0: raise RuntimeError('bug')\nat_work()", 1),
        ("if rank == 0: return Path('end').touch()\nwhile not Path('end').exists(): pass\n"
         "time.sleep(0.5)\nraise stage.RunAgain('told too late')", 0),
    ],
)  # fmt: skip
def test_the_exit_code_is_that_of_one_process(body, code):
    assert exit_code(body) == code


@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_is_killed_the_others_are_ended(victim, capfd):
    """They wait for it in an exchange that hears no signal."""
    deaf = "for number in stage.STOP_SIGNALS: signal.signal(number, signal.SIG_IGN)\nat_work()"
    with launched(deaf, grace=0.5) as launcher:
        pid = next(one["pid"] for one in started() if one["rank"] == victim)
        os.kill(pid, signal.SIGKILL)
        assert launcher.wait(timeout=60) == 128 + signal.SIGKILL
        assert nobody_is_left()
    assert f"siftune: rank {victim} was ended by SIGKILL; the others were ended." in (
        capfd.readouterr().err
    )


@pytest.mark.parametrize("number", stage.STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_reaches_all(number):
    with launched("save_when_told()") as launcher:
        launcher.send_signal(number)
        assert launcher.wait(timeout=60) == 75
        assert nobody_is_left()
    assert len(list(Path().glob("saved-*"))) == 3


def test_a_second_signal_does_no_harm():
    with launched("save_when_told(1)") as launcher:
        for _ in range(5):
            launcher.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert launcher.wait(timeout=60) == 75
    assert len(list(Path().glob("saved-*"))) == 3


def test_a_signal_before_the_ranks_can_hear_it_is_no_failure():
    for seconds in (0.05, 0.1, 0.15, 0.2, 0.3):
        with launched("save_when_told()", at_work=False) as launcher:
            time.sleep(seconds)
            launcher.send_signal(signal.SIGUSR1)
            # Before the launcher itself can hear it, it is ended by it: nothing has begun.
            assert launcher.wait(timeout=60) in (75, -signal.SIGUSR1)


def test_the_first_one_saves_for_as_long_as_it_takes():
    body = "save_when_told(2) if rank == 0 else save_when_told()"
    with launched(body, grace=0.3) as launcher:
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=60) == 75
    assert Path("saved-0").exists()


@pytest.mark.parametrize(("end", "code"), [("return", 0), ("raise stage.RunAgain('x')", 75)])
def test_after_the_first_one_nobody_is_waited_for(end, code):
    body = f"""
if rank == 0:
    {end}
for number in stage.STOP_SIGNALS: signal.signal(number, signal.SIG_IGN)
at_work()
"""
    assert exit_code(body, grace=0.5) == code


def test_when_one_was_told_alone_the_others_are_told_too():
    with launched("save_when_told()") as launcher:
        os.kill(next(one["pid"] for one in started() if one["rank"] == 1), signal.SIGUSR1)
        assert launcher.wait(timeout=60) == 75
    assert len(list(Path().glob("saved-*"))) == 3


def test_one_that_was_stopped_alone_before_training_does_not_leave_the_others_waiting():
    body = """
if rank != 1:
    for number in stage.STOP_SIGNALS: signal.signal(number, signal.SIG_IGN)
at_work()
"""
    with launched(body, grace=0.3) as launcher:
        os.kill(next(one["pid"] for one in started() if one["rank"] == 1), signal.SIGTERM)
        assert launcher.wait(timeout=60) == 75
        assert nobody_is_left()


def test_all_start_again_when_one_asks_for_it():
    body = """
started = lambda: len(Path("started").read_text().splitlines())
if started() <= 3:
    while rank == 1 and started() < 3:
        time.sleep(0.01)
    if rank == 1:
        raise stage.StartAgain("a smaller micro batch")
    at_work()
"""
    assert exit_code(body, grace=0.3) == 0
    assert sorted(one["rank"] for one in started()) == [0, 0, 1, 1, 2, 2]
    assert len({one["pid"] for one in started()}) == 6


def test_the_ranks_end_with_a_killed_launcher():
    with launched("at_work()") as launcher:
        launcher.kill()
        launcher.wait()
        until(nobody_is_left)


@pytest.mark.parametrize(
    ("visible", "num"),
    [("0,1,3", 3), ("GPU-8f, GPU-9e", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("NoDevFiles", 0)],
)
def test_gpus_are_counted_as_cuda_does(visible, num, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ranks.num_gpus() == num


def test_gpus_of_this_machine_are_counted(monkeypatch):
    monkeypatch.setattr(ranks, "GPUS", Path("gpus"))
    assert ranks.num_gpus() == 0
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (ranks.GPUS / name).mkdir(parents=True)
    assert ranks.num_gpus() == 2


@pytest.mark.parametrize("wanted", ["0", "-1", "two", ""])
def test_a_wrong_number_of_processes_is_refused(wanted, monkeypatch):
    monkeypatch.setenv(ranks.NUM_PROCESSES, wanted)
    with pytest.raises(UserError, match=f"{ranks.NUM_PROCESSES}='{wanted}'.*1 or more"):
        ranks.launch()
