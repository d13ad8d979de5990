"""A start is noted with its end; what is made of something else is not continued in silence."""

import json
import signal

import pytest

from siftune.resume import attempt, stopping
from siftune.resume.fingerprint import Fingerprint
from siftune.stage import RunAgain, StartAgain, UserError

HERE = Fingerprint({"params": {"sft": {"learning_rate": 0.2}}})
THERE = Fingerprint({"params": {"sft": {"learning_rate": 0.1}}})


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def rows(made_of: Fingerprint) -> list[dict]:
    lines = (made_of.folder / attempt.STARTS).read_text().splitlines()
    return [json.loads(line) for line in lines]


def train(made_of: Fingerprint, error: BaseException | None = None) -> None:
    with attempt.of(made_of, "5 steps") as start:
        start.begin()
        aside = start.checkpoints.aside(5)
        start.checkpoints.publish(aside, 5, {"world_size": 1, "max_steps": 9})
        start.saved(5, seconds=0.1)
        if error:
            raise error


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, {"ended": "finished", "step": 5}),
        (RunAgain("stopped"), {"ended": "stopped", "step": 5}),
        (SystemExit(75), {"ended": "stopped", "step": 5}),
        (StartAgain("smaller"), {"ended": "stopped", "step": 5}),
        (ValueError("a\nb"), {"ended": "crashed", "step": 5, "error": "ValueError: a"}),
        (UserError(""), {"ended": "crashed", "step": 5, "error": "UserError"}),
    ],
)
def test_every_end_is_noted(error, end):
    before = signal.getsignal(signal.SIGTERM)
    if error:
        with pytest.raises(type(error)):
            train(HERE, error)
    else:
        train(HERE)
    started, ended = rows(HERE)
    assert started["step"] == 0
    assert started["pid"] > 0
    assert ended == end
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_unfinished_training_of_another_kind_is_told(capsys):
    with pytest.raises(RunAgain):
        train(THERE, RunAgain("stopped"))
    train(HERE)
    told = capsys.readouterr().err
    assert f"work/{THERE.digest} holds a training that is not finished" in told
    assert "params.sft.learning_rate: 0.1 there, 0.2 here" in told


def test_one_whose_facts_cannot_be_read_stops_nothing(capsys):
    with pytest.raises(RunAgain):
        train(THERE, RunAgain("stopped"))
    (THERE.folder / attempt.MADE_OF).write_text("{")
    train(HERE)
    assert "fingerprint.json cannot be read" in capsys.readouterr().err


def test_a_finished_one_is_not(capsys):
    train(THERE)
    train(HERE)
    assert THERE.digest not in capsys.readouterr().err


def test_a_requeued_job_does_not_begin_another_training(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(RunAgain):
        train(THERE, RunAgain("stopped"))
    with pytest.raises(UserError, match=r"Slurm job \(77\)(.|\n)*learning_rate: 0\.1 there, 0\.2"):
        train(HERE)
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    train(HERE)


def test_a_save_is_due_by_steps_or_by_minutes(monkeypatch):
    by_steps = attempt.Attempt(HERE, stopping.StopRequest(), "5 steps")
    assert [step for step in range(1, 12) if by_steps.is_save_due(step)] == [5, 10]
    clock = [1000.0]
    monkeypatch.setattr(attempt.time, "monotonic", lambda: clock[0])
    by_minutes = attempt.Attempt(HERE, stopping.StopRequest(), "2 minutes")
    clock[0] += 119
    assert not by_minutes.is_save_due(7)
    clock[0] += 1
    assert by_minutes.is_save_due(8)
    by_minutes.saved(8, seconds=3.0)
    assert not by_minutes.is_save_due(9)
