"""The doctor as a whole: the cluster, the checkout, what answers; exit codes; never a crash."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest
import yaml

from siftune import config, fetching
from siftune.doctor import cluster, filesystem, gpu, packages, project, reach, visit
from siftune.doctor.finding import OK, PROBLEM, WARNING, WIDTH, Finding, ask, lines
from siftune.sections import GgufType
from siftune.stage import UserError

ROOT = Path(__file__).parent.parent
SITE = """
export SBATCH_PARTITION=${SBATCH_PARTITION:-gp4d} SBATCH_ACCOUNT=${SBATCH_ACCOUNT:-}
SIFTUNE_REQUIRED=SBATCH_ACCOUNT
SIFTUNE_VARIANT=cpu SIFTUNE_MODULES=apptainer
SIFTUNE_BINDS=(/ "/no such folder")
export HF_HOME="$PWD/hub home"
"""


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch, tools, default_params) -> Iterator[Path]:
    """A clone with its params, a site, an image with its lock, on a machine without a GPU."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SIFTUNE_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    for name in ("CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu, "PROC", tmp_path / "no driver")
    for name in ("containers/locks", "slurm/site.sh", "eval", "dvc.yaml"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, target)
    shutil.copyfile(default_params, "params.yaml")
    Path("slurm/sites").mkdir()
    Path("slurm/sites/taiwan.sh").write_text(SITE)
    image(b"an image")
    before = dict(os.environ)
    yield folder
    # What a site file says is put there.
    os.environ.clear()
    os.environ.update(before)


def image(content: bytes, *, locked: bytes | None = None) -> None:
    Path("containers/siftune-cpu.sif").write_bytes(content)
    sha256 = hashlib.sha256(content if locked is None else locked).hexdigest()
    lock = {"cpu": {"image": "siftune-cpu.sif", "sha256": sha256}}
    Path("containers/image.lock").write_text(json.dumps(lock, indent=2))


def found(check, about: str) -> Finding:
    (one,) = [one for one in check() if one.about == about]
    return one


def bad(check) -> list[Finding]:
    wrong = [one for one in check() if one.level != OK]
    assert all(one.todo or one.about in ("submission", "params") for one in wrong)
    return wrong


def change(section: str, **values) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params[section].update(values)
    Path("params.yaml").write_text(yaml.safe_dump(params))


# The site


def test_without_a_cluster_no_site_is_asked_for():
    assert list(cluster.site()) == []


def test_a_sites_variables_are_known_afterwards(monkeypatch, checkout):
    monkeypatch.setenv("SIFTUNE_SITE", "taiwan")
    monkeypatch.setenv("SBATCH_ACCOUNT", "ENT1")
    (only,) = bad(cluster.site)
    assert (only.level, "/no such folder of SIFTUNE_BINDS" in only.what) == (WARNING, True)
    assert os.environ["SBATCH_PARTITION"] == "gp4d"
    assert os.environ["SIFTUNE_VARIANT"] == "cpu"
    assert os.environ["SIFTUNE_MODULES"] == "apptainer"
    assert os.environ["HF_HOME"] == f"{checkout}/hub home"


def test_what_a_submission_would_refuse_is_said_before(monkeypatch):
    monkeypatch.setenv("SIFTUNE_SITE", "taiwan")
    refused = found(cluster.site, "submission")
    assert (refused.level, "SBATCH_ACCOUNT is not set" in refused.what) == (PROBLEM, True)
    monkeypatch.setenv("SBATCH_ACCOUNT", "ENT1")
    Path("containers/siftune-cpu.sif").unlink()
    assert "there is no image" in found(cluster.site, "submission").what


def test_a_site_that_is_unknown_or_broken_is_a_problem(monkeypatch):
    monkeypatch.setenv("SIFTUNE_SITE", "elsewhere")
    only = found(cluster.site, "site")
    assert (only.level, "taiwan.sh" in only.what) == (PROBLEM, True)
    monkeypatch.setenv("SIFTUNE_SITE", "taiwan")
    Path("slurm/sites/taiwan.sh").write_text("export A=(\n")
    assert found(cluster.site, "site").level == PROBLEM


