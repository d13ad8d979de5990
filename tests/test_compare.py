"""The stage compare: from answers to metrics/compare.json."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from siftune import files

ROOT = Path(__file__).parent.parent
METRICS = ("exact_match/strict-match", "edits")


@pytest.fixture
def answers(tmp_path: Path, default_params: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder after benchmark: 40 items, of which tuned has 12 more right."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(default_params, tmp_path)
    folder = Path("data/answers")
    for name, num_right, edits in (("base", 10, 3.0), ("tuned", 22, 2.0)):
        rows = [
            {
                "task": "sums",
                "id": str(number),
                # Fewer edits are better; here they differ from item to item.
                "scores": dict(
                    zip(METRICS, (float(number < num_right), edits + number % 3), strict=True)
                ),
            }
            for number in range(40)
        ]
        files.write_jsonl(folder / f"{name}.jsonl", rows if name == "base" else reversed(rows))
    files.write_json(
        folder / "directions.json", {f"sums/{METRICS[0]}": True, f"sums/{METRICS[1]}": False}
    )
    return folder


def compare() -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-P", ROOT / "eval/compare.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )


def test_answers_become_verdicts(answers):
    done = compare()
    assert done.returncode == 0, done.stderr
    found = json.loads(Path("metrics/compare.json").read_text())
    assert set(found) == {f"sums/{METRICS[0]}", f"sums/{METRICS[1]}", "cost"}
    shares, edits = found[f"sums/{METRICS[0]}"], found[f"sums/{METRICS[1]}"]
    assert (shares["base"], shares["tuned"], shares["n"]) == (0.25, 0.55, 40)
    assert shares["p"] == pytest.approx(2 * 0.5**12)
    assert (shares["test"], edits["test"]) == ("mcnemar_exact", "paired_bootstrap_t")
    assert edits["difference"] == pytest.approx(-1.0)
    assert shares["verdict"] == edits["verdict"] == "better"
    assert f"sums/{METRICS[0]}: better: +30.0 points" in done.stdout


def test_another_set_of_items_is_refused(answers):
    rows = list(files.read_jsonl(answers / "tuned.jsonl"))
    files.write_jsonl(answers / "tuned.jsonl", rows[1:])
    done = compare()
    assert done.returncode == 78
    assert "1 have no score of the tuned model: 39." in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("metrics/compare.json").exists()
