"""What `siftune fetch --all` brings to nodes without a network; test_offline_clone.py runs it."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from siftune import config, fetching

TASK = """
task: questions
dataset_path: org/questions
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match}]
"""
OWN_FILE = TASK.replace("questions", "own").replace("org/own", "json")


@pytest.fixture
def workspace(tmp_path, monkeypatch, hub, default_params) -> Path:
    """Params that name a model, data and a benchmark of the hub."""
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load(default_params.read_text())
    params["model"] |= {"source": "org/model", "revision": hub.commit}
    params["model"]["adapter"] = {"source": "org/lora", "revision": hub.commit}
    params["data"]["sources"] = [{"source": "hub:org/questions", "revision": hub.commit}]
    params["benchmark"]["tasks"] = ["questions", "own"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for name, text in {"questions": TASK, "own": OWN_FILE}.items():
        path = Path(f"eval/tasks/{name}/{name}.yaml")
        path.parent.mkdir(parents=True)
        path.write_text(text)
    row = json.dumps({"question": "1+1?", "answer": "2"}).encode()
    hub.publish("models", "org/model", {"model.safetensors": b"weights"})
    hub.publish("models", "org/lora", {"adapter_config.json": b"{}"})
    hub.publish("datasets", "org/questions", {"train.jsonl": row, "test.jsonl": row})
    return tmp_path


def pieces(**environment: str) -> list[fetching.Piece]:
    """As a process of its own finds them: what a hub is, libraries read when imported."""
    command = [sys.executable, "-P", "-m", "siftune.fetching"]
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return [fetching.Piece(**one) for one in json.loads(done.stdout)]


def test_what_was_fetched_is_found_without_a_network_and_nothing_else_is(workspace, hub):
    online = pieces()
    model, adapter, data, questions, own = online
    assert (model.kind, adapter.kind) == ("base model", "adapter")
    assert (data.kind, questions.kind) == ("data", "evaluation data")
    home = hub.root / "home"
    assert model.folders == [str(home / f"hub/models--org--model/snapshots/{hub.commit}")]
    assert adapter.folders == [str(home / f"hub/models--org--lora/snapshots/{hub.commit}")]
    assert data.folders == [str(home / f"hub/datasets--org--questions/snapshots/{hub.commit}")]
    assert [Path(one).is_relative_to(home / "datasets") for one in questions.folders] == [True]
    assert (own.folders, own.problem) == ([], None)

    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert pieces(**nobody) == online
    elsewhere = pieces(HF_HOME=str(workspace / "empty"), **nobody)
    assert [one.folders for one in elsewhere] == [[], [], [], [], []]
    assert [bool(one.problem) for one in elsewhere] == [True, True, True, True, False]
    assert all("siftune fetch --all" in one.problem for one in elsewhere[:4])
    assert "Traceback" not in str(elsewhere)


def test_a_link_to_a_model_is_named_and_not_what_it_leads_to(workspace, tmp_path_factory):
    params = yaml.safe_load(Path("params.yaml").read_text())
    Path("work").mkdir()
    Path("work/base").symlink_to(tmp_path_factory.mktemp("shared"))
    params["model"] |= {"source": "./work/base", "revision": None}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    model = next(fetching.pieces(config.load("model", "data", "benchmark")))
    assert model.folders == [str(workspace / "work/base")]


def test_a_record_is_of_the_params_that_were_fetched(workspace):
    assert fetching.recorded() is None
    params = config.load("model", "data", "benchmark")
    piece = fetching.Piece("base model", "org/model", ["/somewhere"])
    record = {"of": fetching._identity(params), "pieces": [asdict(piece)]}
    fetching.files.write_json(fetching.RECORD, record)
    assert fetching.recorded() == [piece]
    changed = yaml.safe_load(Path("params.yaml").read_text())
    changed["benchmark"]["tasks"] = ["own"]
    Path("params.yaml").write_text(yaml.safe_dump(changed))
    assert fetching.recorded() is None
    fetching.RECORD.write_text("[]")
    assert fetching.recorded() is None