def test_slurm_without_a_site_is_a_warning(tools, monkeypatch):
    tools("sbatch", "exit 0")
    monkeypatch.setenv("SIFTUNE_VARIANT", "cpu")
    only = found(cluster.site, "site")
    assert (only.level, "SIFTUNE_SITE" in only.todo) == (WARNING, True)


# Slurm and the image


def test_slurm_is_asked_about_partition_and_account(tools, monkeypatch):
    tools("sinfo", "echo 'gp1d*'; echo gp4d")
    tools("sacctmgr", "echo ENT1; echo ENT2; echo ENT1")
    monkeypatch.setenv("SBATCH_PARTITION", "gp4d,gp1d")
    monkeypatch.setenv("SBATCH_ACCOUNT", "ENT2")
    assert [(one.level, one.about) for one in cluster.slurm()] == [
        (OK, "partition"), (OK, "account"),
    ]  # fmt: skip
    monkeypatch.setenv("SBATCH_PARTITION", "gp9d")
    monkeypatch.setenv("SBATCH_ACCOUNT", "ENT3")
    partition, account = bad(cluster.slurm)
    assert (partition.level, "gp1d, gp4d" in partition.todo) == (PROBLEM, True)
    assert (account.level, "ENT1, ENT2" in account.todo) == (PROBLEM, True)


def test_slurm_that_does_not_answer_says_nothing(tools, monkeypatch):
    tools("sinfo", "exit 1")
    monkeypatch.setenv("SBATCH_PARTITION", "gp4d")
    monkeypatch.setenv("SBATCH_ACCOUNT", "ENT3")
    assert bad(cluster.slurm) == []


def test_a_job_knows_when_it_ends(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert found(cluster.slurm, "job").level == WARNING
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 7200))
    assert "1 h 59 min left" in found(cluster.slurm, "job").what.replace("2 h 00", "1 h 59")


def test_an_image_is_the_one_of_its_lock(monkeypatch):
    monkeypatch.setenv("SIFTUNE_SITE", "taiwan")
    monkeypatch.setenv("SIFTUNE_VARIANT", "cpu")
    assert "as in containers/image.lock" in found(cluster.image, "image").what
    image(b"an imagf", locked=b"an image")
    only = found(cluster.image, "image")
    assert (only.level, hashlib.sha256(b"an imagf").hexdigest() in only.what) == (PROBLEM, True)
    monkeypatch.setattr(cluster, "HASHING", -1.0)
    assert "every job does so" in found(cluster.image, "image").what
    Path("containers/image.lock").write_text("{")
    assert list(cluster.image()) == []


# What answers


def answer_once(server: socket.socket) -> None:
    opened, _ = server.accept()  # of who has gone away
    opened.close()
    opened, _ = server.accept()
    with opened:
        opened.recv(1000)
        opened.sendall(b"HTTP/1.1 401 Unauthorized\r\n\r\n")


def test_mlflow_is_knocked_at(monkeypatch):
    assert found(reach.mlflow, "MLflow").what == "sqlite:///mlflow.db"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://ann:pa55word@127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        only = found(reach.mlflow, "MLflow")  # which it does not take from its queue
        assert (only.level, "timed out" in only.what) == (WARNING, True)
        threading.Thread(target=answer_once, args=[server], daemon=True).start()
        only = found(reach.mlflow, "MLflow")
        assert (only.level, only.what.endswith(" answers")) == (OK, True)
    only = found(reach.mlflow, "MLflow")
    assert (only.level, "Connection refused" in only.what) == (WARNING, True)
    assert "pa55word" not in only.what
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(filesystem, "mount", lambda path: ("nfs4", "rw"))
    assert found(reach.mlflow, "MLflow").level == WARNING


