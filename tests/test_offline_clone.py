"""From a machine with a network to one without: fetched, bundled, carried, checked out, started."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
IDENTITY = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")}  # fmt: skip


@pytest.fixture
def checkout(tmp_path, hub, tiny_model, default_params) -> Path:
    """A clone of this one, with a model, data and a benchmark of a hub."""
    folder = tmp_path / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    params = yaml.safe_load(default_params.read_text())
    params["model"] |= {"source": "org/model", "revision": hub.commit}
    source = {"source": "hub:org/questions", "revision": hub.commit}
    columns = {"prompt": "question", "response": "answer"}
    params["data"] |= {"sources": [source | {"columns": columns}], "num_examples": None}
    params["benchmark"]["tasks"] = ["gsm8k_form", "questions"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    task = {
        "task": "questions", "dataset_path": "org/questions", "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}", "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (folder / "eval/tasks/questions.yaml").write_text(yaml.safe_dump(task))
    rows = "\n".join(json.dumps({"question": f"1+{n}?", "answer": str(n + 1)}) for n in range(40))
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    hub.publish("models", "org/model", model)
    hub.publish(
        "datasets", "org/questions", {f"{s}.jsonl": rows.encode() for s in ("train", "test")}
    )
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        ok(folder, "git", *command)
    return folder


def ok(folder: Path, *command: str, **variables: str) -> str:
    environment = os.environ | IDENTITY | {
        "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(folder / "src"), **variables,
    }  # fmt: skip
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alone() -> tuple[str, ...]:
    """What takes the network away from a command, where that is allowed."""
    without = ("unshare", "--map-root-user", "--net")
    can = shutil.which("unshare") and subprocess.run([*without, "true"], capture_output=True)
    return without if can and can.returncode == 0 else ()


def test_what_was_fetched_and_bundled_starts_where_there_is_no_network(checkout, tmp_path, hub):
    siftune = ("python", "-P", "-m", "siftune")
    told = ok(checkout, *siftune, "fetch", "--all")
    assert told.count("loads without a network") == 3
    assert told.count("nothing to fetch") == 1
    assert f"is in {hub.root / 'home'}." in told

    bundle = tmp_path / "all.tar"
    ok(checkout, *siftune, "bundle", str(bundle))
    (tmp_path / "there").mkdir()
    ok(tmp_path, "tar", "-xf", str(bundle), "-C", "there")
    (folder,) = (tmp_path / "there").iterdir()
    ok(folder, "git", "init", "--quiet")
    ok(folder, "git", "pull", "--quiet", "repository.bundle", "HEAD")
    assert ok(folder, "git", "status", "--porcelain") == ""
    # Nothing of the first machine may be needed.
    shutil.rmtree(hub.root)
    shutil.rmtree(checkout)
    nobody = {
        "HF_HOME": str(folder / ".cache/huggingface"), "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    ok(folder, *alone(), *siftune, "bundle", "verify", ".")
    told = ok(folder, *alone(), *siftune, "fetch", "--all", **nobody)
    assert told.count("loads without a network") == 3
    assert json.loads((folder / "models/base.json").read_text())["source"] == "org/model"
    assert (folder / "data/raw/train.jsonl").is_file()
    told = ok(folder, *alone(), *siftune, "doctor", **nobody)
    assert "ok       base model  org/model" in told
    assert "ok       benchmarks" in told
