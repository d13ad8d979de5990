"""A signal, the end of the job, or a file: each asks to stop, and a handler tears nothing."""

import os
import signal
import time
from pathlib import Path

import pytest

from siftune import stage
from siftune.resume import stopping


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    Path("work").mkdir()


@pytest.mark.parametrize("number", stage.STOP_SIGNALS)
def test_a_signal_asks_and_interrupts_nothing(number):
    before = signal.getsignal(number)
    with stopping.watched() as stop:
        assert stop.reason() is None
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.reason() == f"signal {number.name}"
    assert signal.getsignal(number) is before


def test_the_end_of_the_slurm_job_asks_in_time(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 600))
    with stopping.watched() as stop:
        assert stop.reason() is None
        stop.saved_in(300.0)  # a save of five minutes would not be done in time
        assert "the Slurm job ends in" in stop.reason()


def test_a_file_asks_once(monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_LOOKS", 0.0)
    with stopping.watched() as stop:
        stopping.STOP_FILE.touch()
        assert stop.reason() == "work/stop asks for it"
        stop.obeyed()
    assert not stopping.STOP_FILE.exists()


def test_a_file_that_was_meant_for_an_earlier_one_is_not_obeyed(monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_LOOKS", 0.0)
    stopping.STOP_FILE.touch()
    with stopping.watched() as stop:
        assert stop.reason() is None
