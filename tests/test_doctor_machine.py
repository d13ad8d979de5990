"""What the doctor finds of GPU, disks, locks, namespaces and packages; only the edge is made up."""

import errno
import json
import os
import site
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from siftune.doctor import filesystem, gpu, namespaces, packages, place, room
from siftune.doctor.finding import OK, PROBLEM, WARNING

GIB = 2**30


@pytest.fixture(autouse=True)
def _checkout(tmp_path, monkeypatch, tools) -> None:
    """Locks with a CUDA for each variant; no driver, no cluster."""
    monkeypatch.chdir(tmp_path)
    for variable in [*filter(lambda name: name.startswith(("SLURM_", "SIFTUNE_")), os.environ)]:
        monkeypatch.delenv(variable)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "PROC", tmp_path / "no driver")
    monkeypatch.setattr(namespaces, "PROC", tmp_path / "sys")
    monkeypatch.setattr(namespaces, "ETC", tmp_path / "etc")
    locks = Path("containers/locks")
    locks.mkdir(parents=True)
    (locks / "cuda.txt").write_text("nvidia-cuda-runtime==13.0.96 \\\n    --hash=sha256:0\n")
    (locks / "volta.txt").write_text("nvidia-cuda-runtime-cu12==12.8.90 \\\n    --hash=sha256:0\n")
    (locks / "cpu.txt").write_text("torch==2.13.0 \\\n    --hash=sha256:0\n")


def levels(check) -> list[tuple[str, str]]:
    return [(one.level, one.about) for one in check()]


def only(check):
    """The one finding that is not well, which says what to do."""
    (found,) = [one for one in check() if one.level != OK]
    assert found.todo
    return found


# The GPU


def node(monkeypatch, tools, *, driver: str, gpus: list[str], variant: str = "cuda") -> None:
    """A node of a job, whose GPUs are lines of nvidia-smi: name, compute capability."""
    monkeypatch.setenv("SIFTUNE_VARIANT", variant)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(gpus)))))
    Path("version").write_text(
        f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Thu Jul 10 2026\nGCC version:\n"
    )
    monkeypatch.setattr(gpu, "PROC", Path("version"))
    tools("nvidia-smi", "\n".join(f"echo '{line}'" for line in gpus))


H100, V100 = "NVIDIA H100 80GB HBM3, 9.0", "Tesla V100-SXM2-32GB, 7.0"


@pytest.mark.parametrize(
    ("variant", "driver", "kind", "dtype"),
    [
        ("cuda", "580.65.06", H100, "bf16"),
        ("cuda", "999.1", "NVIDIA B300, 10.3", "bf16"),
        ("cuda", "580.65.06", "Tesla T4, 7.5", "fp16"),
        ("volta", "525.60.13", V100, "fp16"),
    ],
)
def test_a_node_that_fits_its_image_is_well(monkeypatch, tools, variant, driver, kind, dtype):
    node(monkeypatch, tools, driver=driver, gpus=[kind, kind], variant=variant)
    assert levels(gpu.check) == [(OK, "driver"), (OK, "GPU")]
    last = list(gpu.check())[1]
    assert last.what.startswith(f"2 x {kind.split(',')[0]}")
    assert dtype in last.what


@pytest.mark.parametrize(
    ("variant", "driver", "kind", "about", "todo"),
    [
        ("cuda", "575.57.08", H100, "driver", "newer driver"),
        ("volta", "470.82.01", V100, "driver", "newer driver"),
        ("cuda", "580.65.06", V100, "GPU", "SIFTUNE_VARIANT=volta"),
        ("volta", "580.65.06", H100, "GPU", "SIFTUNE_VARIANT=cuda"),
        ("cuda", "580.65.06", "Tesla P100-PCIE-16GB, 6.0", "GPU", "V100 or newer"),
    ],
)
def test_a_node_that_does_not_fit_says_what_to_do(
    monkeypatch, tools, variant, driver, kind, about, todo
):
    node(monkeypatch, tools, driver=driver, gpus=[kind], variant=variant)
    found = only(gpu.check)
    assert (found.level, found.about) == (PROBLEM, about)
    assert todo in found.todo


