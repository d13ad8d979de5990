"""What stands around a job runs nothing in the image, stays secret, and is never a command."""

import secrets
import shlex
import subprocess
import time
from pathlib import Path

import promise
import pytest
import yaml

# One counts who does so in the whole cluster.
reaches_out = pytest.mark.one_at_a_time("reaches for the network")
# Each says its name, and only where it runs in the image.
SHELL = "[ ! -d /opt/siftune ] || echo {name} >>{marks}\n"
PYTHON = """import os
if os.path.isdir("/opt/siftune"):
    with open({marks!r}, "a") as marks:
        marks.write("{name}\\n")
"""
LIBRARY = """#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void run(void) {{
    if (access("/opt/siftune", F_OK)) return;
    int marks = open("{marks}", O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (write(marks, "{name}\\n", sizeof "{name}")) {{}}
    close(marks);
}}
"""
SECRETS = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCESS_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY", "GITHUB_TOKEN", "GITLAB_TOKEN", "WANDB_API_KEY", "COMET_API_KEY",
    "PGPASSWORD", "MYSQL_PWD", "DATABASE_URL", "REDIS_PASSWORD", "SSH_PASSPHRASE",
    "APPTAINER_DOCKER_PASSWORD", "DOCKER_PASSWORD", "NPM_TOKEN", "TWINE_PASSWORD", "HTTPS_PROXY",
    "SMTP_PASSWORD", "SIFTUNE_SECRET", "DVC_STUDIO_TOKEN",
)  # fmt: skip


@pytest.fixture
def evil(cluster, checkout) -> dict[str, str]:
    """An environment of the user that runs something in each shell, Python and program."""
    home, here = Path("/home/user"), Path("/home/user") / checkout.name / "evil"
    marks = str(here / "marks")
    files = {
        "evil/bash_env": SHELL,
        "evil/python/sitecustomize.py": PYTHON,
        "evil/python/usercustomize.py": PYTHON,
        "evil/startup.py": PYTHON,
        "evil/bin/python": "#!/bin/sh\n" + SHELL,
        "evil/bin/git": "#!/bin/sh\n" + SHELL,
        "sitecustomize.py": PYTHON,
        "evil/preloaded.c": LIBRARY,
    }
    site = ".local/lib/python3.11/site-packages"
    for root, name in (
        *((checkout.path, name) for name in files),
        *((cluster.home, f"{site}/{module}.py") for module in ("sitecustomize", "usercustomize")),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = files.get(name, PYTHON).format(name=name, marks=marks)
        path.write_text(text)
        path.chmod(0o777)
    library = checkout.path / "evil/preloaded"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, f"{library}.c"], check=True)
    (checkout.path / "evil").chmod(0o777)
    return {
        "LD_PRELOAD": f"{here}/preloaded",
        "BASH_ENV": f"{here}/bash_env",
        "ENV": f"{here}/bash_env",
        "PYTHONPATH": f"{here}/python",
        "PYTHONSTARTUP": f"{here}/startup.py",
        "PYTHONUSERBASE": f"{home}/.local",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "APPTAINERENV_LD_PRELOAD": f"{here}/preloaded",
        "APPTAINERENV_PREPEND_PATH": f"{here}/bin",
        "SINGULARITYENV_PYTHONPATH": f"{here}/python",
    }


def test_the_users_surroundings_run_nothing_in_the_image(cluster, checkout, evil, golden):
    marks = checkout.path / "evil/marks"
    # They would: so they do where an image is used as it comes.
    bare = f"apptainer exec {checkout.name}/containers/siftune-cpu.sif bash -c 'python -c 1; git'"
    cluster.run(bare, **evil)
    ran = set(marks.read_text().split())
    assert ran >= {"evil/preloaded.c", "evil/bash_env", "evil/bin/python", "evil/bin/git"}, ran
    path = f"{checkout.name}/containers/siftune-cpu.sif"
    unset = "env -u APPTAINERENV_PREPEND_PATH apptainer exec"
    cluster.run(f"{unset} {path} env -u PYTHONNOUSERSITE python -c 1", **evil)
    assert "evil/python/sitecustomize.py" in marks.read_text().split()
    marks.unlink()
    number = checkout.sbatch("slurm/train.sh", **evil)
    assert cluster.wait(number)["JobState"] == "COMPLETED", cluster.log(number)
    assert not marks.exists(), f"run in the image: {set(marks.read_text().split())}"
    promise.check_finished(checkout.path, golden, most_redone=0)


