"""The whole pipeline by DVC on a tiny random model: what runs, runs again, is refused."""

import csv
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


def command(workspace: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(workspace / "src"),
        "GIT_CONFIG_GLOBAL": str(workspace.parent / "gitconfig"),
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(arguments, cwd=workspace, env=environment, capture_output=True, text=True)


def ok(workspace: Path, *arguments: str) -> str:
    done = command(workspace, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(output: str) -> list[str]:
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def change(workspace: Path, section: str, **values) -> None:
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params[section].update(values)
    path.write_text(yaml.safe_dump(params, sort_keys=False))


PROGRAMS = ("dvc ", "siftune ")
SIZE = """# @package _global_
data: {num_examples: 96}
prepare: {validation: 0.1, test: 0.3}
sft: {micro_batch: 1024 tokens, eval_every: 2}
merge: {num_prompts: 4}
benchmark: {limit: 8, max_new_tokens: 8}
samples: {num_prompts: 2, max_new_tokens: 8}
gguf_check: {num_prompts: 4}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_model) -> Path:
    """A clone of this checkout, with a tiny model, its own data file, and one run of everything."""
    folder = tmp_path_factory.mktemp("pipeline") / "clone with spaces"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    (folder.parent / "gitconfig").write_text("[user]\nname = t\nemail = t@example.org\n")
    # As a user adds a model and a size: two presets, made the default.
    model = {"name": "tiny", "source": str(tiny_model), "revision": None, "license": "mit"}
    model |= {"gated": False, "stop_tokens": []}
    preset = yaml.safe_dump({"model": model, "encode": {"template": None}})
    (folder / "conf" / "model" / "tiny.yaml").write_text(f"# @package _global_\n{preset}")
    (folder / "conf" / "size" / "tiny.yaml").write_text(SIZE)
    defaults = folder / "conf" / "config.yaml"
    text = defaults.read_text().replace("smollm2-135m-instruct", "tiny")
    defaults.write_text(text.replace("size: full", "size: tiny"))
    ok(folder, "python", "-m", "siftune.presets")
    ok(folder, "git", "init", "-q")
    ok(folder, "git", "add", "-A")
    ok(folder, "git", "commit", "-qm", "start")
    assert ran(ok(folder, "dvc", "repro")) == STAGES
    return folder


def test_every_stage_leaves_its_outputs_and_its_cost(workspace):
    for stage in set(STAGES) - {"check", "pretrain", "dpo", "grpo"}:
        cost = json.loads((workspace / "metrics" / f"{stage}.json").read_text())["cost"]
        assert cost["wall_seconds"] > 0
        assert cost["peak_memory_mb"] > 0
    assert (workspace / "models" / "gguf" / "tiny-q8_0.gguf").stat().st_size > 0
    compared = json.loads((workspace / "metrics" / "compare.json").read_text())
    assert compared["gsm8k_form/exact_match/strict-match"]["n"] == 8
    assert "<html" in (workspace / "report" / "index.html").read_text()
    assert not list(workspace.rglob("*.tmp"))


@pytest.mark.parametrize("phase", ["pretrain", "dpo", "grpo"])
def test_a_phase_that_is_left_out_leaves_nothing(phase, workspace):
    assert json.loads((workspace / f"metrics/{phase}.json").read_text()) == {}
    assert list((workspace / f"models/{phase}").iterdir()) == [
        workspace / f"models/{phase}/left_out.txt"
    ]
    assert list(csv.DictReader((workspace / f"plots/{phase}.csv").open())) == []


def test_nothing_runs_twice(workspace):
    assert "Data and pipelines are up to date." in ok(workspace, "dvc", "repro")


def test_every_stage_has_one_finished_run_with_its_params(workspace):
    code = (
        "import json, mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "runs = mlflow.search_runs(search_all_experiments=True, output_format='list');"
        "print(json.dumps([[r.info.run_name, r.info.status, r.data.params, r.data.tags] for r in "
        "runs]))"
    )
    runs = json.loads(ok(workspace, "python", "-c", code).splitlines()[-1])
    assert sorted(name for name, *_ in runs) == sorted(
        set(STAGES) - {"check", "pretrain", "dpo", "grpo"}
    )
    assert {status for _, status, *_ in runs} == {"FINISHED"}
    by_name = {name: (params, tags) for name, _, params, tags in runs}
    assert by_name["sft"][0]["sft.learning_rate"] == "0.001"
    commits = {tags["siftune.git_commit"] for _, tags in by_name.values()}
    assert commits == {ok(workspace, "git", "rev-parse", "HEAD").strip()}
    assert {tags["siftune.git_dirty"] for _, tags in by_name.values()} == {"false"}


def test_the_registered_model_is_loaded_by_name(workspace):
    code = (
        "import mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "model = mlflow.pyfunc.load_model('models:/siftune-word-problems@best');"
        "print('answers:', len(model.predict(['1 + 1?'])))"
    )
    assert "answers: 1" in ok(workspace, "python", "-c", code)


def test_tokens_are_kept_by_all_that_decides_them(workspace):
    """Data and code are dependencies of encode; here its settings. What was made is fetched."""
    before = (workspace / "params.yaml").read_text()
    own = (workspace / "data/tokens/sft/train.arrow").read_bytes()
    change(workspace, "encode", template="zephyr")
    assert ran(ok(workspace, "dvc", "repro", "encode")) == ["check", "encode"]
    assert (workspace / "data/tokens/sft/train.arrow").read_bytes() != own
    (workspace / "params.yaml").write_text(before)
    assert "encode" not in ran(ok(workspace, "dvc", "repro", "encode"))
    assert (workspace / "data/tokens/sft/train.arrow").read_bytes() == own


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("sft", {"learning_rat": 1}, "sft.learning_rat: unknown key. Valid keys: seed"),
        ("sft", {"learning_rate": "1e-4"}, "sft.learning_rate"),
        ("sft", {"global_batch": 12, "micro_batch": 8}, "12 / 8 = 1.50"),
        ("sft", {"micro_batch": "512 tokens"}, "sft.micro_batch: 512 tokens, but a row may have"),
        ("data", {"sources": [{"source": "local"}], "path": "nowhere.jsonl"}, "nowhere.jsonl"),
        ("encode", {"template": "chatm"}, "encode.template: there is no template 'chatm'"),
        ("benchmark", {"tasks": ["gsm8k_from"]}, "gsm8k_form"),
        ("register", {"metric": "acc"}, "register.metric: acc is of none of benchmark.tasks"),
        ("sft", {"trainer": {"logging_step": 1}}, "sft.trainer.logging_step: trl.SFTConfig has no"),
        ("sft", {"save_every": "5 hours"}, "sft.save_every"),
        ("gguf_check", {"limits": {}}, "gguf_check.limits"),
        ("samples", {"decodings": {"mine": {"top_k": 9}}}, "samples.decodings.mine: top_k says"),
    ],
)
def test_wrong_params_end_in_one_message_and_78(
    workspace, section, values, message, monkeypatch, capsys
):
    before = (workspace / "params.yaml").read_text()
    change(workspace, section, **values)
    monkeypatch.chdir(workspace)
    try:
        # The script itself; in this process, where the libraries are loaded.
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("train/check.py", run_name="__main__")
    finally:
        (workspace / "params.yaml").write_text(before)
    assert ended.value.code == 78
    assert message in capsys.readouterr().err


def test_wrong_params_stop_dvc_before_anything_is_deleted(workspace):
    before = (workspace / "params.yaml").read_text()
    kept = sorted(str(path) for path in (workspace / "models").rglob("*"))
    change(workspace, "sft", learning_rat=1)
    try:
        done = command(workspace, "dvc", "repro")
    finally:
        (workspace / "params.yaml").write_text(before)
    assert done.returncode != 0
    assert "sft.learning_rat: unknown key" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert sorted(str(path) for path in (workspace / "models").rglob("*")) == kept


def test_the_readmes_commands_show_what_a_user_wants_to_compare(workspace, readme_commands):
    lines = [line for line in readme_commands(ROOT / "README.md") if line.startswith(PROGRAMS)]
    outputs = {line: ok(workspace, *shlex.split(line)) for line in lines}
    first, slower = (
        "dvc exp run --name first",
        "dvc exp run --name slower -S sft.learning_rate=5e-4",
    )
    assert set(ran(outputs[first])) <= {"check"}  # which a refused run may have left undone
    # Another learning rate runs sft and what follows, and nothing before. (Only what depends on
    # the scores alone may stay: both models are random, and may answer alike.)
    expected = ["check", *STAGES[STAGES.index("sft") :]]
    assert ran(outputs[slower]) in (expected, [name for name in expected if name != "compare"])
    assert "slower" in outputs["dvc exp show --only-changed"]
    assert "validation_loss" in outputs["dvc metrics diff first slower"]
    assert (workspace / "dvc_plots" / "index.html").exists()
    assert "gsm8k_form/exact_match/strict-match" in outputs["siftune summary"]


def test_one_changed_row_runs_prepare_and_nothing_before(workspace):
    rows = (workspace / "data" / "raw" / "word-problems.jsonl").read_text()
    (workspace / "mine.jsonl").write_text(rows)
    local = "data.sources=[{source: local, columns: {group: group}}]"
    compose = ("python", "-m", "siftune.presets", local, "data.path=mine.jsonl")
    ok(workspace, *compose)
    assert ran(ok(workspace, "dvc", "repro", "prepare")) == ["check", "prepare"]
    (workspace / "mine.jsonl").write_text(rows.replace(" has ", " owns ", 1))
    assert ran(ok(workspace, "dvc", "repro", "prepare")) == ["prepare"]
