"""Each preset of a base model with each method; and its architecture at a tiny size, trained."""

from pathlib import Path

import pytest
import small
import torch
import transformers
import yaml

from siftune import architecture, config, models, presets, tokens
from siftune.chat import masking, templates
from siftune.chat.families import FAMILIES
from siftune.learning_curve import LearningCurve
from siftune.sections import Model
from siftune.training import sft

ROOT = Path(__file__).parent.parent
MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
METHODS = sorted(path.stem for path in (ROOT / "conf/method").glob("*.yaml"))
# Of these no commit could be confirmed: their users pin them.
UNPINNED = {
    "breeze-7b", "breeze-7b-instruct", "mistral-small-24b", "qwen3-14b-base", "taide-7b-chat",
}  # fmt: skip


def preset(name: str) -> dict:
    return yaml.safe_load((ROOT / f"conf/model/{name}.yaml").read_text())


def test_what_the_seeds_train_is_there():
    assert len(MODELS) >= 40
    assert set(MODELS) >= {
        "llama-3.1-8b", "llama-3.1-8b-instruct", "llama-3.2-1b", "llama-3.2-1b-instruct",
        "llama-3.2-3b", "llama-3.2-3b-instruct", "qwen2.5-7b", "qwen2.5-7b-instruct", "qwen2.5-32b",
        "qwen2.5-32b-instruct", "gemma-2-9b", "gemma-2-9b-it", "mistral-small-24b",
        "mistral-small-24b-instruct", "phi-4", "phi-4-mini-instruct", "qwen2.5-3b",
        "qwen2.5-3b-instruct", "taide-7b", "breeze-7b", "llama-3-8b", "qwen2.5-1.5b", "qwen3-8b",
        "gemma-3-1b-it", "smollm2-135m-instruct",
    }  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_preset_says_all_of_a_model_and_no_more(name: str, tmp_path, monkeypatch):
    """With each method: none of them takes the model's template back."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(config, "PARAMS_FILE", tmp_path / "params.yaml")
    own = preset(name)
    assert set(own) == {"model", "encode"}
    assert own["model"]["name"] == name
    assert own["encode"]["template"] in {None, *FAMILIES}
    family = FAMILIES.get(own["encode"]["template"])
    # The first is what ends an answer.
    assert not family or family.stop in (None, own["model"]["stop_tokens"][0])
    pinned = own["model"]["revision"] is not None
    assert pinned == (name not in UNPINNED)
    for method in METHODS:
        presets.compose(config.PARAMS_FILE, [f"model={name}", f"method={method}"])
        params = config.load_all()
        assert vars(params.model) == own["model"] | {"adapter": None}
        assert params.encode.template == own["encode"]["template"]


def test_a_models_commits_are_its_own():
    commits = [preset(name)["model"]["revision"] for name in MODELS]
    told = [commit for commit in commits if commit is not None]
    assert len(set(told)) == len(told)
    assert all(len(commit) == 40 for commit in told if commit != "0.1.2")


# Each architecture at a tiny size, with a template of its presets.

SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FUSED = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
# By how the presets' names begin: configuration, template, linear layers, tied embeddings.
ARCHITECTURES = {
    "smollm2": ("LlamaConfig", None, SEVEN, True),
    "llama-3.2": ("LlamaConfig", "alpaca", SEVEN, True),
    "llama-3": ("LlamaConfig", "alpaca", SEVEN, False),
    "taide": ("LlamaConfig", "llama-2", SEVEN, False),
    "breeze": ("MistralConfig", "llama-2", SEVEN, False),
    "mistral-small": ("MistralConfig", "mistral-v7", SEVEN, False),
    "qwen2.5": ("Qwen2Config", "qwen-2.5", SEVEN, False),
    "qwen3": ("Qwen3Config", "qwen-3", SEVEN, True),
    "gemma-2": ("Gemma2Config", "gemma-2", SEVEN, True),
    "gemma-3": ("Gemma3TextConfig", "gemma-3", SEVEN, True),
    "phi-4-mini": ("Phi3Config", "phi-4-mini", FUSED, True),
    "phi-4": ("Phi3Config", "phi-4", FUSED, False),
}


class Sink:
    def log(self, values, *, step):
        pass


@pytest.fixture(scope="module")
def tiny(tokenizer, tmp_path_factory):
    """A function: the folder of a tiny random model of that architecture."""

    def make(kind: str, *, tied: bool) -> Path:
        settings = getattr(transformers, kind)(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=256,
            tie_word_embeddings=tied, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(kind)
        transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def encoded(tokenizer, settings, folder: Path) -> Path:
    records = [
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": f"{n + 1}."},
            ]
        }
        for n in range(4)
    ]
    rows = masking.encode(tokenizer, records, settings, ("<think>", "</think>"))
    for split in tokens.SPLITS:
        with tokens.write(split, folder) as out:
            out.write_batch(tokens.batch([(str(n), *row) for n, row in enumerate(rows)]))
    return folder


def test_each_preset_is_of_one_of_these_architectures():
    assert [name for name in MODELS if not name.startswith(tuple(ARCHITECTURES))] == []
    for beginning in ARCHITECTURES:
        assert any(name.startswith(beginning) for name in MODELS)


@pytest.mark.parametrize("of", ARCHITECTURES)
def test_a_step_is_trained_with_an_adapter_and_with_all_weights(
    of, tiny, tokenizer, encode_settings, begin_attempt, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    kind, template, layers, tied = ARCHITECTURES[of]
    base = tiny(kind, tied=tied)
    architecture.require_fit(
        Model(name=of, source=str(base), revision=None, license="mit", gated=False, stop_tokens=[])
    )
    own = models.read_tokenizer(base)
    chosen = templates.choose(own, template)
    templates.settle_stop_token(chosen, set())
    folder = encoded(chosen, encode_settings, tmp_path)
    for lora in (small.lora(), None):
        trainer = sft.make_trainer(
            models.load_model(base, num_tokens=len(chosen)),
            chosen,
            sft=small.sft(lora=lora),
            encoded=folder,
            num_new_tokens=len(chosen) - len(own),
            curve=LearningCurve(Sink(), examples_per_step=4),
            attempt=begin_attempt(lora=bool(lora)),
            folder=tmp_path / "trainer",
        )
        names = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
        if lora:
            adapted = [name.split(".lora_A")[0] for name in names if ".lora_A" in name]
            assert {name.rpartition(".")[2] for name in adapted} == layers
        before = {
            name: weight.detach().clone()
            for name, weight in trainer.model.named_parameters()
            if weight.requires_grad
        }
        sft.check_batches(trainer)
        done = trainer.train()
        assert done.global_step == 1
        assert 0 < done.training_loss < 2 * torch.tensor(float(len(chosen))).log()
        changed = [
            name
            for name, weight in trainer.model.named_parameters()
            if name in before and not torch.equal(weight, before[name])
        ]
        assert len(changed) >= len(layers)


@pytest.mark.parametrize("page", ["docs/models.md", "docs/zh-TW/models.md"])
def test_the_table_of_models_is_that_of_the_presets(page: str):
    told = {}
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")]
        if len(cells) == 7 and cells[0].startswith("`"):
            told[cells[0].strip("`")] = [cell.replace("\0", "|") for cell in cells[1:]]
    assert sorted(told) == MODELS
    for name, (source, template, stops, licence, *yes_or_no) in told.items():
        own = preset(name)
        assert source == f"`{own['model']['source']}`"
        assert template == f"`{own['encode']['template'] or 'null'}`"
        assert stops == " ".join(f"`{token}`" for token in own["model"]["stop_tokens"])
        assert licence == own["model"]["license"]
        expected = (own["model"]["gated"], own["model"]["revision"] is not None)
        assert [cell in ("yes", "是") for cell in yes_or_no] == list(expected)
