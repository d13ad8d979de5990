"""A tiny base in the current folder, and phases that are trained on it one after another."""

from pathlib import Path
from typing import Any

import small
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from siftune import files, merging, models, tokens
from siftune.learning_curve import LearningCurve
from siftune.sections import PHASES, Model, Pretrain, Training
from siftune.training import adapters, left_out, origin, phases, pretrain, run, sft

VOCABULARY = 96


class Sink:
    """Takes what a run would log."""

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.logged.setdefault(step, {}).update(values)


def make_base(tokenizer: Any) -> Path:
    """A random model, models/base.json, models/tokenizer, no phase yet, and tokens for two."""
    folder = Path("base").absolute()
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(models.TOKENIZER)
    source = Model("tiny", str(folder), None, "mit", gated=False, stop_tokens=[])
    files.write_json(models.MANIFEST, models.fetch_base(source))
    for phase in PHASES:  # as where they are left out
        left_out.published(phase).mkdir()
    draw = torch.Generator().manual_seed(1)
    for phase, begin in (("pretrain", 0), ("sft", 2)):
        for split, num_rows in (("train", 8), ("validation", 3)):
            target = tokens.folder_of(phase)
            target.mkdir(parents=True, exist_ok=True)
            drawn = [torch.randint(3, VOCABULARY, (12,), generator=draw) for _ in range(num_rows)]
            rows = [
                (str(number), ids.tolist(), [-100] * begin + ids[begin:].tolist())
                for number, ids in enumerate(drawn)
            ]
            with tokens.write(split, target) as out:
                out.write_batch(tokens.batch(rows))
    return folder


def section(kind: type[Training], **changed: Any) -> Any:
    """Of one epoch of two steps, at a rate that changes much."""
    own = {"block_size": 8} if kind is Pretrain else {}
    values = vars(small.sft(global_batch=4, eval_every=1)) | own | changed
    return kind(**{name: value for name, value in values.items() if not name.startswith("_")})


def trainer_of(one: Training, begin_attempt: Any, **parts: Any) -> tuple[Any, Sink]:
    """The phase's trainer, as its script makes it, and what it logs."""
    sink, attempt = Sink(), begin_attempt(one.save_every, phase=one.phase, **parts)
    ground = run.Ground(
        section=one,
        earlier=phases.before(one.phase),
        tokenizer=models.load_tokenizer(),
        num_new_tokens=0,
        rows=tokens.folder_of(one.phase),
        attempt=attempt,
        curve=LearningCurve(sink, examples_per_step=4, also=pretrain.CURVES),
        scratch=attempt.folder / "scratch",
        tracked=None,
    )
    if isinstance(one, Pretrain):
        return pretrain.make_trainer(ground, one.block_size), sink
    made = sft.make_trainer(
        ground.model(),
        ground.tokenizer,
        sft=one,
        encoded=ground.rows,
        num_new_tokens=0,
        curve=ground.curve,
        attempt=ground.attempt,
        folder=ground.scratch,
    )
    return made, sink


def train(one: Training, begin_attempt: Any) -> tuple[Any, Sink]:
    """Train the phase to its end and publish it."""
    trainer, sink = trainer_of(one, begin_attempt)
    trainer.train_from(None)
    name = origin.name(one.phase)
    with files.published_folder(left_out.published(one.phase)) as folder:
        adapters.save(trainer.model, folder, base=name, first=trainer.first_factors)
    return trainer, sink


def mean_loss(model: Any) -> float:
    """Nats a trained token of all of sft's rows."""
    rows = tokens.read("train", tokens.folder_of("sft"))
    nats = [
        torch.nn.functional.cross_entropy(one[1:-1], torch.tensor(row["labels"][2:]))
        for row, one in zip(rows, merging.logits(model, rows["input_ids"]), strict=True)
    ]
    return torch.stack(nats).mean().item()