def test_an_open_kernel_module_tells_its_version_too(monkeypatch, tools):
    node(monkeypatch, tools, driver="580.95.05", gpus=[H100])
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    Path("version").write_text(line)
    assert levels(gpu.check) == [(OK, "driver"), (OK, "GPU")]
    Path("version").unlink()  # then nvidia-smi is asked
    tools("nvidia-smi", f"case $1 in *driver*) echo 580.95.05 ;; *) echo '{H100}' ;; esac")
    assert levels(gpu.check) == [(OK, "driver"), (OK, "GPU")]


def test_a_job_without_a_gpu_is_a_problem_a_login_node_without_one_is_not(monkeypatch, tools):
    assert levels(gpu.check) == [(OK, "GPU")]  # a laptop
    monkeypatch.setenv("SIFTUNE_SITE", "here")
    assert levels(gpu.check) == [(OK, "GPU")]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert levels(gpu.check) == [(PROBLEM, "GPU")]
    monkeypatch.setenv("SIFTUNE_VARIANT", "cpu")
    assert levels(gpu.check) == [(OK, "GPU")]


def test_gpus_that_are_not_seen_or_not_given_are_a_problem(monkeypatch, tools):
    node(monkeypatch, tools, driver="580.65.06", gpus=[H100])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    assert "--gpus-per-node=1" in only(gpu.check).todo
    tools("nvidia-smi", "exit 9")
    assert "--nv" in only(gpu.check).todo


def test_a_gpu_for_which_torch_was_not_installed_is_told(monkeypatch, tools):
    node(monkeypatch, tools, driver="580.65.06", gpus=[H100])
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.delenv("SIFTUNE_VARIANT")
    monkeypatch.setattr(place, "version", no_version)
    assert only(gpu.check).about == "driver"


def no_version(name: str) -> str:
    raise packages.PackageNotFoundError(name)


# Room


def disk(monkeypatch, **facts) -> None:
    """What the kernel says of every file system."""
    plain = {
        "f_bavail": 100 * GIB // 4096, "f_frsize": 4096, "f_files": 10**7, "f_favail": 10**6,
        "f_flag": 0,
    }  # fmt: skip
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**plain | facts))


def described(gib: int, types: list[str]) -> None:
    """A base model of this size, and the GGUF types that the params want."""
    Path("models").mkdir(exist_ok=True)
    file = {"model.safetensors": {"size": gib * GIB}, "config.json": {"size": 500}}
    Path("models/base.json").write_text(json.dumps({"files": file}))
    Path("params.yaml").write_text(yaml.safe_dump({"to_gguf": {"types": types}}))