def test_a_hub_is_asked_only_where_it_is_needed_and_may_answer(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://ann:pa55word@proxy:3128")
    told = found(reach.hubs, "mirrors").what
    assert "HF_ENDPOINT=http://127.0.0.1:9" in told
    assert "https_proxy=http://***@proxy:3128" in told
    assert bad(reach.hubs) == []  # the default needs none
    change("model", source="org/model", revision="c0ffee" + "0" * 34)  # which is not on this disk
    assert "siftune bundle" in found(reach.hubs, "hub").todo
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:9")
    assert "behind a proxy" in found(reach.hubs, "hub").what
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert [one.about for one in reach.hubs()] == ["mirrors"]


# The checkout


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def test_git_says_what_is_not_committed(monkeypatch):
    assert "Clone" in bad(project.git)[0].todo
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    assert bad(project.git) == []
    Path("dvc.lock").write_text("what a stage wrote")
    assert bad(project.git) == []
    change("sft", seed=5)
    (only,) = bad(project.git)
    assert (only.level, "1 files" in only.what) == (WARNING, True)
    monkeypatch.setenv("PATH", "/nowhere")
    assert bad(project.git)[0].level == PROBLEM


def test_params_are_checked_for_the_processes_of_the_job(monkeypatch):
    assert bad(project.params) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    (only,) = bad(project.params)
    assert (only.level, "sft.global_batch" in only.what) == (PROBLEM, True)


def test_wrong_params_are_one_finding_not_four():
    change("sft", learning_rat=1)
    everything = [*project.params(), *project.offline(), *reach.hubs()]
    assert [(one.level, one.about) for one in everything if one.level != OK] == [
        (PROBLEM, "params")
    ]


def hub_model(monkeypatch, folder: Path) -> Path:
    """What a hub's model leaves on a disk."""
    change("model", source="org/model", revision="c0ffee" + "0" * 34)
    snapshot = folder / "models--org--model/snapshots" / ("c0ffee" + "0" * 34)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return snapshot


def test_a_base_model_that_an_offline_job_would_miss_is_a_problem(monkeypatch, tmp_path):
    assert bad(project.offline) == []
    snapshot = hub_model(monkeypatch, tmp_path / "hub")
    assert bad(project.offline) == []
    described = {"source": "org/model", "revision": "c0ffee" + "0" * 34}
    file = {"model.safetensors": {"size": 7}}
    Path("models").mkdir()
    Path("models/base.json").write_text(json.dumps({**described, "files": file}))
    assert bad(project.offline) == []
    (snapshot / "model.safetensors").write_bytes(b"cut")
    (only,) = bad(project.offline)
    assert (only.level, "model.safetensors changed" in only.what) == (PROBLEM, True)
    shutil.rmtree(snapshot)
    (only,) = bad(project.offline)
    assert (only.about, "siftune fetch --all" in only.todo) == ("base model", True)


def test_data_of_a_hub_must_have_been_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    commit = "c0ffee" + "0" * 34
    change("data", sources=[{"source": "hub:org/data", "revision": commit}])
    (only,) = bad(project.offline)
    assert (only.level, only.about) == (PROBLEM, "data")
    Path("data/raw").mkdir(parents=True)
    Path("data/raw.json").write_text(json.dumps({"sources": [["hub:org/data", commit]]}))
    assert bad(project.offline) == []
    change("data", sources=[{"source": "local"}], path="nowhere.jsonl")
    assert "nowhere.jsonl does not exist" in bad(project.offline)[0].what


def test_benchmarks_of_lm_eval_must_have_been_tried_without_a_network(monkeypatch, tmp_path):
    change("benchmark", tasks=["gsm8k_form", "gsm8k"])
    (only,) = bad(project.offline)
    assert (only.level, "whether gsm8k can" in only.what) == (WARNING, True)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert bad(project.offline)[0].level == PROBLEM
    piece = fetching.Piece("evaluation data", "gsm8k", [str(tmp_path)])
    params = config.load("model", "data", "benchmark")
    record = {"of": fetching._identity(params), "pieces": [asdict(piece)]}
    fetching.files.write_json(fetching.RECORD, record)
    assert bad(project.offline) == []
    record["pieces"][0]["folders"] = [str(tmp_path / "gone")]
    fetching.files.write_json(fetching.RECORD, record)
    assert bad(project.offline)[0].about == "benchmarks"


# The whole


def doctor(*options: str, **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment
    command = [sys.executable, *options, "-P", "-m", "siftune", "doctor"]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)


def test_a_machine_that_trains_is_well_without_what_takes_seconds_to_import():
    code = (
        "import sys\n"
        "from siftune.doctor import visit; visit.main()\n"
        "assert not {'torch', 'numpy', 'mlflow', 'lm_eval'} & set(sys.modules)"
    )
    git("init")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1].startswith("problem: 0, warning: ")


