import signal
import subprocess
import sys
import time

from siftune import stage

SCRIPT = """
import sys, time
from siftune import stage
def main():
    {body}
stage.run(main)
"""


def run(body: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-c", SCRIPT.format(body=body)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def test_a_finished_stage_exits_0():
    assert run("pass").returncode == stage.FINISHED


def test_a_users_mistake_is_one_message_and_78():
    done = run("raise stage.UserError('params.yaml: x: wrong')")
    assert done.returncode == stage.DO_NOT_RETRY == 78
    assert done.stderr == "siftune: params.yaml: x: wrong\n"


def test_a_crash_keeps_its_traceback_and_is_no_78():
    done = run("raise RuntimeError('bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_sigterm_unwinds_the_stage():
    body = "exec('try:\\n print(1, flush=True); time.sleep(60)\\nfinally:\\n print(\"closed\")')"
    command = [sys.executable, "-P", "-c", SCRIPT.format(body=body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "closed\n"
    assert process.returncode == 143
