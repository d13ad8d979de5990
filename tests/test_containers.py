"""Images: one recipe, pinned bases, what a build sees, and what image.lock says of the result."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from cyclonedx.model.bom import Bom

ROOT = Path(__file__).parent.parent
DIGEST = f"sha256:{'d' * 64}"
# Does what the real one does to files: an image, a cache with the base's manifest, answers.
APPTAINER = """#!{python}
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
with open("{calls}", "a") as calls:
    calls.write(json.dumps([arguments, dict(os.environ)]) + "\\n")
if arguments == ["--version"]:
    print("apptainer version 1.4.5")
elif arguments[0] == "exec":
    print('{{"bomFormat": "CycloneDX"}}')
elif Path("{broken}").exists():
    sys.exit("FATAL:   While performing build: failed to execute %test script")
else:
    Path(arguments[-2]).write_text("an image")
    blob = Path(os.environ["APPTAINER_CACHEDIR"], "cache/blob")
    blob.mkdir(parents=True)
    (blob / "index.json").write_text(json.dumps({{"manifests": [{{"digest": "{digest}"}}]}}))
"""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Checkout:
    """A committed copy of containers/ with a fake apptainer, and what that was called with."""

    def __init__(self, folder: Path) -> None:
        self.containers = folder / "it's a; $(checkout)" / "containers"
        made = shutil.ignore_patterns("*.sif", "*.tar", "*.cdx.json", "image.lock", "__pycache__")
        shutil.copytree(ROOT / "containers", self.containers, ignore=made)
        shutil.copy(ROOT / ".gitignore", self.containers.parent)
        self.calls_file, self.broken = folder / "calls", folder / "broken"
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.install("apptainer", APPTAINER)
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "containers")
        self.build = load(self.containers / "build.py")

    def install(self, name: str, program: str) -> None:
        """Put a program on the path."""
        facts = {"python": sys.executable, "calls": self.calls_file, "broken": self.broken}
        (self.bin / name).write_text(program.format(**facts, digest=DIGEST))
        (self.bin / name).chmod(0o755)

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", "-C", str(self.containers.parent), *who, *arguments],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    @property
    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()]

    @property
    def image_lock(self) -> dict:
        return json.loads((self.containers / "image.lock").read_text())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    monkeypatch.chdir(tmp_path)
    made = Checkout(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


def refusal(checkout: Checkout, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        checkout.build.main(list(arguments))
    assert end.value.code == 78
    assert not checkout.calls_file.exists()
    return capsys.readouterr().err


# The recipe


def test_the_definition_is_the_dockerfile(checkout: Checkout):
    written = (ROOT / "containers" / "image.def").read_text()
    assert checkout.build.definition() == written
    for section in ("arguments", "help", "labels", "environment", "files", "post", "test"):
        assert f"\n%{section}\n    " in written
    assert "VARIANT=cuda" in written
    assert "export SIFTUNE_IMAGE_VARIANT={{ VARIANT }}" in written


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("ENV PYTHONSAFEPATH=1", "ENV PYTHONSAFEPATH=0"),
        ("COPY sbom.py", "COPY image_test.py"),
        ("ARG VARIANT=cuda", "ARG VARIANT=cpu"),
        ('"$LLAMA_CPP"', "tools"),
        ("LABEL siftune.variant=", "LABEL siftune.kind="),
    ],
)
def test_a_recipe_that_drifted_is_seen(checkout: Checkout, line: str, changed: str):
    recipe = checkout.containers / "Dockerfile"
    assert recipe.read_text().count(line) == 1
    recipe.write_text(recipe.read_text().replace(line, changed))
    assert checkout.build.definition() != (checkout.containers / "image.def").read_text()


def test_the_dockerfile_has_only_what_spython_converts():
    recipe = (ROOT / "containers" / "Dockerfile").read_text()
    words = [line.split()[0] for line in recipe.splitlines() if line and line[0] not in "# "]
    assert set(words) == {"FROM", "ARG", "LABEL", "ENV", "COPY", "RUN"}
    assert words.count("FROM") == 1
    assert "--mount" not in recipe
    assert "<<" not in recipe


def test_what_is_copied_is_what_a_build_sees():
    containers = ROOT / "containers"
    copied = [line.split()[1] for line in (containers / "Dockerfile").read_text().splitlines()
              if line.startswith("COPY")]  # fmt: skip
    seen = [line[1:] for line in (containers / ".dockerignore").read_text().splitlines()[2:]]
    assert copied == seen
    assert all((containers / name).exists() for name in copied)


def test_spython_is_imported_in_one_place_only():
    places = set()
    for path in [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [getattr(node, "module", None) or node.names[0].name]
                if any(name.split(".")[0] == "spython" for name in names):
                    places.add(path.relative_to(ROOT).as_posix())
    assert places == {"containers/build.py"}


@pytest.mark.parametrize("name", ["build.py", "image_test.py", "sbom.py"])
def test_an_old_python_reads_it(name: str):
    ast.parse((ROOT / "containers" / name).read_text(), feature_version=(3, 9))


# The base


@pytest.mark.parametrize(
    "base", ["debian", "debian:latest", "debian:bookworm", "python:3.11", "no/such/file.sif",
             "host:5000/debian", "debian@sha256:abc"],
)  # fmt: skip
def test_a_base_that_may_be_another_tomorrow_is_refused(checkout, capsys, base: str):
    said = refusal(checkout, capsys, "cuda", "--base", base)
    assert f"--base {base}" in said
    assert "exact" not in said or "tag" in said
    assert not (checkout.containers / "image.lock").exists()


def test_the_recipes_own_base_is_exact(checkout: Checkout):
    options = checkout.build.parser().parse_args(["cuda"])
    assert checkout.build.EXACT.fullmatch(options.base)
    assert "@" not in options.base  # no digest that nobody has resolved


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            (path.parent / name).write_text("{}")
            tar.add(path.parent / name, name)
    return path


def test_a_base_is_a_root_a_sif_or_an_archive(checkout: Checkout, tmp_path: Path):
    sif = tmp_path / "base.sif"
    sif.write_text("an image")
    docker = archive(tmp_path / "docker.tar", "oci-layout", "manifest.json")
    oci = archive(tmp_path / "oci.tar", "oci-layout", "index.json")
    origin = checkout.build.origin
    assert origin(str(tmp_path), "cpu") == ("localimage", str(tmp_path), None)
    found = {origin(path.name, "cpu")[:2] for path in (sif, docker, oci)}
    assert found == {
        ("localimage", str(sif)), ("docker-archive", str(docker)), ("oci-archive", str(oci)),
    }  # fmt: skip
    digest = subprocess.run(["sha256sum", oci], capture_output=True, text=True).stdout.split()[0]
    assert origin(str(oci), "cpu")[2] == f"sha256:{digest}"


# A build


def test_an_image_and_what_is_known_of_it(checkout: Checkout, capsys):
    checkout.build.main(["volta"])
    lock = checkout.containers / "locks" / "volta.txt"
    (digest, image_digest) = (checkout.build.sha256(path) for path in (
        lock, checkout.containers / "siftune-volta.sif"))  # fmt: skip
    assert checkout.image_lock == {
        "volta": {
            "image": "siftune-volta.sif",
            "sha256": image_digest,
            "base": "debian:bookworm-20260824-slim",
            "base_digest": DIGEST,
            "lock_sha256": digest,
            "llama_cpp": "llama-cpp-python==0.3.36 (tools)",
            "git_commit": checkout.git("rev-parse", "HEAD"),
            "built_with": "apptainer 1.4.5",
        }
    }
    assert json.loads((checkout.containers / "siftune-volta.cdx.json").read_text())
    assert image_digest in capsys.readouterr().out
    build, _ = checkout.calls[0]
    assert build[:2] == ["build", "--force"]
    given = dict(one.removeprefix("--build-arg=").split("=", 1) for one in build if "-arg=" in one)
    assert given == {
        "BOOTSTRAP": "docker", "BASE": "debian:bookworm-20260824-slim", "VARIANT": "volta",
        "LLAMA_CPP": "tools", "LOCK_SHA256": digest,
        "GIT_COMMIT": checkout.git("rev-parse", "HEAD"),
    }  # fmt: skip
    # Each argument that the recipe asks for, and no other.
    recipe = (checkout.containers / "image.def").read_text()
    section = recipe.split("%arguments\n")[1].split("\n\n")[0]
    assert {line.split("=")[0].strip() for line in section.splitlines()} == set(given)


def test_a_base_once_resolved_is_taken_by_its_digest(checkout: Checkout):
    checkout.build.main(["volta"])
    checkout.build.main(["volta"])
    bases = [next(one for one in call if one.startswith("--build-arg=BASE=")) for call, _ in
             checkout.calls if call[0] == "build"]  # fmt: skip
    assert bases == [
        "--build-arg=BASE=debian:bookworm-20260824-slim", f"--build-arg=BASE=debian@{DIGEST}",
    ]  # fmt: skip
    assert checkout.image_lock["volta"]["base"] == "debian:bookworm-20260824-slim"


def test_a_build_without_a_network(checkout: Checkout, tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    flags = ["--wheels", "wheels", "--base", "root", "--llama-cpp", "converter", "--fast"]
    checkout.build.main(["cpu", *flags])
    build, _ = checkout.calls[0]
    assert f"--bind={checkout.wheels}:/mnt:ro" in build
    assert f"--build-arg=BASE={root}" in build
    assert "--build-arg=BOOTSTRAP=localimage" in build
    assert "--mksquashfs-args=-comp lz4" in build
    entry = checkout.image_lock["cpu"]
    assert (entry["base"], entry["base_digest"]) == ("root", None)
    assert entry["llama_cpp"].endswith("(converter)")


def test_cpu_needs_a_wheelhouse(checkout: Checkout, capsys):
    said = refusal(checkout, capsys, "cpu")
    assert "python containers/build.py wheels cpu FOLDER" in said


def test_nothing_of_the_environment_gets_into_a_build(checkout: Checkout, monkeypatch):
    secrets = {
        "HF_TOKEN": "canary-1", "AWS_SECRET_ACCESS_KEY": "canary-2", "PIP_INDEX_URL": "canary-3",
        "APPTAINERENV_X": "canary-4", "APPTAINER_BIND": "canary-5", "LD_PRELOAD": "/canary-6.so",
        "PYTHONPATH": "canary-7", "BASH_ENV": "canary-8",
    }  # fmt: skip
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("https_proxy", "http://proxy.example.org")
    checkout.build.main(["cuda"])
    assert len(checkout.calls) == 3
    assert "canary" not in checkout.calls_file.read_text()
    assert "canary" not in (checkout.containers / "image.lock").read_text()
    assert checkout.calls[0][1]["https_proxy"] == "http://proxy.example.org"


def test_a_failed_build_leaves_what_was_there(checkout: Checkout, capsys):
    checkout.build.main(["cuda"])
    before = checkout.image_lock
    checkout.broken.touch()
    with pytest.raises(SystemExit, match="apptainer failed"):
        checkout.build.main(["cuda"])
    assert checkout.image_lock == before
    assert not list(checkout.containers.glob(".*.part"))
    assert before["cuda"]["sha256"] == checkout.build.sha256(
        checkout.containers / "siftune-cuda.sif"
    )


def test_what_is_not_committed_is_not_built(checkout: Checkout, capsys):
    (checkout.containers / "locks" / "cuda.txt").write_text("torch==0\n")
    said = refusal(checkout, capsys, "cuda")
    assert "locks/cuda.txt" in said
    assert "--allow-dirty" in said
    checkout.build.main(["cuda", "--allow-dirty"])
    assert checkout.image_lock["cuda"]["git_commit"].endswith("-dirty")


def test_what_a_build_leaves_is_no_change(checkout: Checkout):
    checkout.build.main(["cuda"])
    checkout.build.main(["volta"])
    assert set(checkout.image_lock) == {"cuda", "volta"}
    assert "dirty" not in checkout.image_lock["volta"]["git_commit"]


def test_without_a_builder_it_says_what_to_do(checkout: Checkout, capsys, monkeypatch):
    monkeypatch.setattr(checkout.build, "BUILDERS", ("no-such-builder",))
    assert "module load apptainer" in refusal(checkout, capsys, "cuda")


PODMAN = """#!{python}
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
with open("{calls}", "a") as calls:
    calls.write(json.dumps([arguments, dict(os.environ)]) + "\\n")