def test_problems_end_with_78_after_all_was_told():
    change("sft", learning_rat=1)
    done = doctor()
    assert done.returncode == 78
    assert "Traceback" not in done.stderr
    # git: this is no repository
    assert done.stderr.startswith("siftune: problem: 2, "), done.stderr
    assert "learning_rat" in done.stdout
    assert "\nok       /tmp" in done.stdout


@pytest.mark.parametrize("cluster", ["", "taiwan"])
def test_where_nothing_is_installed_it_still_says_what_it_can(cluster):
    # Neither packages (-S) nor tools; bash alone reads the site.
    Path("bin").mkdir()
    Path("bin/bash").symlink_to(shutil.which("bash"))
    more = {"SIFTUNE_SITE": cluster} if cluster else {}
    done = doctor("-S", PATH=f"{Path('bin').absolute()}", **more)
    assert done.returncode == 78, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "the packages" in done.stdout
    assert "git" in done.stdout
    assert "cannot be looked at" not in done.stdout, done.stdout


def test_tools_and_file_systems_that_hang_are_not_waited_for(tools, monkeypatch):
    hang = 30  # seconds; each of them
    for name in ("nvidia-smi", "sinfo", "sacctmgr", "quota", "unshare", "apptainer", "git"):
        tools(name, f"exec sleep {hang}")
    monkeypatch.setitem(visit.CHECKS, "a disk", lambda: iter([time.sleep(hang)]))
    monkeypatch.setenv("SIFTUNE_SITE", "taiwan")
    start = time.monotonic()
    everything = list(visit.findings())
    assert time.monotonic() - start < hang
    silent = [one for one in everything if "did not answer" in one.what]
    assert [one.about for one in silent][-1] == "a disk"


def test_a_check_that_fails_is_a_warning_and_the_others_are_told(monkeypatch):
    def broken():
        yield Finding(OK, "x", "y")
        raise PermissionError(13, "Permission denied", "/proc/1")

    monkeypatch.setitem(visit.CHECKS, "GPU", broken)
    everything = list(visit.findings())
    (only,) = [one for one in everything if "PermissionError" in one.what]
    assert (only.level, only.about) == (WARNING, "GPU")
    assert len(everything) > 8


def test_it_is_run_in_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"dvc\.yaml is not in"):
        visit.main()


def test_columns_are_plain_and_not_too_wide():
    told = list(lines([
        Finding(OK, "disk", "fine"),
        Finding(PROBLEM, "namespaces", "word " * 40, "Do " + "this " * 40),
    ]))  # fmt: skip
    assert told[0] == "ok       disk        fine"
    assert told[1].startswith("problem  namespaces  word")
    assert all(len(line) <= WIDTH for line in told)
    assert [line[21:23] for line in told].count("->") == 1
    assert all(line.isascii() for line in told)


def test_a_tool_is_asked_with_patience(tools):
    tools("slow", "exec sleep 9")
    tools("wrong", "echo x; exit 3")
    tools("good", "echo x")
    assert [ask("slow", patience=0.1), ask("wrong"), ask("good"), ask("none")] == [
        None, None, "x\n", None,
    ]  # fmt: skip


def test_what_is_looked_at_is_what_stages_use():
    oldest, too_new = (".".join(map(str, one)) for one in (packages.OLDEST, packages.TOO_NEW))
    supported = f'requires-python = ">={oldest},<{too_new}"'
    assert supported in (ROOT / "pyproject.toml").read_text()
    assert set(visit.room.SIZE_OF_TYPE) == set(get_args(GgufType))
