"""A bundle: what goes in, what never does, and that verify sees whatever happens to it."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from siftune import config, fetching, files
from siftune.bundle import SUMS, contents, pack, verify
from siftune.stage import UserError

ROOT = Path(__file__).parent.parent
COMMIT = "c0ffee" + "0" * 34


def write(path: Path | str, content: bytes = b"x") -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch, default_params) -> Path:
    """A repository with an image, and with model, data and a benchmark in the caches."""
    folder = tmp_path / "a clone"
    home = tmp_path / "hf"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("HF_DATASETS_CACHE", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    params = yaml.safe_load(default_params.read_text())
    params["model"] |= {"source": "org/model", "revision": COMMIT}
    params["data"] |= {"sources": [{"source": "local"}], "path": "mine/rows.jsonl"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    write("src/code.py")
    write(".gitignore", b"/work/\n/.cache/\n*.sif\n/mine/\nmlflow.db\n")
    for command in (["init"], ["add", "."], ["commit", "-m", "all"]):
        git(*command)
    # What must come along.
    write("mine/rows.jsonl", b'{"question": "1+1?"}\n')
    blob = write(home / "hub/models--org--model/blobs/abc", b"weights")
    snapshot = home / "hub/models--org--model/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    write(home / f"hub/models--org--model/trees/{COMMIT}.json", b"{}")
    arrow = write(home / "datasets/org___questions/default/0.0.0/f00/test.arrow", b"rows")
    image = write("containers/siftune-cpu.sif", b"an image" * 1000)
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
    lock = {"cpu": {"image": image.name, "sha256": sha256}}
    write("containers/image.lock", json.dumps(lock).encode())
    # And what must not.
    for name in ("hf/token", "hf/stored_tokens", "a clone/mlflow.db", "a clone/.dvc/config.local"):
        write(tmp_path / name, b"hf_s3cret")
    write(arrow.with_suffix(".lock"))
    write(home / "hub/models--org--other/snapshots/1/model.safetensors", b"another's")
    record([
        fetching.Piece("base model", "org/model", [str(snapshot)]),
        fetching.Piece("data", "local", []),
        fetching.Piece("evaluation data", "questions", [str(arrow.parent)]),
    ])  # fmt: skip
    return folder


def record(pieces: list[fetching.Piece]) -> None:
    params = config.load("model", "data", "benchmark")
    found = {"of": fetching._identity(params), "pieces": [asdict(one) for one in pieces]}
    files.write_json(fetching.RECORD, found)


def names(bundle: Path) -> list[str]:
    with tarfile.open(bundle) as tar:
        return [member.name.partition("/")[2] for member in tar]


@pytest.fixture
def bundle(checkout, tmp_path) -> Path:
    path = tmp_path / "all.tar"
    pack.main(path, None)
    return path


HF = ".cache/huggingface"
MODEL = f"{HF}/hub/models--org--model"


# Packing


def test_all_that_is_needed_is_in_it_and_nothing_else(bundle):
    assert names(bundle) == [
        SUMS,
        "bundle.json",
        "repository.bundle",
        f"{HF}/datasets/org___questions/default/0.0.0/f00/test.arrow",
        f"{MODEL}/snapshots/{COMMIT}/model.safetensors",
        f"{MODEL}/trees/{COMMIT}.json",
        "containers/image.lock",
        "containers/siftune-cpu.sif",
        "mine/rows.jsonl",
    ]
    assert b"s3cret" not in bundle.read_bytes()
    verify.main(bundle)


def unpacked(bundle: Path, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(["tar", "-xf", bundle, "-C", folder], check=True)
    (top,) = folder.iterdir()
    return top


def test_other_programs_can_read_it_and_git_makes_it_the_checkout(bundle, tmp_path, monkeypatch):
    commit = git("rev-parse", "HEAD")
    top = unpacked(bundle, tmp_path / "there")
    assert top.name == f"siftune-{commit[:12]}"
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=top, check=True)
    verify.main(top)
    monkeypatch.chdir(top)
    git("init")
    git("pull", "repository.bundle", "HEAD")
    assert git("rev-parse", "HEAD") == commit
    assert (Path("src/code.py").read_bytes(), Path(MODEL, "blobs").exists()) == (b"x", False)
    verify.main(top)  # the checkout's own files are not strange


def test_verify_needs_no_package(bundle, tmp_path):
    top = unpacked(bundle, tmp_path / "there")
    for path, code in ((bundle, 0), (top, 0), (tmp_path / "nowhere", 78)):
        done = subprocess.run(
            [sys.executable, "-S", "-P", "-m", "siftune", "bundle", "verify", str(path)],
            env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/nowhere"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_a_folder_gets_a_file_named_by_the_commit(checkout, tmp_path, capsys):
    pack.main(tmp_path, None)
    commit = git("rev-parse", "HEAD")
    assert (tmp_path / f"siftune-{commit[:12]}.tar").is_file()
    assert ".tar: 30.0 KiB, 8 files\n" in capsys.readouterr().out


def test_wheels_come_along(checkout, tmp_path):
    wheels = tmp_path / "wheels"
    with pytest.raises(UserError, match=r"build\.py wheels"):
        pack.main(tmp_path / "all.tar", wheels)
    write(wheels / "one-1-py3-none-any.whl")
    write(wheels / "llama.tar.gz")
    write(wheels / "notes.txt")
    pack.main(tmp_path / "all.tar", wheels)
    assert [name for name in names(tmp_path / "all.tar") if "wheels" in name] == [
        ".cache/wheels/llama.tar.gz", ".cache/wheels/one-1-py3-none-any.whl",
    ]  # fmt: skip


def test_an_image_lock_that_git_tracks_comes_with_the_commit(checkout, tmp_path):
    git("add", "containers/image.lock")
    git("commit", "-m", "image")
    pack.main(tmp_path / "all.tar", None)
    assert "containers/image.lock" not in names(tmp_path / "all.tar")
    assert "containers/siftune-cpu.sif" in names(tmp_path / "all.tar")


def uncommitted() -> None:
    Path("src/code.py").write_bytes(b"y")


def no_record() -> None:
    fetching.RECORD.unlink()


def a_piece_with_a_problem() -> None:
    record([fetching.Piece("base model", "org/model", [], "unreachable")])


def a_piece_that_is_gone() -> None:
    record([fetching.Piece("base model", "org/model", ["/nowhere/model"])])


def a_model_outside() -> None:
    record([fetching.Piece("base model", "/opt/model", [str(Path.cwd().parent)])])


def a_changed_image() -> None:
    Path("containers/siftune-cpu.sif").write_bytes(b"an imagf")


def a_secret_in_a_model() -> None:
    write("work/model/model.safetensors")
    write("work/model/mlflow.db.json")
    folder = Path("work/model").absolute()
    record([fetching.Piece("base model", "./work/model", [str(folder)])])


def an_odd_name() -> None:
    write("work/model/a\\b.json")
    record([fetching.Piece("base model", "x", [str(Path("work/model").absolute())])])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (uncommitted, r"1 changes are not in one, such as src/code\.py"),
        (no_record, "run `siftune fetch --all`"),
        (a_piece_with_a_problem, "run `siftune fetch --all`"),
        (a_piece_that_is_gone, "/nowhere/model is gone"),
        (a_model_outside, r"model\.source: .* is outside of"),
        (a_changed_image, "is not the image of containers/image.lock"),
        (a_secret_in_a_model, "looks like a secret"),
        (an_odd_name, "rename it"),
    ],
)
def test_what_cannot_be_packed_is_refused_and_nothing_is_written(
    checkout, tmp_path, spoil, message
):
    spoil()
    with pytest.raises(UserError, match=message):
        pack.main(tmp_path / "all.tar", None)
    assert not list(tmp_path.glob("*.tar*")) + list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "name",
    ["mlflow.db", "a/mlflow.db-wal", ".dvc/config.local", "hf/token", "stored_tokens", "a/.netrc",
     ".env", ".git-credentials", "k/id_ed25519", "server.pem"],
)  # fmt: skip
def test_names_of_secrets_are_known(name):
    with pytest.raises(UserError, match="looks like a secret"):
        contents._refuse_secrets_and_odd_names(contents.Entry(name, Path(name)))


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "tokens.jsonl"])
def test_a_tokenizer_is_no_secret(name):
    contents._refuse_secrets_and_odd_names(contents.Entry(name, Path(name)))


def test_a_model_of_ones_own_keeps_its_place_and_may_be_a_link(checkout, tmp_path):
    write(tmp_path / "models/mine/model.safetensors")
    write(tmp_path / "models/mine/pickle.bin")
    write(tmp_path / "models/mine/.hidden.json")
    Path("work/model").symlink_to(tmp_path / "models/mine")
    folder = Path("work/model").absolute()
    record([fetching.Piece("base model", "./work/model", [str(folder)])])
    pack.main(tmp_path / "all.tar", None)
    assert [name for name in names(tmp_path / "all.tar") if name.startswith("work")] == [
        "work/model/model.safetensors"
    ]


def test_a_shallow_clone_is_refused(checkout, tmp_path, monkeypatch):
    write("src/code.py", b"y")
    git("commit", "-am", "second")
    git("clone", "--depth=1", f"file://{checkout}", str(tmp_path / "shallow"))
    shutil.copytree("work", tmp_path / "shallow/work")
    monkeypatch.chdir(tmp_path / "shallow")
    with pytest.raises(UserError, match="--unshallow"):
        pack.main(tmp_path / "all.tar", None)


def test_no_room_is_said_before_anything_is_written(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pack.shutil, "disk_usage", lambda path: pack.shutil._ntuple_diskusage(9, 8, 1)
    )
    with pytest.raises(UserError, match="make room"):
        pack.main(tmp_path / "all.tar", None)
    with pytest.raises(UserError, match="is not there"):
        pack.main(tmp_path / "no" / "all.tar", None)


def test_a_bundle_that_is_broken_off_is_absent_and_the_next_one_is_whole(checkout, tmp_path):
    code = (
        "import os, signal\n"
        "from siftune.bundle import pack\n"
        "blocks = pack._blocks\n"
        "def dying(*arguments):\n"
        "    yield from list(blocks(*arguments))[:5]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pack._blocks = dying\n"
        f"pack.main(pack.Path({str(tmp_path / 'all.tar')!r}), None)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment)
    assert done.returncode == -9
    assert not (tmp_path / "all.tar").exists()
    assert list(tmp_path.glob(".all.tar.*"))
    pack.main(tmp_path / "all.tar", None)
    verify.main(tmp_path / "all.tar")
    assert not list(tmp_path.glob(".all.tar.*"))


def test_a_file_that_changes_while_it_is_packed_is_told(checkout, tmp_path, monkeypatch):
    header = pack._header

    def growing(name, *arguments, **options):
        if name.endswith("rows.jsonl"):
            write("mine/rows.jsonl", b"longer than it was when its size was asked for\n")
        return header(name, *arguments, **options)

    monkeypatch.setattr(pack, "_header", growing)
    with pytest.raises(UserError, match="changed while it was packed"):
        pack.main(tmp_path / "all.tar", None)
    assert not (tmp_path / "all.tar").exists()


# Verifying


def refused(path: Path) -> str:
    with pytest.raises(UserError, match="is not what was bundled") as told:
        verify.main(path)
    return str(told.value)


def test_a_bundle_that_is_cut_anywhere_is_seen(bundle):
    content = bundle.read_bytes()
    for length in [0, 1, 511, 512, 513, *range(1024, len(content), 1511), len(content) - 512]:
        bundle.write_bytes(content[:length])
        refused(bundle)
    for more in (b"\0" * 512, b"x" * 10240, b"\0" * 10240):
        bundle.write_bytes(content + more)
        refused(bundle)


def test_one_flipped_bit_in_any_file_or_name_is_seen(bundle):
    content = bytearray(bundle.read_bytes())
    with tarfile.open(bundle) as tar:
        members = tar.getmembers()
    places = [member.offset for member in members]  # names
    places += [member.offset_data for member in members if member.size]
    places += [member.offset_data + member.size - 1 for member in members if member.size]
    assert len(places) == 27
    for place in places:
        content[place] ^= 1
        bundle.write_bytes(content)
        refused(bundle)
        content[place] ^= 1
    bundle.write_bytes(content)
    verify.main(bundle)


def again(bundle: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> str:
    """What is said of the bundle after its members were changed."""
    with tarfile.open(bundle) as tar:
        members = [(one, tar.extractfile(one).read()) for one in tar]
    change(members)
    with tarfile.open(bundle, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return refused(bundle)


def plain(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def test_missing_added_and_doubled_files_are_seen(bundle):
    whole = bundle.read_bytes()
    assert "mine/rows.jsonl is missing" in again(bundle, lambda all_: all_.pop())
    bundle.write_bytes(whole)
    top = f"siftune-{git('rev-parse', 'HEAD')[:12]}"
    for name in (f"{top}/src/evil.py", "elsewhere/x", f"{top}/../x", "/etc/x", f"{top}/{SUMS}"):
        bundle.write_bytes(whole)
        assert "was added" in again(bundle, lambda all_, name=name: all_.append(plain(name)))
    bundle.write_bytes(whole)
    assert "was added" in again(bundle, lambda all_: all_.append(all_[-1]))
    bundle.write_bytes(whole)
    assert "does not begin with" in again(bundle, lambda all_: all_.pop(0))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_what_is_no_plain_file_is_refused(bundle, kind):
    def change(members):
        member = members[-1][0]
        member.type, member.linkname, member.size = kind, "/etc/passwd", 0

    assert "no plain file" in again(bundle, change)


@pytest.mark.parametrize(
    "line",
    [
        f"{'0' * 64}  ../../.ssh/authorized_keys",
        f"{'0' * 64}  /etc/passwd",
        f"{'0' * 64}  a/./b",
        f"{'0' * 64}  a//b",
        f"{'0' * 64}  .",
        f"{'0' * 63}  short",
        "no sum at all",
    ],
)
def test_a_list_that_leads_elsewhere_is_refused_packed_and_unpacked(bundle, tmp_path, line):
    top = unpacked(bundle, tmp_path / "there")
    listed = (top / SUMS).read_bytes() + f"{line}\n".encode()

    def change(members):
        members[0][0].size = len(listed)
        members[0] = (members[0][0], listed)

    assert repr(line) in again(bundle, change)
    (top / SUMS).write_bytes(listed)
    assert repr(line) in refused(top)


def test_a_top_folder_that_leads_elsewhere_is_refused(bundle):
    def change(members):
        for member, _ in members:
            member.name = "../" + member.name.partition("/")[2]
            member.pax_headers = {}

    assert "'..' is no name of a folder" in again(bundle, change)


def test_an_unpacked_folder_is_compared_too(bundle, tmp_path):
    top = unpacked(bundle, tmp_path / "there")
    rows = top / "mine/rows.jsonl"
    content = rows.read_bytes()
    rows.write_bytes(content[:-1])
    assert "mine/rows.jsonl has changed" in refused(top)
    rows.unlink()
    assert "mine/rows.jsonl is missing" in refused(top)
    write(tmp_path / "outside/rows.jsonl", content)
    rows.symlink_to(tmp_path / "outside/rows.jsonl")
    assert "no plain file" in refused(top)
    rows.unlink()
    rows.parent.rmdir()
    rows.parent.symlink_to(tmp_path / "outside")
    assert "mine/rows.jsonl is missing, or no plain file" in refused(top)
    rows.parent.unlink()
    write(rows, content)
    verify.main(top)
    write(top / "src/evil.py")
    assert "'src/evil.py' was added" in refused(top)
    (top / "src/evil.py").unlink()
    (top / "link").symlink_to("/etc")
    assert "'link' was added" in refused(top)
    (top / SUMS).unlink()
    assert "has no SHA256SUMS" in refused(top)


def test_what_is_no_bundle_is_said_to_be_none(tmp_path):
    for content in (b"", b"PK\x03\x04", os.urandom(20_000), b"\0" * 10_240):
        refused(write(tmp_path / "x.tar", content))
