#!/usr/bin/env python3
"""Build an image with whichever of apptainer, singularity, podman, docker is there.

    python containers/build.py cuda                   containers/siftune-cuda.sif
    python containers/build.py wheels cuda FOLDER     its packages, to build without a network
    python containers/build.py definition             image.def anew, from the Dockerfile

docs/images.md tells the rest. Python from 3.9, for login nodes; `definition` alone needs spython.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "image.lock"
VARIANTS = {
    "cuda": "current GPUs: CUDA 13, with unsloth, bitsandbytes and vllm",
    "volta": "V100: CUDA 12, with bitsandbytes",
    "cpu": "no GPU: tests, laptops",
    "base": "what comes from Debian only: a base for the others, without a network",
}
BUILDERS = ("apptainer", "singularity", "podman", "docker")
TEST = "python3 /usr/local/share/siftune/image_test.py"
SBOM = "/usr/local/share/siftune/sbom.json"
# What a build sees of the environment. Nothing of it is kept in the image.
KEPT = re.compile(
    r"PATH|HOME|USER|LANG|TMPDIR|XDG_RUNTIME_DIR|DBUS_SESSION_BUS_ADDRESS|DOCKER_(HOST|CONFIG)"
    r"|(https?|no)_proxy|(APPTAINER|SINGULARITY)_(TMPDIR|NOHTTPS|DOCKER_USERNAME|DOCKER_PASSWORD)",
    re.IGNORECASE,
)
# A whole version or a date: `bookworm` and `12` are another image tomorrow.
EXACT = re.compile(r"[^@\s]+(:[^:/@]*(\d{8}|\d+\.\d+\.\d+)[^:/@]*|@sha256:[0-9a-f]{64})")


class RefusedError(Exception):
    """What the user can mend: exit code 78."""


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    try:
        if options.command == "definition":
            (HERE / "image.def").write_text(definition())
        elif options.command == "wheels":
            wheels(options.variant, options.folder)
        else:
            build(options)
    except RefusedError as problem:
        print(f"build.py: {problem}", file=sys.stderr)
        sys.exit(78)
    except subprocess.CalledProcessError as failed:
        sys.exit(f"build.py: {failed.cmd[0]} failed; its own words are above.")


def parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    result = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    commands = result.add_subparsers(dest="command", required=True)
    default = re.search(r"^ARG BASE=(\S+)$", (HERE / "Dockerfile").read_text(), re.M)[1]
    for variant, meaning in VARIANTS.items():
        add = commands.add_parser(variant, help=meaning).add_argument
        base = "a reference with an exact tag, a SIF, an OCI or Docker archive (.tar), or a root"
        add("--base", default=default, help=base)
        add("--wheels", type=Path, help="install from this folder, without a network")
        llama = "converter: compile nothing; quantised GGUF types are then missing"
        add("--llama-cpp", choices=("tools", "converter"), default="tools", help=llama)
        add("--fast", action="store_true", help="pack quickly and larger, for tests")
        add("--allow-dirty", action="store_true", help="build what is not committed")
    fetch = commands.add_parser("wheels", help="fetch a variant's packages into a folder")
    fetch.add_argument("variant", choices=[one for one in VARIANTS if one != "base"])
    fetch.add_argument("folder", type=Path)
    commands.add_parser("definition", help="write image.def anew from the Dockerfile")
    return result


# The recipe


def definition() -> str:
    """image.def: the Dockerfile as spython reads it, with Apptainer's arguments, help and test."""
    from spython.main.parse.parsers import DockerParser

    os.chdir(HERE)  # spython looks for what is copied
    parsed = DockerParser("Dockerfile")
    (recipe,) = parsed.recipe.values()
    arguments = [f"{name}={value}" for name, value in parsed.args.items()]
    about = (HERE / "Dockerfile").read_text().split("\n\n")[0].splitlines()
    commands = [line for line in recipe.install if not line.startswith("#")]
    sections = {
        "arguments": ["BOOTSTRAP=docker", *arguments],
        "help": [line.lstrip("#") for line in about],
        "labels": [label.replace("=", " ", 1) for (label,) in recipe.labels],
        "environment": [f"export {line}" for line in recipe.environ],
        "files": [" ".join(pair) for pair in recipe.files],
        "post": [line for line in commands if line not in (*arguments, *recipe.environ)],
        "test": [TEST],
    }
    text = "# Made from the Dockerfile by `python containers/build.py definition`: edit that one.\n"
    text += "Bootstrap: {{ BOOTSTRAP }}\nFrom: {{ BASE }}\n"
    for name, content in sections.items():
        text += f"\n%{name}\n" + "".join(f"    {line}\n" for line in content if line.strip())
    return re.sub(rf"\$({'|'.join(parsed.args)})\b", r"{{ \1 }}", text)


