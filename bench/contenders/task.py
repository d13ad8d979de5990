"""What a contender is asked to do, and its answer. Standard library only: it serves any Python."""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Task:
    """Conversations to tokens and labels, with Arrow files at the end, all below `folder`."""

    rows: str  # a JSONL file, conversations under `messages`
    tokenizer: str  # a folder
    folder: str  # empty at the start
    max_length: int  # tokens
    num_processes: int
    show: bool  # write out what was made, to be compared


class Moment(NamedTuple):
    """Both in seconds."""

    clock: float  # the same in all processes
    cpu: float  # used so far by this process and its children that have ended


def read() -> Task:
    """The task on the command line."""
    return Task(**json.loads(sys.argv[1]))


def now() -> Moment:
    """To be asked when all is imported and loaded: the work begins."""
    used = os.times()
    cpu = used.user + used.system + used.children_user + used.children_system
    return Moment(time.monotonic(), cpu)


def answer(task: Task, began: Moment, encoded: Any) -> None:
    """Say that the work is done. `encoded`: its rows, with input_ids and labels."""
    ended = now()
    if task.show:
        rows = [[row["input_ids"], row["labels"]] for row in encoded]
        (Path(task.folder) / "encoded.json").write_text(json.dumps(rows))
    said = {"began": began, "ended": ended, "num_rows": len(encoded)}
    (Path(task.folder) / "answer.json").write_text(json.dumps(said))
