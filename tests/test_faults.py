"""The trials of tests/faults (`make faults`) see the bugs that they are for."""

import re
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
    reasons = (
        "not the golden", "used all the same", "no adapter",
        # By which of two trainings comes first to what.
        r"two at once|the (first|second) ended with",
    )  # fmt: skip
    for reason in reasons:
        assert re.search(reason, done.stdout), done.stdout