# Building


def wheels(variant: str, folder: Path) -> None:
    """Fetch what a variant is made of, with the pip of this Python; its own settings apply."""
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(5, 37)]
    tags += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "linux_x86_64"]
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    download += ["--python-version=3.11", *(f"--platform={tag}" for tag in tags)]
    for name in (variant, "llama-tools", "llama"):
        file = HERE / "locks" / f"{name}.txt"
        subprocess.run([*download, f"--dest={folder}", f"--requirement={file}"], check=True)


def build(options: argparse.Namespace) -> None:
    """Build an image beside this file, test it, and write what it is to image.lock."""
    facts = facts_of(options)
    builder = next(filter(shutil.which, BUILDERS), None)
    if not builder:
        raise RefusedError(
            f"none of {', '.join(BUILDERS)} is here. On many clusters `module load apptainer` "
            "brings it; or build elsewhere, and bring the image and its entry in image.lock."
        )
    arguments = {
        "VARIANT": options.command,
        "LLAMA_CPP": options.llama_cpp,
        "GIT_COMMIT": facts["git_commit"],
        "LOCK_SHA256": facts["lock_sha256"] or "none",
    }
    kind, with_builder = ("sif", apptainer) if builder in BUILDERS[:2] else ("tar", podman)
    image = HERE / f"siftune-{options.command}.{kind}"
    part = HERE / f".{image.name}.part"
    try:
        facts["base_digest"], sbom = with_builder(builder, options, arguments, part)
        facts["sha256"] = sha256(part)
        part.replace(image)
    finally:
        part.unlink(missing_ok=True)
    publish(image.with_suffix(".cdx.json"), sbom)
    facts["built_with"] = run([builder, "--version"], capture=True).strip().replace(" version", "")
    lock = {**read_lock(), options.command: {"image": image.name, **facts}}
    publish(LOCK, json.dumps(lock, indent=2, sort_keys=True) + "\n")
    print(f"{image}: {image.stat().st_size / 1e9:.1f} GB, sha256 {facts['sha256']}, in image.lock")


def apptainer(
    builder: str, options: argparse.Namespace, arguments: dict[str, str], part: Path
) -> tuple[str | None, str]:
    """The base's digest and the SBOM, once `part` is built and its %test has passed."""
    bootstrap, source, digest = origin(options.base, options.command)
    command = [builder, "build", "--force", f"--build-arg=BOOTSTRAP={bootstrap}"]
    if builder == "singularity":
        command.append("--fakeroot")  # apptainer finds out itself
    if options.wheels:
        command.append(f"--bind={options.wheels.resolve(strict=True)}:/mnt:ro")
    if options.fast:
        command.append("--mksquashfs-args=-comp lz4")
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    command.append(f"--build-arg=BASE={source}")
    # A cache of its own: what it holds afterwards is the base that was used, and nothing else.
    with tempfile.TemporaryDirectory(prefix="siftune-build-") as cache:
        own = {"APPTAINER_CACHEDIR": cache, "SINGULARITY_CACHEDIR": cache}
        run([*command, str(part), "image.def"], **own)
        if bootstrap == "docker":
            (base,) = json.loads(Path(cache, "cache/blob/index.json").read_text())["manifests"]
            digest = base["digest"]
    inside = [builder, "exec", "--cleanenv", "--no-home", str(part)]
    return digest, run([*inside, "cat", SBOM], capture=True)


