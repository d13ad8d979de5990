"""The image, built by Apptainer as the user from the project's recipe and lock."""

import hashlib
import json
import time

import prepared
from prepared import ROOT


def test_the_lock_says_what_the_image_is_made_of(cluster, checkout):
    facts = json.loads((checkout.path / prepared.LOCK).read_text())["cpu"]
    image = checkout.path / prepared.SIF
    assert facts["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    lock = (ROOT / "containers/locks/cpu.txt").read_bytes()
    assert facts["lock_sha256"] == hashlib.sha256(lock).hexdigest()
    assert facts["built_with"].startswith("apptainer ")
    labels = cluster.ok(f"apptainer inspect {checkout.name}/{prepared.SIF}")
    assert facts["lock_sha256"] in labels
    assert facts["git_commit"] in labels


def test_its_own_test_passes(cluster, checkout):
    assert "siftune-cpu: works" in (cluster.folder / "build.log").read_text()
    said = cluster.ok(f"srun apptainer test {checkout.name}/{prepared.SIF} 2>&1")
    assert "siftune-cpu: works" in said


def test_it_holds_every_package_of_the_lock_in_that_version(cluster, checkout):
    lock = (ROOT / "containers/locks/cpu.txt").read_text()
    wanted = {line.split()[0] for line in lock.splitlines() if line[:1].isalnum()}
    code = (
        "import importlib.metadata as m, re; "
        "print(*(re.sub('[-_.]+', '-', d.name).lower() + '==' + d.version.partition('+')[0] "
        "for d in m.distributions()))"
    )
    image = f"{checkout.name}/{prepared.SIF}"
    found = set(cluster.ok(f"apptainer exec --cleanenv {image} python -c {code!r}").split())
    missing = {one for one in wanted if one.partition(";")[0] not in found}
    assert len(wanted) > 100
    assert not missing


def test_an_image_with_one_other_byte_is_refused_before_anything_runs(cluster, checkout):
    image = checkout.path / prepared.SIF
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.unlink()  # a link
    image.write_bytes(content)
    prepared.own(checkout.path)
    number = checkout.sbatch("slurm/train.sh")
    began = time.monotonic()
    job = cluster.wait(number)
    log = cluster.log(number)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "78:0"), log
    assert "siftune-cpu.sif is not the image of containers/image.lock" in log
    assert "python" not in log
    assert time.monotonic() - began < 60
    assert not list(checkout.path.glob("work/runs/*"))
