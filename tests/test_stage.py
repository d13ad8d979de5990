import signal
import subprocess
import sys
import textwrap

import pytest

from siftune import stage

SCRIPT = """
import errno, gc, os, pickle, signal, sys, time
from siftune import stage
def kill(number):
    os.kill(os.getpid(), number)
def main():
{body}
stage.run(main)
"""


def code(body: str) -> list[str]:
    script = SCRIPT.format(body=textwrap.indent(textwrap.dedent(body).strip(), "    "))
    return [sys.executable, "-P", "-c", script]


def run(body: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(code(body), capture_output=True, text=True, timeout=60, **kwargs)


def test_a_finished_stage_exits_0():
    assert run("pass").returncode == stage.FINISHED


def test_a_users_mistake_is_one_message_and_78():
    done = run("raise stage.UserError('params.yaml: x: wrong')")
    assert done.returncode == stage.DO_NOT_RETRY == 78
    assert done.stderr == "siftune: params.yaml: x: wrong\n"


def test_run_again_is_one_line_and_75():
    done = run("raise stage.RunAgain('saved at step 3')")
    assert done.returncode == stage.RUN_AGAIN == 75
    assert done.stderr == "siftune: saved at step 3\n"


def test_a_crash_keeps_its_traceback_and_is_neither():
    done = run("raise RuntimeError('bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_error_of_files_that_is_no_fault_of_a_disk_is_a_crash():
    done = run("open('/nowhere/at/all')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_full_disk_is_one_line_and_78(tmp_path):
    body = "raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'models/adapter')"
    done = run(body, cwd=tmp_path)
    assert done.returncode == 78
    assert done.stderr.startswith("siftune: models/adapter: the disk is full. Make room there")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_is_gone_does_not_change_the_exit_code():
    process = subprocess.Popen(code("time.sleep(0.3)\nraise stage.RunAgain('x')"), stderr=-1)
    process.stderr.close()
    assert process.wait(timeout=60) == 75


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2],
    ids=lambda number: number.name,
)
def test_a_signal_unwinds_the_stage(number):
    body = """
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("closed")
    """
    with subprocess.Popen(code(body), stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        assert process.stdout.read() == "closed\n"
        assert process.stderr.read() == f"siftune: stopped by {number.name}; start it again to go on\n"  # fmt: skip # noqa: E501
    assert process.returncode == 75


def test_later_signals_do_not_tear_the_cleaning_up():
    done = run(
        """
        from contextlib import contextmanager
        @contextmanager
        def opened():
            try:
                yield
            finally:
                for number in stage.STOP_SIGNALS:
                    kill(number)
                print("closed")
        class Other:
            def __enter__(self):
                pass
            def __exit__(self, *error):
                kill(signal.SIGTERM)
                print("closed, too")
        with Other(), opened():
            kill(signal.SIGUSR1)
        """
    )
    assert (done.returncode, done.stdout) == (75, "closed\nclosed, too\n")


def test_a_signal_does_not_tear_the_end_of_a_training_that_has_saved():
    done = run(
        """
        try:
            raise stage.RunAgain("saved at step 3")
        finally:
            kill(signal.SIGTERM)
            print("closed")
        """
    )
    assert (done.returncode, done.stdout) == (75, "closed\n")
    assert done.stderr == "siftune: saved at step 3\n"


def test_a_signal_that_python_lost_is_not_the_last_one():
    """What is raised in a finaliser is dropped by Python: the next signal must count."""
    done = run(
        """
        class Thing:
            def __del__(self):
                kill(signal.SIGTERM)
        Thing()
        print("goes on", flush=True)
        kill(signal.SIGTERM)
        print("never")
        """
    )
    assert (done.returncode, done.stdout) == (75, "goes on\n")


def test_a_signal_in_a_worker_process_stops_the_stage():
    """A worker's exception comes to the stage pickled."""
    done = run(
        """
        from concurrent.futures import ProcessPoolExecutor
        import multiprocessing
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            pool.submit(os.kill, 0, 0).result()
            pool.submit(signal.raise_signal, signal.SIGINT).result()
        """
    )
    assert done.returncode == 75
    assert "stopped by SIGINT" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_signal_handler_announces_is_known():
    body = "print(stage.is_stopping()); stage.announce_stop(); print(stage.is_stopping())"
    assert run(body).stdout == "False\nTrue\n"