def podman(
    builder: str, options: argparse.Namespace, arguments: dict[str, str], part: Path
) -> tuple[str | None, str]:
    """The same with podman or docker; `part` is an archive that Apptainer makes a SIF of."""
    bootstrap, source, _ = origin(options.base, options.command)
    if bootstrap != "docker":
        raise RefusedError(f"{builder} builds on a reference with an exact tag, not on {source}.")
    if options.wheels and builder == "docker":
        raise RefusedError("docker binds no folder in a build: leave --wheels out, or use podman.")
    tag = f"localhost/siftune:{options.command}"
    command = [builder, "build", f"--tag={tag}"]
    if options.wheels:
        command.append(f"--volume={options.wheels.resolve(strict=True)}:/mnt:ro")
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    run([*command, f"--build-arg=BASE={source}", "."])
    inside = [builder, "run", "--rm", "--network=none", tag]
    run([*inside, *TEST.split()])
    run([builder, "save", f"--output={part}", tag])
    inspect = [builder, "image", "inspect", "--format={{index .RepoDigests 0}}", source]
    return run(inspect, capture=True).strip().rpartition("@")[2], run(
        [*inside, "cat", SBOM], capture=True
    )


def origin(base: str, variant: str) -> tuple[str, str, str | None]:
    """How Apptainer starts from a base, from what, and that file's digest.

    Raises:
        RefusedError: no such file, or a reference that may be another image tomorrow.
    """
    path = Path(base).resolve()
    if path.is_dir():
        return "localimage", str(path), None
    if path.is_file():
        kind = "localimage"
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:  # `docker save` writes manifest.json, OCI has none
                docker = "manifest.json" in archive.getnames()
            kind = "docker-archive" if docker else "oci-archive"
        return kind, str(path), f"sha256:{sha256(path)}"
    if not EXACT.fullmatch(base):
        raise RefusedError(
            f"--base {base}: neither a file or folder, nor a reference that stays what it is. Give "
            "a tag with a whole version or a date (debian:bookworm-20260824-slim), or a digest."
        )
    known = read_lock().get(variant, {})
    if known.get("base") == base and known.get("base_digest"):
        base = f"{base.rpartition(':')[0]}@{known['base_digest']}"
    return "docker", base, None


# What an image is made of


def facts_of(options: argparse.Namespace) -> dict[str, str | None]:
    """What is known of an image before it is built."""
    if options.command == "cpu" and not options.wheels:
        raise RefusedError(
            "the default Python index lacks torch built for the CPU. Let pip fetch it where "
            "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS names its place: `python containers/build.py "
            "wheels cpu FOLDER`, then build with `--wheels FOLDER`."
        )
    facts = {"base": options.base, "git_commit": commit(options.allow_dirty)}
    if options.command == "base":
        return {**facts, "lock_sha256": None, "llama_cpp": None}
    (release,) = re.findall(r"^(\S+==\S+)", (HERE / "locks/llama.txt").read_text(), re.M)
    facts["llama_cpp"] = f"{release} ({options.llama_cpp})"
    return {**facts, "lock_sha256": sha256(HERE / f"locks/{options.command}.txt")}


def commit(allow_dirty: bool) -> str:
    """The commit that this folder is from, with `-dirty` where it is not quite."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True).stdout
    changed = "it is in no git checkout\n"
    if head:
        status = [*git, "status", "--porcelain", "--", ".", ":(exclude)image.lock"]
        changed = run(status, capture=True)
    if changed and not allow_dirty:
        raise RefusedError(
            "containers/ is not as committed, so nobody could build this image again:\n"
            f"{changed}Commit first, or build it all the same with --allow-dirty."
        )
    return (head.strip() or "unknown") + ("-dirty" if changed else "")


def read_lock() -> dict[str, dict[str, str | None]]:
    return json.loads(LOCK.read_text()) if LOCK.exists() else {}


def publish(path: Path, text: str) -> None:
    """Write a whole file or none."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def run(command: list[str], *, capture: bool = False, **own: str) -> str:
    """Run it here with a clean environment; what it prints, where that is captured."""
    clean = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    out = subprocess.PIPE if capture else None
    done = subprocess.run(command, check=True, cwd=HERE, env=clean | own, stdout=out, text=True)
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
