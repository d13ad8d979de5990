"""Weights and optimiser in shards (FSDP): published whole, and resumed with the same bits."""

import os
from pathlib import Path

import pytest
import small
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from trainings import Sink, in_ranks
from transformers import LlamaConfig, LlamaForCausalLM

from siftune import tokens
from siftune.learning_curve import LearningCurve
from siftune.resume import checkpoints
from siftune.stage import RunAgain, UserError
from siftune.talk.weights import Weights
from siftune.training import adapters
from siftune.training import sft as training


@pytest.fixture(autouse=True)
def _also_without_gpus(monkeypatch):
    """accelerate shards over GPUs only; torch shards over any processes."""
    init = AcceleratorState.__init__

    def on_cpus(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    monkeypatch.setattr(AcceleratorState, "__init__", on_cpus)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    draw = torch.Generator().manual_seed(0)
    for split, num_rows in (("train", 16), ("validation", 6)):
        ids = [torch.randint(3, 96, (8,), generator=draw).tolist() for _ in range(num_rows)]
        with tokens.write(split, folder) as out:
            out.write_batch(tokens.batch([(str(n), x, [-100, *x[1:]]) for n, x in enumerate(ids)]))
    return folder


@pytest.fixture
def make(tokenizer, encoded, begin_attempt):
    def new(*, shards: bool, **changed):
        settings = small.sft(
            save_every="1 steps", micro_batch=1, num_epochs=2.0,
            trainer={"gradient_checkpointing": False, "fsdp": shards}, **changed,
        )  # fmt: skip
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
        ))  # fmt: skip
        log, start = Sink(), begin_attempt(settings.save_every)
        made = training.make_trainer(
            model, tokenizer, sft=settings, encoded=encoded, num_new_tokens=0,
            curve=LearningCurve(log, examples_per_step=4), attempt=start,
            folder=start.folder / "scratch",
        )  # fmt: skip
        return made, log, start

    return new


LAYOUTS = {"an adapter": small.lora(), "all weights": None}
NUM_STEPS = 8


def in_folder(name: str) -> None:
    Path(name).mkdir(exist_ok=True)
    os.chdir(name)


def checkpoint(folder: str, step: int) -> dict[str, str]:
    """sha256 of what the training goes on from."""
    (found,) = Path(folder).glob(f"work/*/checkpoints/step-{step:08d}")
    described = checkpoints.verify(found).manifest["files"]
    return {name: facts["sha256"] for name, facts in described.items()}


@pytest.mark.parametrize(("layout", "stopped_at"), [("an adapter", 3), ("all weights", 4)])
def test_stopped_anywhere_they_go_on_exactly(layout, stopped_at, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora = LAYOUTS[layout]

    def trained(made) -> None:
        assert made.is_fsdp_enabled
        adapters.save(made.model, Path("published"), base="b", first={}, weights=made.gathered)

    def whole(rank: int) -> None:
        in_folder("whole")
        made, _, start = make(shards=True, lora=lora)
        made.train_from(start.begin())
        for module in made.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        # Each process holds its half.
        weights = [one for one in made.model.parameters() if one.requires_grad]
        assert {type(one) for one in weights} == {DTensor}
        halves = sum(one.to_local().numel() for one in weights)
        assert halves == pytest.approx(sum(one.numel() for one in weights) / 2, rel=0.1)
        if rank == 0:
            trained(made)

    def stopped(rank: int) -> None:
        in_folder("resumed")
        made, _, start = make(shards=True, lora=lora)
        # After three steps, between two micro batches; after four, in the evaluation.
        place = {3: (3, 1), 4: (4, 0)}[stopped_at]

        def is_here() -> bool:
            step, micro = made._micro_step
            here = (made.state.global_step, micro + 1 if step == made.state.global_step else 0)
            return here == place and made._evaluating == (stopped_at == 4)

        start.stop.reason = lambda: "test" if rank == 1 and is_here() else None
        with pytest.raises(RunAgain, match="stopped at step"):
            made.train_from(start.begin())

    def again(rank: int) -> None:
        in_folder("resumed")
        made, _, start = make(shards=True, lora=lora)
        found = start.begin()
        assert found.step == stopped_at
        made.train_from(found)
        if rank == 0:
            trained(made)

    def alone(rank: int) -> None:
        in_folder("copies")
        made, _, start = make(shards=False, lora=lora)
        made.train_from(start.begin())
        if rank == 0:
            adapters.save(made.model, Path("published"), base="b", first={})

    for work in (whole, stopped, again, alone):
        in_ranks(2, work)
    for step in (NUM_STEPS - 1, NUM_STEPS):
        assert checkpoint("resumed", step) == checkpoint("whole", step)
    published = {
        folder: {path.name: path.read_bytes() for path in Path(folder, "published").iterdir()}
        for folder in ("whole", "resumed", "copies")
    }
    assert published["resumed"] == published["whole"]
    # What is published is what a training with whole copies publishes, up to rounding.
    (name,) = (name for name in published["whole"] if name.endswith(".safetensors"))
    for other in published["whole"].keys() - {name}:
        assert published["whole"][other] == published["copies"][other], other
    one, other = (load_file(Path(folder, "published", name)) for folder in ("whole", "copies"))
    assert one.keys() == other.keys()
    for key, weight in one.items():
        torch.testing.assert_close(weight, other[key], rtol=1e-4, atol=1e-5)


def test_another_number_of_processes_is_refused_and_one_alone_has_no_shards(
    make, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def stopped(rank: int) -> None:
        made, _, start = make(shards=True)
        start.stop.reason = lambda: "test" if made.state.global_step == 2 else None
        with pytest.raises(RunAgain):
            made.train_from(start.begin())

    in_ranks(2, stopped)
    made, _, start = make(shards=True)
    assert not made.is_fsdp_enabled
    monkeypatch.setenv("SIFTUNE_ANY_WORLD_SIZE", "1")
    with pytest.raises(UserError, match=r"parts of 2 processes.*here are 1: start with 2"):
        start.begin()
    (folder,) = Path().glob("work/*/checkpoints/step-00000002")
    saved = Weights("x/2", folder, checkpoints.verify(folder).manifest, "sft")
    with pytest.raises(UserError, match=r"x/2 holds the parts of several processes"):
        saved.refuse_broken()