@reaches_out
def test_secrets_stay_where_they_are_and_nothing_reaches_for_the_network(cluster, checkout, golden):
    mark = f"canary-{secrets.token_hex(8)}"
    values = {name: f"{mark}-{number}" for number, name in enumerate(SECRETS)}
    password = f"{mark}-store"
    assert len({*values.values(), password}) == 30
    # Nothing listens there: what is said of it must not tell the password.
    store = f"postgresql://user:{password}@127.0.0.1:9/runs"
    values["HTTPS_PROXY"] = f"http://user:{values['HTTPS_PROXY']}@127.0.0.1:9"
    before = cluster.attempts()
    number = checkout.sbatch("slurm/train.sh", MLFLOW_TRACKING_URI=store, **values)
    commands = set()
    while cluster.job(number)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"):
        commands |= set(cluster.as_root("ps", "axww", "-o", "args").splitlines())
        time.sleep(0.5)
    log = cluster.log(number)
    assert cluster.job(number)["JobState"] == "COMPLETED", log
    promise.check_finished(checkout.path, golden, most_redone=0)
    assert cluster.attempts() == before
    assert any("train/sft.py" in command for command in commands)
    told = [command for command in commands if mark in command and "env -i" not in command]
    assert not told, told
    places = [checkout.path, cluster.folder / "nodes", cluster.folder / "tmp"]
    found = subprocess.run(["grep", "-rl", mark, *places], capture_output=True, text=True)
    assert found.stdout == "", found.stdout
    assert "MLflow does not answer" in log


@reaches_out
def test_the_cluster_counts_who_reaches_for_the_network(cluster):
    before = cluster.attempts()
    reach = "import urllib.request; urllib.request.urlopen('http://example.org')"
    assert cluster.run(f'srun python3 -c "{reach}"').returncode != 0
    assert cluster.attempts() > before


# Spaces, quotes, what a shell would run, a leading dash; and a newline, where a line is expected.
ODD = "-o 'x' \"y\"; $(touch pwned) `touch pwned` 重"
NAMES = (ODD, "a\nb; touch pwned")


@pytest.mark.parametrize("name", NAMES, ids=("shell", "newline"))
def test_a_param_and_a_job_name_are_literal(cluster, checkout, name: str):
    quoted = "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"  # as Hydra has it
    setting = shlex.quote(f"model.license={quoted}")
    number = checkout.sbatch(
        f"--job-name={shlex.quote(name)} --output=slurm/logs/%j.log "
        f"slurm/train.sh check -S {setting}"
    )
    job = cluster.wait(number)
    log = (checkout.path / f"slurm/logs/{number}.log").read_text()
    assert job["JobState"] == "COMPLETED", log
    params = yaml.safe_load((checkout.path / "params.yaml").read_text())
    assert params["model"]["license"] == name
    nothing_was_run(cluster)


def test_a_folder_with_an_odd_name_trains_like_any_other(cluster, checkout, golden):
    folder = cluster.home / ODD
    checkout.path.rename(folder)
    checkout.name, checkout.path = ODD, folder
    number = checkout.sbatch("slurm/train.sh")
    job = cluster.wait(number)
    logs = "".join(path.read_text() for path in (folder / "slurm/logs").glob("*.log"))
    assert job["JobState"] == "COMPLETED", logs
    promise.check_finished(folder, golden, most_redone=0)
    nothing_was_run(cluster)


def nothing_was_run(cluster) -> None:
    """No name of the above has made a file."""
    for root in (cluster.home, cluster.folder / "nodes", cluster.folder / "tmp"):
        assert not list(root.rglob("pwned"))