def test_room_is_compared_with_what_the_params_need(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not there yet"))
    disk(monkeypatch)
    (found,) = room.room()
    assert (found.level, "100.0 GiB free" in found.what) == (OK, True)
    assert "need" not in found.what  # not known before the model is
    described(15, ["f16", "q8_0"])
    (found,) = room.room()
    # merged + f16 + q8_0, in the workspace and in DVC's cache
    assert (found.level, "need about 78.9 GiB" in found.what) == (OK, True)
    described(20, ["f16", "q8_0"])
    assert only(room.room).level == PROBLEM
    described(20, ["q4_k_m"])
    assert levels(room.room) == [(OK, "disk")]


def test_few_free_bytes_or_files_are_told(monkeypatch):
    disk(monkeypatch, f_bavail=10)
    assert only(room.room).level == PROBLEM
    disk(monkeypatch, f_favail=100)
    assert "100 more files" in only(room.room).what
    disk(monkeypatch, f_favail=0, f_files=0)  # a file system that does not count them
    assert levels(room.room) == [(OK, "disk")]


def test_the_cache_of_dvc_is_where_its_config_says(tmp_path):
    assert room.places()["DVC's cache"] == Path(".dvc/cache")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n['remote \"x\"']\n    url = y\n")
    assert room.places()["DVC's cache"] == Path(".dvc/cache")
    Path(".dvc/config.local").write_text(f"[cache]\n    dir = {tmp_path}/%shared\n")
    assert room.places()["DVC's cache"] == tmp_path / "%shared"


QUOTA = """Disk quotas for user ann (uid 1000):
     Filesystem   blocks    quota    limit    grace    files    quota    limit    grace
     nfs:/home   {used} 10485760 20971520        0     4242   100000   100000        0
     /dev/scratch  999999        0        0        0        1        0        0        0
"""


@pytest.mark.parametrize(
    ("used", "level"), [("1048576", OK), ("10000000", WARNING), ("10485761*", PROBLEM)]
)
def test_a_quota_is_told_before_it_is_used_up(tools, used, level):
    tools("quota", f"cat <<'END'\n{QUOTA.format(used=used)}END")
    (found,) = room.quota()  # that without a limit is none
    assert (found.level, found.what.split(":/")[0]) == (level, "nfs")
    assert bool(found.todo) == (level != OK)
    assert "of 10.0 GiB, 4.2% of 100,000 files" in found.what


def test_lustre_is_asked_for_its_own_quota(monkeypatch, tools):
    monkeypatch.setattr(filesystem, "mount", lambda path: ("lustre", "rw,flock"))
    tools("lfs", 'echo "   $5 [99] 100 200 - 95 100 100 -"')
    found = {(one.level, one.what.split(":")[1]) for one in room.quota()}
    assert found == {(WARNING, " 99.0% of 100.0 KiB, 95.0% of 100 files")}


def test_a_tmp_of_the_containers_own_is_too_small(monkeypatch):
    disk(monkeypatch, f_bavail=2**26 // 4096)
    found = only(room.temporary)
    assert (found.level, "64.0 MiB free" in found.what) == (PROBLEM, True)
    assert "SIFTUNE_SCRATCH" in found.todo
    disk(monkeypatch, f_flag=os.ST_NOEXEC)
    assert only(room.temporary).level == WARNING
    disk(monkeypatch)
    assert levels(room.temporary) == [(OK, "/tmp")]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SIFTUNE_SCRATCH", "/local/scratch")
    assert next(room.temporary()).what.startswith("/local/scratch: ")


# Locks


def test_locks_are_tried_and_nothing_stays():
    assert levels(filesystem.locks) == [(OK, "locks")]
    assert list(Path("work").iterdir()) == []


def refuse(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize(
    ("broken", "how", "name"),
    [
        ("fcntl.flock", refuse, "flock"),
        ("fcntl.flock", lambda *a: None, "flock"),  # answers yes to everybody
        ("fcntl.lockf", refuse, "fcntl locks"),
        ("os.link", refuse, "hard links"),
        ("pathlib.Path.replace", refuse, "renaming"),
    ],
)
def test_a_file_system_that_cannot_lock_is_a_problem(monkeypatch, broken, how, name):
    monkeypatch.setattr(broken, how)
    found = only(filesystem.locks)
    assert (found.level, found.what.split(" fail")[0]) == (PROBLEM, name)


def test_a_folder_that_cannot_be_written_is_a_problem():
    Path("work").touch()
    assert "nothing can be written in work/" in only(filesystem.locks).what


def test_locks_of_one_node_only_are_told(monkeypatch, tmp_path):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for options, level in (("rw,flock", OK), ("rw,localflock", WARNING)):
        (tmp_path / "mounts").write_text(
            f"21 1 0:5 / /proc rw shared:1 - proc proc rw\n"
            f"36 35 {number} / /work rw,relatime shared:9 master:1 - lustre mgs:/work {options}\n"
        )
        monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "mounts")
        assert levels(filesystem.locks) == [(level, "locks")]
        assert "(lustre)" in next(filesystem.locks()).what


def test_a_clock_that_differs_from_the_file_systems_is_told(monkeypatch):
    now = time.time
    monkeypatch.setattr(filesystem.time, "time", lambda: now() + 90)
    found = only(filesystem.locks)
    assert (found.level, found.about) == (WARNING, "clock")
    assert "-90 s" in found.what


# Namespaces


@pytest.fixture
def login_node(monkeypatch, tools) -> None:
    monkeypatch.setenv("SIFTUNE_SITE", "here")
    tools("apptainer", "echo apptainer version 1.4.5")
    tools("unshare", "exit 0")
    tools("getsubids", "exit 1")
    namespaces.ETC.mkdir()
    (namespaces.ETC / "subuid").write_text(f"{os.getuid()}:100000:65536\n")


def switch(name: str, value: str) -> None:
    path = namespaces.PROC / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def test_apptainer_with_namespaces_is_well(login_node):
    switch("user/max_user_namespaces", "15000")
    assert levels(namespaces.check) == [(OK, "Apptainer"), (OK, "namespaces")]
    assert "1.4.5" in next(namespaces.check()).what


def test_without_slurm_or_in_the_image_none_is_asked(login_node, monkeypatch):
    monkeypatch.setenv("SIFTUNE_IMAGE_VARIANT", "cuda")
    assert levels(namespaces.check) == []
    monkeypatch.delenv("SIFTUNE_IMAGE_VARIANT")
    monkeypatch.delenv("SIFTUNE_SITE")
    assert levels(namespaces.check) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ],
)
def test_a_kernel_that_forbids_them_is_named(login_node, tools, name, value):
    tools("unshare", "exit 1")
    switch(name, value)
    found = only(namespaces.check)
    assert (found.level, f"{name} = {value}" in found.what) == (PROBLEM, True)


