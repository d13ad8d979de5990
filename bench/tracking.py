"""How much longer a training step takes when MLflow answers, refuses, or says nothing.

Not a test. Rounds of all cases are interleaved in one run, so that a machine whose speed changes
slows all of them alike; the ratio is of the medians over all steps of a case.
"""

import argparse
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from siftune import stage, tracking

NUM_WARMUP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100, help="of each round")
    parser.add_argument("--matrix", type=int, default=1200, help="rows of what a step multiplies")
    arguments = parser.parse_args()
    os.environ.update(stage.QUIET_LIBRARIES)
    with tempfile.TemporaryDirectory() as folder, silent_server() as silent:
        os.chdir(folder)
        Path("params.yaml").write_text(yaml.safe_dump({"sft": {"seed": 1}}))
        cases = {
            "answers (SQLite)": f"sqlite:///{folder}/mlflow.db",
            "refuses": "http://127.0.0.1:9",
            "says nothing": silent,
        }
        times: dict[str, list[float]] = {"no log at all": [], **{name: [] for name in cases}}
        for _ in range(arguments.rounds):
            times["no log at all"] += steps(arguments, None)
            for name, address in cases.items():
                os.environ["MLFLOW_TRACKING_URI"] = address
                with tracking.stage("sft", "sft") as run:
                    times[name] += steps(arguments, run)
    usual = statistics.median(times["no log at all"])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name:18} {1000 * median:7.1f} ms a step  {median / usual:.3f}")


def steps(arguments: argparse.Namespace, run: tracking.Run | None) -> Iterator[float]:
    """Seconds of each step: a fixed piece of work, and what a training logs of it."""
    matrix = torch.rand(arguments.matrix, arguments.matrix)
    for step in range(NUM_WARMUP + arguments.steps):
        began = time.perf_counter()
        for _ in range(2):
            matrix @ matrix
        if run:
            run.log({"train_loss": 1.0 / (step + 1), "learning_rate": 1e-4}, step=step)
        if step >= NUM_WARMUP:
            yield time.perf_counter() - began


@contextmanager
def silent_server() -> Iterator[str]:
    """One that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


if __name__ == "__main__":
    main()
