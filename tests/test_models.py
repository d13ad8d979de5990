import shutil
from pathlib import Path

import pytest
import torch

from siftune import config, files, models
from siftune.stage import UserError


@pytest.fixture
def base(tmp_path, monkeypatch, tiny_model) -> Path:
    """A fetched base: a folder of the user's, and its manifest in the workspace."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    return folder


def fetch(folder: Path) -> dict:
    model = config.Model(name="m", source=str(folder), revision=None, license="mit")
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


def test_a_model_without_a_chat_template_is_refused(base):
    (base / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        fetch(base)


def test_models_are_loaded_for_evaluation_in_the_devices_dtype(base):
    model = models.load_model(base)
    assert not model.training
    assert model.dtype == models.device_dtype()
    if not torch.cuda.is_available():
        assert model.dtype == torch.float32