def test_a_setuid_apptainer_runs_images_without_them(login_node, tools, tmp_path, monkeypatch):
    tools("unshare", "exit 1")
    helper = tmp_path / "opt/libexec/apptainer/bin/starter-suid"
    program = tmp_path / "opt/bin/apptainer"
    for path in (helper, program):
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o4755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    found = only(namespaces.check)
    assert (found.level, "copy it" in found.todo) == (WARNING, True)


def test_no_subordinate_ids_no_build(login_node):
    (namespaces.ETC / "subuid").write_text("somebody:100000:65536\n")
    assert (only(namespaces.check).level, only(namespaces.check).about) == (WARNING, "namespaces")


def test_a_cluster_without_apptainer_wants_a_module(monkeypatch):
    monkeypatch.setenv("SIFTUNE_SITE", "here")
    monkeypatch.setenv("PATH", "/nowhere")
    (found,) = [one for one in namespaces.check() if one.about == "Apptainer"]
    assert (found.level, "SIFTUNE_MODULES" in found.todo) == (PROBLEM, True)
    monkeypatch.setenv("SIFTUNE_MODULES", "apptainer/1.4")
    (found,) = [one for one in namespaces.check() if one.about == "Apptainer"]
    assert (found.level, "apptainer/1.4" in found.what) == (OK, True)


# Packages


def test_packages_are_compared_with_the_lock(monkeypatch):
    lock = Path("containers/locks/stack.txt")
    pydantic, torch = packages.version("pydantic"), packages.version("torch").partition("+")[0]
    lock.write_text(
        f"pydantic=={pydantic} \\\n    --hash=sha256:0\ntorch=={torch} \\\n    --hash=sha256:1\n"
        "pywin32==1 ; sys_platform == 'win32' \\\n    --hash=sha256:2\n"
    )
    assert levels(packages.installed) == [(OK, "Python")]
    lock.write_text(f"pydantic==1.0 \\\n    --hash=sha256:0\n{lock.read_text()}no-such-one==1\n")
    found = only(packages.installed)
    assert (found.level, "2 packages" in found.what) == (WARNING, True)
    assert f"pydantic {pydantic} (1.0), no-such-one is missing" in found.what
    monkeypatch.setenv("SIFTUNE_IMAGE_VARIANT", "cpu")
    Path("containers/locks/cpu.txt").write_text("pydantic==1.0 \\\n")
    assert "Build the image again" in only(packages.installed).todo


def test_a_python_without_the_packages_is_a_problem_only_where_it_trains(monkeypatch):
    monkeypatch.setattr(packages, "version", no_version)
    assert "make demo" in only(packages.installed).todo
    monkeypatch.setenv("SIFTUNE_SITE", "here")
    assert levels(packages.installed) == [(OK, "Python")]
    monkeypatch.setattr(sys, "version_info", (3, 14, 2))
    assert levels(packages.installed) == [(OK, "Python")]
    monkeypatch.delenv("SIFTUNE_SITE")
    assert only(packages.installed).level == PROBLEM


def test_packages_of_the_home_and_of_pythonpath_are_seen(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", f"{Path('src').resolve()}:/no/such/folder:")
    assert levels(packages.leaks) == [(OK, "~/.local")]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert only(packages.leaks).level == WARNING
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    assert (only(packages.leaks).level, only(packages.leaks).todo) == (
        PROBLEM, "export PYTHONNOUSERSITE=1",
    )  # fmt: skip
