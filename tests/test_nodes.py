"""Nodes of a job, here processes of one machine: agents and a launcher, without Slurm."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client
from pathlib import Path

import pytest
from waiting import until

from siftune import nodes, processes, ranks, stage

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from siftune import nodes, ranks, stage
nodes.SECONDS_TO_ANSWER, ranks.GRACE = {patience}, 1.0
def save_when_told():
    told = []
    for number in stage.STOP_SIGNALS:
        signal.signal(number, lambda number, frame: told.append(number))
    Path(f"work-{{rank}}").touch()
    while not told:
        time.sleep(0.01)
    Path(f"saved-{{rank}}").write_text(str(told[0]))
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


@pytest.fixture
def job(tmp_path, monkeypatch) -> None:
    """A job of three nodes, and two processes on each."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    set_job(monkeypatch, num_nodes=3)
    monkeypatch.setenv(ranks.NUM_PROCESSES, "2")
    monkeypatch.setenv(stage.ENDED, str(tmp_path / "ended.jsonl"))


def set_job(monkeypatch: pytest.MonkeyPatch, *, num_nodes: int) -> None:
    with socket.socket() as any_port:  # one that is free, as if it came from a job's id
        while True:
            job = secrets.randbelow(nodes.NUM_PORTS)
            with contextlib.suppress(OSError):
                any_port.bind(("", nodes.FIRST_PORT + job))
                break
    monkeypatch.setenv("SLURM_JOB_ID", str(3 * nodes.NUM_PORTS + job))
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", str(num_nodes))
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    monkeypatch.setenv(nodes.KEY, "a key")


def started() -> list[dict]:
    path = Path("started")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def nobody_is_left() -> bool:
    return all(processes.start_time(one["pid"]) is None for one in started())


@contextmanager
def agents(num: int = 2) -> Iterator[list[subprocess.Popen]]:
    """`siftune node` on the other nodes, as slurm/run.sh starts it."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "siftune", "node"],
            env=os.environ | {"SLURM_NODEID": str(node), "SLURMD_NODENAME": f"n{node + 2}"},
        )
        for node in reversed(range(num))
    ]
    try:
        yield running[::-1]
    finally:
        for agent in running:
            agent.kill()
            agent.wait()
        until(nobody_is_left)


def launch(body: str, patience: float = 60) -> subprocess.Popen:
    text = SCRIPT.format(
        body="".join(f"    {line}\n" for line in body.splitlines()), patience=patience
    )
    Path("script.py").write_text(text)
    return subprocess.Popen(
        [sys.executable, "-P", "script.py", "an argument"], stderr=-1, text=True
    )


def ended(launcher: subprocess.Popen) -> tuple[int, str]:
    _, err = launcher.communicate(timeout=60)
    return launcher.returncode, err


def notes() -> list[dict]:
    return [json.loads(line) for line in Path("ended.jsonl").read_text().splitlines()]


def test_each_rank_knows_its_place(job):
    body = """
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
facts = [os.environ[name] for name in names] + [os.environ.get("SLURMD_NODENAME"), sys.argv[1:]]
Path(f"facts-{rank}.json").write_text(json.dumps(facts))
"""
    with agents():
        assert ended(launch(body)) == (0, "")
    facts = [json.loads(Path(f"facts-{rank}.json").read_text()) for rank in range(6)]
    assert [fact[0] for fact in facts] == list("012345")
    assert [fact[1] for fact in facts] == list("010101")
    assert {tuple(fact[2:5]) for fact in facts} == {("6", "2", "127.0.0.1")}
    assert len({fact[5] for fact in facts}) == 1
    assert [fact[6] for fact in facts] == [None, None, "n2", "n2", "n3", "n3"]
    assert all(fact[7] == ["an argument"] for fact in facts)


def test_without_other_nodes_nobody_is_asked(job, monkeypatch):
    monkeypatch.delenv(nodes.KEY)
    assert nodes.gather([]) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise stage.RunAgain('saved')", 75),
        ("if rank == 4: raise stage.UserError('wrong')\ntime.sleep(60)", 78),
        ("if rank == 5: os._exit(3)\ntime.sleep(60)", 3),
        ("if rank == 3: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)", 137),
    ],
)
def test_the_exit_code_is_that_of_one_process(body, code, job):
    with agents():
        assert ended(launch(body))[0] == code
        assert nobody_is_left()


def test_what_a_process_elsewhere_says_at_its_end_is_told(job):
    with agents():
        ended(launch("if rank == 4: raise stage.UserError('wrong')\ntime.sleep(60)"))
    told = [row for row in notes() if row["message"] == "wrong"]
    assert [(row["rank"], row["code"], row["stage"]) for row in told] == [("4", 78, "script")]
    assert (notes()[-1]["rank"], notes()[-1]["code"]) == (None, 78)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda one: one.name)
def test_a_signal_reaches_all_nodes(number, job):
    """The agents get it, too, where a cluster tells all: they stay until their processes ended."""
    with agents() as running:
        launcher = launch("save_when_told()")
        until(lambda: len(list(Path().glob("work-*"))) == 6)
        running[0].send_signal(number)
        launcher.send_signal(number)
        assert ended(launcher)[0] == 75
        assert len(list(Path().glob("saved-*"))) == 6
        assert {path.read_text() for path in Path().glob("saved-*")} == {str(int(number))}
        if number == signal.SIGTERM:
            assert running[0].wait(timeout=20) == 0


def test_one_that_was_told_alone_stops_all(job):
    with agents():
        launcher = launch("save_when_told()")
        until(lambda: len(list(Path().glob("work-*"))) == 6)
        os.kill(next(one["pid"] for one in started() if one["rank"] == 5), signal.SIGTERM)
        assert ended(launcher)[0] == 75
    assert len(list(Path().glob("saved-*"))) == 6


def test_a_dead_agent_ends_all(job):
    with agents() as running:
        launcher = launch("save_when_told()")
        until(lambda: len(list(Path().glob("work-*"))) == 6)
        running[1].kill()
        code, err = ended(launcher)
        assert code == 137
        assert "siftune: n3 (node 2) is gone, and its processes with it." in err
        until(nobody_is_left)


def test_after_a_killed_launcher_nothing_trains_and_the_next_one_is_served(job):
    with agents():
        first = launch("save_when_told()")
        until(lambda: len(list(Path().glob("work-*"))) == 6)
        first.kill()
        first.communicate()
        until(nobody_is_left)
        assert ended(launch("pass")) == (0, "")


def test_all_start_again_when_one_asks_for_it(job):
    body = """
