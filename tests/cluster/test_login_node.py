"""On the login node: what the README says to type there, by a user who has only the image."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prepared import ROOT

# As the tests that count who does so.
pytestmark = pytest.mark.one_at_a_time("reaches for the network")
AS_TYPED = "cd {} && export SIFTUNE_SITE=test && {}"


def test_the_readmes_commands_train(cluster, checkout, readme_commands: Callable[[Path], list]):
    lines = readme_commands(ROOT / "README.md")
    mine = [line for line in lines if line.startswith(("slurm/", "sbatch "))]
    assert len(mine) >= 3
    said = {}
    for line in mine:
        if line.startswith("sbatch "):
            number = checkout.sbatch(line.removeprefix("sbatch "))
            assert cluster.wait(number)["JobState"] == "COMPLETED", cluster.log(number)
        else:
            said[line] = cluster.ok(AS_TYPED.format(checkout.name, line))
    fetched, seen = said["slurm/siftune.sh fetch --all"], said["slurm/siftune.sh doctor"]
    assert "loads without a network" in fetched
    # A slow disk leaves the hash to the job.
    assert re.search(r"\nok       image .*(as in containers/image.lock|every job does so)", seen)
    assert "\nproblem  " not in f"\n{seen}"
    # The packages are those of the image's lock; nothing of the login node's comes before them.
    assert "\nok       Python " in f"\n{seen}"
    assert "\nok       ~/.local " in f"\n{seen}"


def test_the_doctor_of_the_login_node_sees_slurm_and_what_a_submission_refuses(cluster, checkout):
    doctor = "PYTHONPATH=src python3 -m siftune doctor"
    seen = cluster.ok(AS_TYPED.format(checkout.name, doctor))
    for line in (
        "ok       Apptainer",
        "ok       namespaces",
        "ok       partition",
        "ok       image",
    ):
        assert line in seen, seen
    image = checkout.path / "containers/siftune-cpu.sif"
    image.unlink()  # a link
    done = cluster.run(AS_TYPED.format(checkout.name, doctor))
    assert done.returncode == 78
    assert "problem  submission" in done.stdout
    assert "there is no image" in done.stdout
    done = cluster.run(f"cd {checkout.name} && SIFTUNE_SITE=nowhere {doctor}")
    assert (done.returncode, "there is no slurm/sites/nowhere.sh" in done.stdout) == (78, True)


def test_the_doctor_in_a_job_sees_its_node(cluster, checkout):
    seen = cluster.ok(AS_TYPED.format(checkout.name, "srun slurm/siftune.sh doctor"))
    assert "ok       job " in seen
    assert "ok       GPU" in seen  # none is needed
    assert "ok       /tmp" in seen


def test_a_bundle_is_made_in_the_image_and_used_elsewhere(cluster, checkout):
    path = checkout.path / "params.yaml"
    params = yaml.safe_load(path.read_text())
    (checkout.path / "work/base").symlink_to(params["model"]["source"])
    params["model"]["source"] = "./work/base"
    path.write_text(yaml.safe_dump(params))
    siftune = AS_TYPED.format(checkout.name, "git commit -qam base && slurm/siftune.sh {}")
    cluster.ok(siftune.format("fetch --all"))
    siftune = AS_TYPED.format(checkout.name, "slurm/siftune.sh {}")
    cluster.ok(siftune.format("bundle work/all.tar"))
    assert "is whole" in cluster.ok(siftune.format("bundle verify work/all.tar"))
    there = (
        f"mkdir there && cd there && tar -xf ../{checkout.name}/work/all.tar && cd siftune-* && "
        "sha256sum --check --quiet SHA256SUMS && git init -q && git pull -q repository.bundle HEAD "
        "&& export HF_HOME=$PWD/.cache/huggingface && slurm/siftune.sh {}"
    )
    cluster.ok(there.format("fetch --all"), SIFTUNE_SITE="test")
