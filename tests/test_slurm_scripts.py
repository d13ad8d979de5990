"""What slurm/*.sh pass on and refuse, with stand-ins; tests/cluster has the real programs."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import stand_ins
from stand_ins import arguments, in_job, run, surroundings

EVIL = [
    "sft",
    "-S",
    "a=b c",
    "-S",
    "x=$(touch evil)",
    "`touch evil`; touch evil",
    'it\'s "q"',
    "new\nline",
    "-rf",
]

SIGNATURE = {f"GIT_{role}_{what}" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    return stand_ins.checkout(tmp_path, monkeypatch)


@pytest.mark.parametrize("script", ["train.sh", "repro.sh", "evaluate.sh", "export.sh"])
def test_arguments_are_literal_from_the_login_node_to_the_image(script, clone):
    done = run(f"slurm/{script}", *EVIL)
    assert done.returncode == 0, done.stderr
    assert arguments(clone, "sbatch") == [f"slurm/{script}", *EVIL]
    done = in_job(clone, script, *EVIL)
    assert done.returncode == 0, done.stderr
    passed = arguments(clone, "apptainer")
    assert passed[passed.index("siftune") + 1 :] == ["repro", *EVIL]
    assert not list(clone.rglob("evil"))


@pytest.mark.parametrize(
    ("script", "stages"),
    [("train.sh", ["sft"]), ("repro.sh", []), ("evaluate.sh", ["compare", "samples"])],
)
def test_without_stages_each_has_its_own(script, stages, clone):
    in_job(clone, script, "-S", "model=mine")
    passed = arguments(clone, "apptainer")
    assert passed[passed.index("siftune") + 1 :] == ["repro", *stages, "-S", "model=mine"]


def test_only_what_is_meant_to_enters_the_image(clone):
    evil = {
        "LD_PRELOAD": "", "PYTHONPATH": "/evil", "PYTHONSTARTUP": "/evil", "BASH_ENV": "/dev/null",
        "APPTAINERENV_PYTHONPATH": "/evil", "APPTAINER_BIND": "/evil", "SINGULARITYENV_X": "x",
        "APPTAINERENV_LD_PRELOAD": "/evil.so", "AWS_SECRET_ACCESS_KEY": "s3cret",
    }  # fmt: skip
    in_job(clone, "train.sh", NCCL_SOCKET_IFNAME="ib0", MLFLOW_TRACKING_PASSWORD="hush", **evil)
    passed = {
        name.removeprefix("APPTAINERENV_"): value
        for name, value in surroundings(clone, "apptainer").items()
        if name.startswith(("APPTAINER", "SINGULARITY"))
    }
    assert passed["PYTHONPATH"] == f"{clone}/src"
    assert (passed["NCCL_SOCKET_IFNAME"], passed["MLFLOW_TRACKING_PASSWORD"]) == ("ib0", "hush")
    assert passed["SIFTUNE_IMAGE_SHA256"] == hashlib.sha256(b"image").hexdigest()
    assert (passed["PYTHONNOUSERSITE"], passed["PYTHONSAFEPATH"]) == ("1", "1")
    assert passed["HF_HUB_OFFLINE"] == "1"
    allowed = ("SLURM_", "SIFTUNE_", "NCCL_", "MLFLOW_", "HF_", "PYTHON", "MODELSCOPE_", "LC_")
    others = {name for name in passed if not name.startswith(allowed)}
    assert others <= {
        "USER",
        "LOGNAME",
        "LANG",
        "TZ",
        "DVC_NO_ANALYTICS",
        "OMP_NUM_THREADS",
        *SIGNATURE,
    } | {name for name in others if name.lower().endswith("_proxy")}
    assert "hush" not in "".join(arguments(clone, "apptainer"))
    assert {"--cleanenv", "--no-home", "--no-eval"} <= set(arguments(clone, "apptainer"))


def test_the_commits_of_experiments_are_signed(clone, monkeypatch):
    """As git would on the login node; DVC in the image sees no ~/.gitconfig."""

    def signature(**environment: str) -> dict[str, str]:
        in_job(clone, "train.sh", **environment)
        passed = surroundings(clone, "apptainer")
        return {name: passed[f"APPTAINERENV_{name}"] for name in SIGNATURE}

    config = clone.parent / "gitconfig"
    config.write_text("[user]\n    name = Wang Wei 王維\n    email = w@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    signed = signature(GIT_AUTHOR_NAME="Du Fu")
    assert signed["GIT_AUTHOR_NAME"] == "Du Fu"
    assert signed["GIT_COMMITTER_NAME"] == "Wang Wei 王維"
    assert signed["GIT_AUTHOR_EMAIL"] == signed["GIT_COMMITTER_EMAIL"] == "w@example.org"
    config.write_text("")
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    unsigned = signature()
    assert unsigned["GIT_AUTHOR_NAME"] == user
    assert unsigned["GIT_AUTHOR_EMAIL"].startswith(f"{user}@")


def test_a_path_is_bound_whatever_its_name(clone):
    in_job(clone, "train.sh")
    quoted = str(clone).replace('"', '""')
    assert f'type=bind,"source={quoted}","destination={quoted}"' in arguments(clone, "apptainer")


def test_the_job_has_a_tmp_of_its_own_and_sees_what_site_and_dvc_name(clone):
    (clone / "slurm/sites/mine.sh").write_text('SIFTUNE_BINDS=(/data "/some where")\n')
    (clone / ".dvc").mkdir()
    (clone / ".dvc/config.local").write_text("[cache]\n    dir = /shared/cache\n")
    (clone.parent / "bin/apptainer").write_text('#!/bin/sh\nstat -c %a "$SIFTUNE_JOB"\necho "$@"\n')
    done = in_job(clone, "train.sh", SIFTUNE_SITE="mine")
    mode, passed = done.stdout.splitlines()
    assert mode == "700"
    for path in ("/data", "/some where", "/shared/cache"):
        assert f'type=bind,"source={path}","destination={path}"' in passed
    assert f'"source={clone.parent}/scratch/siftune-12","destination=/tmp"' in passed


@pytest.mark.parametrize(
    ("code", "last"),
    [
        (0, "siftune: job 12 has finished"),
        (75, "siftune: to go on: sbatch slurm/train.sh sft -S a=b\\ c"),
        (
            78,
            "siftune: job 12 is not tried again: mend what is said above, then: sbatch slurm",
        ),
        (137, "siftune: job 12 was killed; if not by you, its memory was too small"),
        (1, "siftune: job 12 ended with code 1; why is above."),
    ],
)
def test_the_last_line_says_what_to_do(code, last, clone):
    done = in_job(clone, "train.sh", "sft", "-S", "a=b c", CODE=str(code))
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(last)
    assert not (clone.parent / "scratch" / "siftune-12").exists()


@pytest.mark.parametrize(
    ("refused", "last"),
    [
        ("0", "siftune: job 12 is queued again, and goes on from there"),
        ("1", "siftune: this cluster does not queue it again by itself. To go on: sbatch slurm"),
    ],
)
def test_a_job_that_ran_out_of_time_is_queued_again_where_that_is_allowed(refused, last, clone):
    done = in_job(clone, "train.sh", CODE="75", REQUEUE="1", REFUSED=refused)
    assert done.returncode == 75
    assert arguments(clone, "scontrol") == ["requeue", "12"]
    assert done.stderr.splitlines()[-1].startswith(last)


def test_without_an_image_a_job_says_so(clone):
    (clone / "containers" / "siftune-cpu.sif").unlink()
    done = in_job(clone, "train.sh")
    assert done.returncode == 78
    assert "siftune: there is no image" in done.stderr


def test_another_image_is_refused(clone):
    (clone / "containers" / "siftune-cpu.sif").write_bytes(b"imagf")
    done = in_job(clone, "train.sh")
    assert done.returncode == 78
    assert (
        "siftune: containers/siftune-cpu.sif is not the image of containers/image.lock"
        in done.stderr
    )
    assert not (clone.parent / "apptainer.arguments").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SIFTUNE_SITE": "nowhere"}, "There are: example.sh taiwania2.sh"),
        ({"SIFTUNE_SITE": "../sites/example"}, "SIFTUNE_SITE=../sites/example: there is no"),
        ({"SIFTUNE_SITE": "taiwania2"}, "SBATCH_ACCOUNT is not set, and the site"),
        ({"SIFTUNE_VARIANT": "rocm"}, "SIFTUNE_VARIANT=rocm: it must be cuda, volta or cpu"),
        ({"SIFTUNE_VARIANT": "volta"}, "there is no image"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("script", ["train.sh", "chain.sh"])
def test_what_the_site_lacks_is_said_before_submission(script, settings, message, clone):
    done = run(f"slurm/{script}", **settings)
    assert done.returncode == 78
    assert message in done.stderr
    assert not (clone.parent / "sbatch.arguments").exists()


def test_an_image_without_its_lock_is_refused_before_submission(clone):
    lock = clone / "containers" / "image.lock"
    lock.write_text(lock.read_text().replace('"cpu"', '"volta"'))
    done = run("slurm/train.sh")
    assert (done.returncode, "has no image of the variant cpu" in done.stderr) == (78, True)
    lock.unlink()
    done = run("slurm/train.sh")
    assert (done.returncode, "build.py writes it with the image" in done.stderr) == (78, True)
    assert not (clone.parent / "submitted").exists()


def test_what_the_site_adds_to_sbatch_comes_first(clone):
    (clone / "slurm/sites/mine.sh").write_text("SIFTUNE_SBATCH=(--mail-type=END --qos=long)\n")
    assert run("slurm/train.sh", "sft", SIFTUNE_SITE="mine").returncode == 0
    passed = ["--mail-type=END", "--qos=long", "slurm/train.sh", "sft"]
    assert arguments(clone, "sbatch") == passed


def test_an_image_for_gpus_needs_one(clone):
    (clone / "containers" / "siftune-cuda.sif").write_bytes(b"image")
    lock = (clone / "containers" / "image.lock").read_text()
    good = lock.replace("2" * 64, hashlib.sha256(b"image").hexdigest())
    (clone / "containers" / "image.lock").write_text(good)
    done = in_job(clone, "train.sh", SIFTUNE_VARIANT="cuda")
    assert done.returncode == 78
    assert "needs a GPU, and this job has none: sbatch --gpus-per-node=1" in done.stderr
    assert in_job(clone, "train.sh", SIFTUNE_VARIANT="cuda", SLURM_GPUS_ON_NODE="1").returncode == 0


def test_submitted_elsewhere_is_refused(clone, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy("slurm/train.sh", tmp_path / "slurm_script")
    done = run(
        "bash", str(tmp_path / "slurm_script"), SLURM_JOB_ID="12", SLURM_SUBMIT_DIR=str(elsewhere)
    )
    assert done.returncode == 78
    assert f"submit in the repository's root, not in {elsewhere}" in done.stderr


def test_a_chain_waits_for_the_one_before(clone):
    done = run("slurm/chain.sh", "-S", "model=mine")
    assert done.stdout == "siftune: job 12 trains, then 13 evaluates, then 14 exports\n", (
        done.stderr
    )
    after = "--parsable --dependency=afterok:{} --kill-on-invalid-dep=yes slurm/{}.sh"
    assert (clone.parent / "submitted").read_text().splitlines() == [
        "--parsable slurm/train.sh sft -S model=mine",
        after.format(12, "evaluate"),
        after.format(13, "export"),
    ]


def test_without_slurm_the_command_for_this_machine_is_said(clone):
    (clone.parent / "bin/sbatch").unlink()
    done = run("slurm/train.sh")
    assert (done.returncode, "Without Slurm: siftune repro" in done.stderr) == (78, True)


def test_the_sites_modules_are_loaded_on_the_node(clone):
    (clone / "slurm/sites/mine.sh").write_text(
        'SIFTUNE_MODULES="apptainer cuda"\nmodule() { echo "$@" >"$RECORD/module"; }\n'
    )
    assert in_job(clone, "train.sh", SIFTUNE_SITE="mine").returncode == 0
    assert (clone.parent / "module").read_text() == "load apptainer cuda\n"
