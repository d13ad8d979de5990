"""How the time of a training step grows: with what rows share, their number, their length.

A Llama of SmolLM2-135M's widths with fewer layers, random weights and tokens, LoRA r=16 on seven
projections, fp32 on the CPU; forward and backward by padded rows and by packs, in turns. Beside
them is what counting the multiplications predicts, at the rate of the machine's matrix products.
Writes a table and a plot into a folder (`--to`).
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import pyplot
from peft import LoraConfig, get_peft_model
from throughput import PROJECTIONS, SEED, Rows, counted, packed, padded
from transformers import LlamaConfig, LlamaForCausalLM

from siftune.throughput import attention, lora, memory

ANSWER = 25  # the last tokens of a row, which are trained
SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)  # of a row, that all rows of a batch begin with
NUM_ROWS = (1, 2, 4, 8)
LENGTHS = (128, 512, 2048, 8192)  # tokens of a row
USUAL_SHARE, USUAL_ROWS, USUAL_LENGTH = 0.75, 4, 512
NUM_TRIES = 2  # of each step; the fastest counts
CONFIG = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=2,
    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    max_position_embeddings=max(LENGTHS),
)  # fmt: skip
WIDE = 20  # a quantity that grows so many times is drawn by logarithms
LINES = {"rows": ("#b3402f", "o-"), "packs": ("#1f5fa8", "o-"), "counted": ("#777", "--")}


class Point(NamedTuple):
    at: float
    rows: float  # CPU seconds
    packs: float
    counted: float  # seconds


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    memory.keep_freed()
    ways = {"rows": contender("rows"), "packs": contender("packs")}
    rate = matrix_rate()
    plots = {
        f"share of a row that all {USUAL_ROWS} begin with": [
            measure(share, batch(USUAL_ROWS, share), ways, rate) for share in SHARES
        ],
        f"rows a step, {USUAL_SHARE:.0%} in common": [
            measure(number, batch(number, USUAL_SHARE), ways, rate) for number in NUM_ROWS
        ],
        f"tokens of {USUAL_ROWS} rows, {USUAL_SHARE:.0%} in common": [
            measure(length, batch(USUAL_ROWS, USUAL_SHARE, length), ways, rate)
            for length in LENGTHS
        ],
    }
    chosen.to.mkdir(parents=True, exist_ok=True)
    (chosen.to / "growth.md").write_text(table(plots))
    draw(plots, chosen.to / "growth.svg")
    print(table(plots))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--to", type=Path, default=Path("work/bench"))
    return parser.parse_args()


def batch(num_rows: int, share: float, length: int = USUAL_LENGTH) -> Rows:
    draw = np.random.default_rng(SEED)
    common = draw.integers(0, CONFIG.vocab_size, int(share * length))
    own = draw.integers(0, CONFIG.vocab_size, (num_rows, length - len(common)))
    ids = [np.concatenate([common, row]) for row in own]
    is_trained = np.arange(length) >= length - ANSWER
    return ids, [np.where(is_trained, row, -100) for row in ids]


def contender(name: str) -> Callable[[Rows], float]:
    """A function: CPU seconds of one step on a batch."""
    torch.manual_seed(SEED)
    config = LoraConfig(r=16, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    if name == "packs":
        lora.use_in(config)
    model: Any = get_peft_model(LlamaForCausalLM(copy.deepcopy(CONFIG)), config).train()
    if name == "packs":
        attention.register()
        model.set_attn_implementation(attention.NAME)
    way = packed if name == "packs" else padded

    def step(given: Rows) -> float:
        began = time.process_time()
        way(model, given).backward()
        return time.process_time() - began

    return step


def measure(at: float, given: Rows, ways: dict[str, Callable[[Rows], float]], rate: float) -> Point:
    """The fastest of some steps each, in turns."""
    tries = [{name: step(given) for name, step in ways.items()} for _ in range(NUM_TRIES)]
    rows, packs = (min(one[name] for one in tries) for name in ("rows", "packs"))
    return Point(at, rows, packs, counted(CONFIG, given) / rate)


def matrix_rate() -> float:
    """FLOPs a CPU second of a product as the layers have them."""
    x, weight = (
        torch.randn(1024, CONFIG.hidden_size),
        torch.randn(CONFIG.intermediate_size, CONFIG.hidden_size),
    )
    flops, best = 2.0 * x.numel() * len(weight), 0.0
    for _ in range(20):
        began = time.process_time()
        x @ weight.T
        best = max(best, flops / (time.process_time() - began))
    return best


def table(plots: dict[str, list[Point]]) -> str:
    lines = []
    for title, points in plots.items():
        lines += [
            f"| {title} | rows, CPU s | packs, CPU s | ratio | counted, s |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {one.at:g} | {one.rows:.2f} | {one.packs:.2f} | {one.rows / one.packs:.2f} "
            f"| {one.counted:.2f} |"
            for one in points
        ]
        lines.append("")
    return "\n".join(lines)


def draw(plots: dict[str, list[Point]], file: Path) -> None:
    """CPU seconds a step over each quantity; a wide one by logarithms."""
    figure, panels = pyplot.subplots(1, len(plots), figsize=(4.2 * len(plots), 3.6))
    for panel, (title, points) in zip(panels, plots.items(), strict=True):
        for name, (colour, dash) in LINES.items():
            seconds = [getattr(one, name) for one in points]
            panel.plot([one.at for one in points], seconds, dash, color=colour, label=name)
        if points[0].at and points[-1].at / points[0].at > WIDE:
            panel.loglog(base=2)
            panel.set_xticks([one.at for one in points], [f"{one.at:g}" for one in points])
            panel.yaxis.set_major_formatter("{x:g}")
        else:
            panel.set_ylim(bottom=0)
        panel.set_xlabel(title)
        panel.grid(color="#ddd")
    panels[0].set_ylabel("CPU seconds a step")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
