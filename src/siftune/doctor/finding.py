"""What was found, how it is printed, and how tools are asked."""

import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"
# Of one tool; some ask a server.
PATIENCE = 2.0
WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """One fact, whether it is well, and what to do where it is not."""

    level: str
    about: str
    what: str
    todo: str = ""


Check = Callable[[], Iterator[Finding]]


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """In columns, for a terminal and for a log alike."""
    width = max(len(one.about) for one in found)
    for one in found:
        start = f"{one.level:<{len(PROBLEM)}}  {one.about:<{width}}  "
        for text in filter(None, (one.what, one.todo and f"-> {one.todo}")):
            yield from textwrap.wrap(
                text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start),
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
            start = " " * len(start)


def ask(*command: str, patience: float = PATIENCE) -> str | None:
    """What a tool prints; None: it is not there, refuses, or does not answer in time."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=patience,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
