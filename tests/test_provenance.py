import subprocess
from pathlib import Path

import pytest

from siftune import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "c"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def test_code_that_is_not_committed_is_dirty_and_outputs_are_not(repository):
    clean = provenance.tags({})
    assert len(clean["siftune.git_commit"]) == 40
    (repository / "metrics").mkdir()
    (repository / "metrics" / "sft.json").write_text("{}")
    (repository / "params.yaml").write_text("")
    assert provenance.tags({})["siftune.git_dirty"] == clean["siftune.git_dirty"] == "false"
    (repository / "src" / "a.py").write_text("changed")
    assert provenance.tags({})["siftune.git_dirty"] == "true"


def test_what_is_not_known_is_left_out(repository, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "siftune.slurm_job" not in provenance.tags({})
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert provenance.tags({})["siftune.slurm_job"] == "17"


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert provenance.digest({"a": 1, "b": 2}) == provenance.digest({"b": 2, "a": 1})
    assert provenance.digest({"a": 1}) != provenance.digest({"a": 2})


def test_the_cost_is_measured():
    cost = provenance.Cost()
    held = bytearray(200 * 2**20)
    measured = cost.measure()
    assert measured["peak_memory_mb"] > len(held) / 2**20
    assert measured["wall_seconds"] >= 0
