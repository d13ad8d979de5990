import subprocess
import sys
from pathlib import Path

from siftune import results, summary


def run_summary(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-m", "siftune", "summary"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_table_is_aligned_ascii(finished_run: Path) -> None:
    lines = summary.table(results.comparisons(results.read()))
    assert [" ".join(line.split()) for line in lines[:2]] == [
        "metric items base stderr tuned stderr difference 95% interval p verdict",
        "gsm8k_form/exact_match/strict-match 260 3.1% 1.1 58.1% 3.1 +55.0 +48.9 to +61.2 "
        "< 0.0001 better",
    ]
    assert all(line.isascii() for line in lines)
    assert len({line.index("better") for line in lines[1:]} | {lines[0].index("verdict")}) == 1
    assert max(map(len, lines)) <= 130


def test_names_the_longest_stages_and_the_places(finished_run: Path) -> None:
    (finished_run / "report").mkdir()
    (finished_run / "report/index.html").touch()
    done = run_summary(finished_run)
    assert done.returncode == 0, done.stderr
    assert "10 stages took 9 min 27 s in all; the longest: sft 5 min 43 s, benchmark" in done.stdout
    assert "The report is report/index.html." in done.stdout
    assert "`make ui` opens MLflow on 127.0.0.1." in done.stdout


def test_says_what_is_not_there_yet(finished_run: Path) -> None:
    (finished_run / "metrics/compare.json").unlink()
    done = run_summary(finished_run)
    assert done.returncode == 0, done.stderr
    assert "`dvc repro compare` does it" in done.stdout
    assert "`dvc repro report` writes the report." in done.stdout


def test_without_metrics_it_says_what_to_run(tmp_path: Path) -> None:
    done = run_summary(tmp_path)
    assert done.returncode == 78
    assert "`make demo`" in done.stderr
    assert "Traceback" not in done.stderr


def test_needs_no_heavy_library() -> None:
    code = "import sys, siftune.__main__; print({'torch', 'mlflow', 'lm_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
