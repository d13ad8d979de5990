"""The trials of tests/faults (`make faults`) see the bugs that they are for."""

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parent / "faults/run.py"


def test_bugs_that_are_put_in_are_seen():
    done = subprocess.run([sys.executable, str(RUN), "--self-test"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(told) == 4
    assert all("LOST" in line or "SILENT" in line for line in told)
    # For the right reasons.
    for reason in ("not the golden", "used all the same", "no adapter", "ended with"):
        assert reason in done.stdout, done.stdout
