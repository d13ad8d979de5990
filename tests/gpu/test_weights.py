"""What only a GPU can do: quantised bases, fp16 and bf16, FlashAttention's relatives, Unsloth."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from siftune import tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LESSON = Path(__file__).parent / "lesson.py"


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


@pytest.fixture(scope="module")
def learn(tmp_path_factory, tiny_model):
    """A function: what a training with these keys of load and lora learned."""
    start = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
            initializer_range=0.05,
        )
    ).save_pretrained(start / "base")  # fmt: skip
    for file in tiny_model.glob("token*"):
        (start / "base" / file.name).write_bytes(file.read_bytes())
    (start / "encoded").mkdir()
    for split in tokens.SPLITS:
        rows = [[3 + (7 * n + step) % 500 for step in range(24)] for n in range(64)]
        with tokens.write(split, start / "encoded") as out:
            out.write_batch(
                tokens.batch([(str(n), ids, [-100, *ids[1:]]) for n, ids in enumerate(rows)])
            )

    def run(**changed) -> dict:
        folder = tmp_path_factory.mktemp("lesson")
        for name in ("base", "encoded"):
            (folder / name).symlink_to(start / name)
        done = subprocess.run(
            [sys.executable, str(LESSON), str(folder), json.dumps(changed)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def plain(learn) -> dict:
    return learn()


def test_it_learns_in_the_dtype_of_the_device(plain):
    assert plain["loaded"]["computes_in"] in ("bfloat16", "float16")
    assert plain["losses"][-1] < 0.8 * plain["losses"][0]


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_other_dtypes_learn_the_same(dtype, learn, plain):
    """fp16 with a scaled loss, as on V100."""
    assert learn(dtype=dtype)["losses"] == pytest.approx(plain["losses"], rel=0.05)


@needs("bitsandbytes")
@pytest.mark.parametrize("quantise", ["nf4", "fp4", "int8"])
def test_on_a_quantised_base_it_learns_nearly_the_same(quantise, learn, plain):
    """And in the merge, on the base as it was, only what quantisation lost comes back."""
    found = learn(quantise=quantise, double_quantise=quantise != "int8")
    assert found["megabytes"] < 0.75 * plain["megabytes"]
    assert found["losses"] == pytest.approx(plain["losses"], rel=0.1)
    assert found["merged"] < 1e-3
    assert found["lost"] < 0.1


@needs("bitsandbytes")
@pytest.mark.parametrize("rslora", [False, True])
def test_loftq_is_nearer_to_the_base_than_nf4(rslora, learn):
    """At any scale: PEFT's own first factors are right only where alpha is the rank."""
    plain, loftq = (
        learn(quantise="nf4", rslora=rslora, init=init) for init in ("default", "loftq")
    )
    assert loftq["lost"] < plain["lost"]
    assert loftq["losses"][0] <= plain["losses"][0] * 1.01


@needs("unsloth")
@pytest.mark.parametrize("load", [{}, {"quantise": "nf4", "double_quantise": True}], ids=str)
def test_unsloth_learns_what_transformers_does(load, learn):
    """Other kernels, so loosely: 5 % of the loss at every step."""
    theirs, ours = (learn(engine=engine, **load) for engine in ("unsloth", "hf"))
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=0.05)
    assert theirs["merged"] < 1e-3
