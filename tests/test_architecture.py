"""What is refused before any weight is fetched or loaded, each with its reason."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from siftune import architecture, files
from siftune.sections import Model
from siftune.stage import UserError


@pytest.fixture
def base(tmp_path, tiny_model) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    return folder


@pytest.fixture
def model(base) -> Model:
    return Model(
        name="m", source=str(base), revision=None, license="mit", gated=False, stop_tokens=[]
    )


def test_a_model_that_writes_text_fits_whatever_its_weights(base, model):
    (base / "model.safetensors").unlink()
    architecture.require_fit(model)


def test_what_cannot_be_trained_is_refused_by_its_configuration_alone(base, model):
    (base / "model.safetensors").write_bytes(b"not read")
    config = files.read_json(base / "config.json")
    for changed, said in (
        ({"model_type": "lamma"}, "is of the type 'lamma', unknown to transformers"),
        (
            {"model_type": "phi9", "auto_map": {"AutoModelForCausalLM": "modeling.Phi"}},
            "Python of its own, as it brings it, is never run",
        ),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClassif"),
        ({"model_type": "t5", "architectures": None}, "is a t5"),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
             "text_config": {}, "vision_config": {}},
            "reads more than text (its configuration has a vision_config)",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4}},
            "has weights that are quantised already (awq)",
        ),
        ({"hidden_size": "wide"}, "the configuration of"),
    ):  # fmt: skip
        files.write_json(base / "config.json", {**config, **changed})
        with pytest.raises(UserError) as refused:
            architecture.require_fit(model)
        assert said in str(refused.value)
        assert str(refused.value).startswith("params.yaml: model.source: ")
    (base / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json that names its model_type"):
        architecture.require_fit(model)


def test_a_tokenizer_that_cannot_be_read_is_refused_in_a_line(base, model):
    for name, text in (("tokenizer.json", "{"), ("tokenizer.json", None), ("tokenizer.model", "x")):
        (base / name).unlink(missing_ok=True)
        if text:
            (base / name).write_text(text)
        with pytest.raises(UserError) as refused:
            architecture.require_fit(model)
        assert "the tokenizer of " in str(refused.value)
        assert "\n" not in str(refused.value)


def test_no_weight_of_a_hub_is_fetched_for_a_model_that_does_not_fit(model, hub):
    config = b'{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'
    hub.publish("models", "org/bert", {"config.json": config, "model.safetensors": b"w"})
    bert = replace(model, source="org/bert", revision=hub.commit)
    # huggingface_hub reads HF_ENDPOINT when it is imported.
    code = (
        "from siftune import architecture, sections, stage\n"
        f"stage.run(lambda: architecture.require_fit(sections.{bert!r}))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, "org/bert is a BertForMaskedLM." in done.stderr) == (78, True)
    assert "Traceback" not in done.stderr
    fetched = {path.name for path in (hub.root / "home").rglob("*.*")}
    assert "config.json" in fetched
    assert "model.safetensors" not in fetched