if arguments[0] == "save":
    Path(arguments[1].split("=", 1)[1]).write_text("an archive")
elif arguments[:2] == ["image", "inspect"]:
    print("docker.example.org/debian@{digest}")
else:
    print("podman version 5.4.2" if arguments == ["--version"] else "{{}}")
"""


@pytest.mark.parametrize("builder", ["podman", "docker"])
def test_podman_and_docker_leave_an_archive(checkout: Checkout, monkeypatch, builder: str):
    checkout.install(builder, PODMAN)
    monkeypatch.setattr(checkout.build, "BUILDERS", ("no-apptainer", "none", builder))
    checkout.build.main(["cuda"])
    entry = checkout.image_lock["cuda"]
    archive = checkout.containers / "siftune-cuda.tar"
    assert (entry["image"], entry["sha256"]) == (archive.name, checkout.build.sha256(archive))
    assert entry["base_digest"] == DIGEST
    kinds = [call[0] for call, _ in checkout.calls]
    assert kinds == ["build", "run", "save", "image", "run", "--version"]
    assert "--network=none" in checkout.calls[1][0]
    assert "image_test.py" in checkout.calls[1][0][-1]


def test_docker_binds_no_wheelhouse(checkout: Checkout, capsys, monkeypatch):
    checkout.install("docker", PODMAN)
    monkeypatch.setattr(checkout.build, "BUILDERS", ("no-apptainer", "none", "docker"))
    assert "use podman" in refusal(checkout, capsys, "cuda", "--wheels", str(checkout.wheels))


# What is inside


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="Debian's packages are asked for")
def test_the_sbom_lists_debians_and_pythons_packages(monkeypatch, capsys):
    sbom = load(ROOT / "containers" / "sbom.py")
    monkeypatch.setattr(sbom, "PACKAGES", Path(pytest.__file__).parent.parent)
    monkeypatch.setattr(sys, "argv", ["sbom.py", "cpu"])
    sbom.main()
    content = json.loads(capsys.readouterr().out)
    urls = [component["purl"] for component in content["components"]]
    assert len(urls) == len(set(urls)) > 200
    assert f"pkg:pypi/pytest@{pytest.__version__}" in urls
    assert any(url.startswith("pkg:deb/debian/libc6@") for url in urls)
    assert Bom.from_json(content).metadata.component.name == "siftune-cpu"
