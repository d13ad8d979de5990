"""Waiting for what another process does."""

import time
from collections.abc import Callable

SECONDS = 60.0  # a busy machine takes its time


def until(condition: Callable[[], object]) -> None:
    """Return once it is true."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not true after {SECONDS:.0f} s"
        time.sleep(0.05)
