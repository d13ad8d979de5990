"""What the recipes promise: the settings they are known for, on any model, by today's sections."""

import shlex
from pathlib import Path

import pytest

from siftune import batches, config, preflight, presets
from siftune.rewards import choosing
from siftune.training import grpo, requirements, sft

ROOT = Path(__file__).parent.parent
PAGES = sorted({*(ROOT / "docs/recipes").glob("*.md")} - {ROOT / "docs/recipes/README.md"})
# Of each: what one knows it by.
RECIPES = {
    "none": {},
    "reasoning-sft": {
        "sft.load.quantise": "nf4", "sft.lora.rank": 16, "sft.lora.alpha": 16, "sft.seed": 3407,
        "sft.global_batch": 256, "sft.micro_batch": 8, "sft.num_epochs": 2.0,
        "sft.learning_rate": 2e-4, "encode.max_length": 8192,
    },
    "input-output": {
        "model.name": "llama-3.1-8b", "sft.global_batch": 128, "encode.max_length": 8192,
    },
    "tang-poems": {
        "model.name": "taide-7b", "sft.load.quantise": "nf4", "sft.load.double_quantise": True,
        "sft.lora.rank": 8, "sft.lora.alpha": 16, "sft.lora.dropout": 0.05, "sft.micro_batch": 4,
        "sft.global_batch": 16, "encode.max_length": 256, "data.num_examples": 1040,
        "sft.save_every": "65 steps", "encode.template": "llama-2",
        "benchmark.tasks": ["poem_form"], "merge.min_top1_agreement": 0.9,
    },
    "subject-knowledge-sft": {
        "model.name": "llama-3-8b", "sft.lora.rank": 64, "sft.lora.alpha": 128,
        "sft.lora.dropout": 0.05, "sft.lora.modules_to_save": ["embed_tokens", "lm_head"],
        "sft.eval_every": 100, "sft.save_every": "200 steps", "encode.template": "llama-3",
    },
    "subject-knowledge": {
        "model.name": "llama-3-8b", "pretrain.block_size": 1024,
        **{
            f"{phase}.{key}": value
            for phase in ("pretrain", "sft")
            for key, value in {
                "lora.rank": 64, "lora.alpha": 128, "lora.dropout": 0.05,
                "lora.modules_to_save": ["embed_tokens", "lm_head"], "eval_every": 100,
                "save_every": "200 steps",
            }.items()
        },
    },
    "gsm8k-grpo": {
        "grpo.learning_rate": 5e-6, "grpo.num_generations": 8, "encode.max_length": 256,
        "grpo.max_new_tokens": 200, "grpo.load.quantise": "nf4",
    },
    "gsm8k": {
        "model.name": "qwen2.5-1.5b", "data.name": "gsm8k", "benchmark.tasks": ["gsm8k"],
        "benchmark.num_fewshot": 5,
    },
}  # fmt: skip


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """A function: the params of these choices."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(config, "PARAMS_FILE", tmp_path / "params.yaml")

    def of(*choices: str):
        presets.compose(config.PARAMS_FILE, list(choices))
        return config.load_all()

    return of


def test_each_recipe_is_tested():
    assert {path.stem for path in (ROOT / "conf/recipe").glob("*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_settings_and_can_be_trained(name: str, composed, tmp_path):
    params = composed(f"recipe={name}")
    for key, value in RECIPES[name].items():
        found = params
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value, key
    preflight._require_metric(params.register.metric, params.benchmark.tasks)
    preflight._require_rows(params)
    for section in config.phases(params):
        requirements.require_consistent(section)
        asked = {"global_batch": section.global_batch, "world_size": 1}
        num_rows = batches.rows_at_once(section.phase, micro_batch=section.micro_batch, **asked)
        num_accumulated = batches.accumulation(section.phase, micro_batch=num_rows, **asked)
        told = {"pretrain": sft, "sft": sft, "grpo": grpo}[section.phase].config(
            section, micro_batch=num_rows, num_accumulated=num_accumulated, folder=tmp_path
        )
        assert told.learning_rate == section.learning_rate


SWEEPS = {"learning-rate": "learning_rate", "rank": "lora.rank", "batch": "global_batch"}


def test_each_line_of_a_sweep_can_be_trained(composed):
    files = {path.stem: path for path in (ROOT / "slurm/sweeps").glob("*.txt")}
    assert files.keys() == SWEEPS.keys()
    for name, key in SWEEPS.items():
        tried = []
        for line in files[name].read_text().splitlines():
            params = composed(*shlex.split(line))
            preflight.check(params)
            tried.append(params.sft.lora.rank if key == "lora.rank" else getattr(params.sft, key))
            # Another rank alone changes no size of the update.
            assert params.sft.lora.alpha == params.sft.lora.rank
        assert len(tried) == len(set(tried)) >= 4
        assert tried == sorted(tried)


def test_the_rewards_of_the_notebook_pay_as_it_does(composed):
    """Correct 2.0, integer 0.5, strict 0.5, soft 0.5, tags up to 0.5; beta2 0.99, norm 0.1."""
    section = composed("recipe=gsm8k-grpo").grpo
    weights = {reward.name: reward.weight for reward in section.rewards}
    forms = dict.fromkeys(("integer_answer", "strict_format", "soft_format", "tag_count"), 0.5)
    assert weights == {"correct_answer": 2.0, **forms}
    chosen = choosing.choose(section.rewards, "grpo.rewards")
    record = {"messages": [], "answer": "5 * 4 = 20\n#### 20", "fields": {}}
    perfect = "<reasoning>\n5 * 4 = 20\n</reasoning>\n<answer>\n20\n</answer>"
    paid = sum(one.weight * one.score([], perfect, record) for one in chosen)
    assert paid == 4.0
    trainer = section.trainer
    assert (trainer["lr_scheduler_type"], trainer["adam_beta2"]) == ("cosine", 0.99)
    assert trainer["max_grad_norm"] == 0.1


def test_a_recipe_takes_another_model_and_a_smaller_size(composed):
    params = composed("recipe=reasoning-sft", "model=phi-4", "size=reduced")
    assert (params.model.name, params.encode.template) == ("phi-4", "phi-4")
    assert (params.data.num_examples, params.sft.lora.rank) == (112, 16)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_trains_can_be_trained(page, composed, readme_commands, monkeypatch):
    monkeypatch.setattr(preflight.sources, "check_data", lambda data: None)  # PATH is the user's
    settings = [line for line in readme_commands(page) if line.startswith("make params ")]
    assert settings
    for line in settings:
        _, _, given = shlex.split(line)
        preflight.check(composed(*shlex.split(given.removeprefix("SET="))))
