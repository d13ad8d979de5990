"""Each preset of a base model: with each method, and its architecture at a tiny size, trained."""

from pathlib import Path

import pytest
import yaml

from siftune import config, presets
from siftune.chat.families import FAMILIES

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
    assert own["model"]["stop_tokens"]
    pinned = own["model"]["revision"] is not None
    assert pinned == (name not in UNPINNED)
    for method in METHODS:
        presets.compose(config.PARAMS_FILE, [f"model={name}", f"method={method}"])
        params = config.load_all()
        assert vars(params.model) == own["model"]
        assert params.encode.template == own["encode"]["template"]


def test_a_models_commits_are_its_own():
    commits = [preset(name)["model"]["revision"] for name in MODELS]
    told = [commit for commit in commits if commit is not None]
    assert len(set(told)) == len(told)
    assert all(len(commit) == 40 for commit in told if commit != "0.1.2")
