import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from siftune import files, models
from siftune.sections import Model
from siftune.stage import UserError


@pytest.fixture
def base(tmp_path, monkeypatch, tiny_model) -> Path:
    """A fetched base: a folder of the user's, and its manifest in the workspace."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    return folder


def fetch(folder: Path) -> dict:
    model = Model(
        name="m", source=str(folder), revision=None, license="mit", gated=False, stop_tokens=[]
    )
    return models.fetch_base(model)


def test_the_manifest_describes_every_file_and_leads_back_to_the_folder(base):
    manifest = fetch(base)
    assert manifest["files"] == files.describe_folder(base)
    assert manifest["source"] == str(base)
    files.write_json(models.MANIFEST, manifest)
    assert models.base_folder() == base
    # The same files elsewhere are the same base.
    shutil.copytree(base, base.with_name("copy"))
    assert fetch(base.with_name("copy"))["sha256"] == manifest["sha256"]


def test_a_base_that_is_no_longer_what_was_fetched_is_refused(base):
    files.write_json(models.MANIFEST, fetch(base))
    (base / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json is not the file that models/base\.json"):
        models.base_folder()


def test_pickled_weights_are_refused(base):
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        fetch(base)


def test_a_model_without_a_chat_template_may_get_one_later(base):
    (base / "chat_template.jinja").unlink()
    assert fetch(base)["chat_template_sha256"] is None


def test_another_template_than_the_one_of_training_is_refused(base):
    shutil.copytree(base, models.TOKENIZER)
    assert models.load_tokenizer(base).chat_template
    template = base / "chat_template.jinja"
    template.write_text(template.read_text() + "{# swapped #}")
    with pytest.raises(UserError, match="is not the one that the model was trained with"):
        models.load_tokenizer(base)


def test_new_tokens_begin_as_the_mean_of_all(base):
    before = models.load_model(base)
    num_tokens = before.get_input_embeddings().num_embeddings
    after = models.load_model(base, num_tokens=num_tokens + 2)
    rows = after.get_input_embeddings().weight
    mean = before.get_input_embeddings().weight.mean(dim=0)
    assert rows.shape[0] == after.get_output_embeddings().weight.shape[0] == num_tokens + 2
    torch.testing.assert_close(rows[-1], mean)
    torch.testing.assert_close(rows[:num_tokens], before.get_input_embeddings().weight)


def test_a_model_stops_where_its_tokenizer_or_its_settings_say(base, tokenizer):
    assert models.stop_token_ids(base, tokenizer) == {tokenizer.eos_token_id}
    files.write_json(base / "generation_config.json", {"eos_token_id": [0, 7]})
    assert models.stop_token_ids(base, tokenizer) == {tokenizer.eos_token_id, 0, 7}


def name_stops(base: Path, *names: str) -> None:
    manifest = fetch(base)
    files.write_json(models.MANIFEST, {**manifest, "stop_tokens": list(names)})


def test_an_answer_ends_at_the_named_tokens_too_in_base_and_tuned_model(base, tokenizer, tmp_path):
    name_stops(base, "<|endoftext|>")
    also = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert also != tokenizer.eos_token_id
    files.write_json(base / "generation_config.json", {"eos_token_id": 7})
    stops = models.all_stop_ids(base, tokenizer, tokenizer)
    assert stops == {tokenizer.eos_token_id, 7, also}
    tokenizer.save_pretrained(models.TOKENIZER)
    models.write_stops(stops, tokenizer, models.TOKENIZER)
    model = models.load_model(base)
    models.stop_as_encoded(model, tokenizer, models.TOKENIZER)
    # The first is the one that the answers were trained with.
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, also, 7]
    model.save_pretrained(tmp_path / "merged")
    assert models.stop_token_ids(tmp_path / "merged", tokenizer) == stops


@pytest.mark.parametrize("name", ["<|eot_id|>", "the end", "<|im_end|>\n", ""])
def test_a_stop_token_that_is_no_token_is_named_with_the_special_ones(name, base, tokenizer):
    name_stops(base, "<|im_end|>", name)
    with pytest.raises(UserError) as refused:
        models.all_stop_ids(base, tokenizer, tokenizer)
    assert str(refused.value).startswith(f"params.yaml: model.stop_tokens: {name!r} is no token of")
    assert "<|im_end|>" in str(refused.value).partition("special tokens are")[2]


def test_models_are_loaded_for_evaluation_in_the_devices_dtype(base):
    model = models.load_model(base)
    assert not model.training
    assert model.dtype == models.device_dtype()
    if not torch.cuda.is_available():
        assert model.dtype == torch.float32


def test_a_saved_tokenizer_is_the_same_with_and_without_a_network(base, tmp_path, monkeypatch):
    for offline in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        models.read_tokenizer(base).save_pretrained(tmp_path / str(offline))
    online, offline = (files.describe_folder(tmp_path / name) for name in ("False", "True"))
    assert online == offline