if len(started := Path("started").read_text().splitlines()) <= 6:
    while rank == 4 and len(Path("started").read_text().splitlines()) < 6:
        time.sleep(0.01)
    if rank == 4:
        raise stage.StartAgain("a smaller micro batch")
    time.sleep(60)
"""
    with agents():
        assert ended(launch(body))[0] == 0
    assert sorted(one["rank"] for one in started()) == sorted([*range(6), *range(6)])


def test_a_node_that_does_not_answer_is_said(job):
    with agents(1):
        code, err = ended(launch("pass", patience=3))
    assert code == 75
    assert "siftune: 1 of the 2 other nodes of this job answered at 127.0.0.1:" in err
    assert not started()


def test_a_signal_ends_the_waiting_for_nodes(job):
    launcher = launch("pass")
    until(lambda: is_listening(nodes.address()))
    launcher.send_signal(signal.SIGUSR1)
    code, err = ended(launcher)
    assert (code, "stopped by SIGUSR1" in err) == (75, True)


def is_listening(address: tuple[str, int]) -> bool:
    with contextlib.closing(socket.socket()) as one:
        return one.connect_ex(address) == 0


def test_a_stranger_is_not_served(job):
    """Another user of the node may knock at the port, and may have been there first."""
    launcher = launch("pass")
    until(lambda: is_listening(nodes.address()))
    with pytest.raises((OSError, EOFError, nodes.AuthenticationError)):
        Client(nodes.address(), authkey=b"a guess").send_bytes(b"{}")
    with agents():
        assert ended(launcher) == (0, "")


def test_a_taken_port_is_said(job):
    with socket.socket() as other:
        other.bind(("", nodes.address()[1]))
        other.listen()
        code, err = ended(launch("pass"))
    assert code == 75
    assert f"siftune: port {nodes.address()[1]} of 127.0.0.1 cannot be listened on" in err


def test_an_agent_without_work_ends_when_told(job):
    with agents(1) as (agent,):
        time.sleep(1)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=20) in (0, -signal.SIGTERM)


TRAINING = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from siftune import ranks, stage
def main():
    ranks.launch()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    model, rows, losses = torch.nn.Linear(8, 1), torch.randn(20, 12, 8), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    for step in range(20):
        mine = rows[step, rank::world]
        loss = ((model(mine).squeeze() - mine.sum(1)) ** 2).sum() / 12
        optimiser.zero_grad()
        loss.backward()
        for number in [loss.detach(), *(weights.grad for weights in model.parameters())]:
            if world > 1:
                dist.all_reduce(number)
        losses.append(loss.item())
        optimiser.step()
    if rank == 0:
        Path(f"losses-{world}.json").write_text(json.dumps(losses))
stage.run(main)
"""


def test_three_nodes_learn_what_one_process_does(job, monkeypatch):
    """At the same global batch, in fp32: sums in another order, to one part in 100,000."""
    Path("script.py").write_text(TRAINING)
    command = [sys.executable, "-P", "script.py"]
    with agents():
        assert subprocess.run(command, timeout=120).returncode == 0
    monkeypatch.delenv(nodes.KEY)
    monkeypatch.delenv(ranks.NUM_PROCESSES)
    assert subprocess.run(command, timeout=120).returncode == 0
    several, alone = (json.loads(Path(f"losses-{num}.json").read_text()) for num in (6, 1))
    assert len(alone) == 20
    assert alone[-1] < alone[0] / 2
    assert several == pytest.approx(alone, rel=1e-5)
