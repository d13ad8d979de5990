"""What `siftune status` reads from the files that stages, trainings and DVC leave."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from siftune import files, history, lock, mirror, status
from siftune.stage import UserError

STAGES = ("prepare", "sft", "merge")
TRAINING = Path("work/0123456789abcdef")


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")  # no squeue, no dvc
    Path("dvc.yaml").write_text(
        yaml.safe_dump({"stages": {stage: {"cmd": "true"} for stage in STAGES}}, sort_keys=False)
    )
    Path("params.yaml").write_text("prepare: {seed: 1}\nsft: {seed: 2}\n")


def done(*stages: str) -> None:
    entries = {}
    for stage in stages:
        out = Path("out") / stage
        out.mkdir(parents=True)
        params = yaml.safe_load(Path("params.yaml").read_text())
        used = {stage: params[stage]} if stage in params else {}
        entries[stage] = {
            "params": {"params.yaml": used},
            "outs": [{"path": str(out)}, {"path": "out"}],
        }
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": entries}))


def row(stage: str) -> str:
    """The words of a stage's line, after its name."""
    lines = [line for line in status.report() if line.split()[:1] == [stage]]
    assert len(lines) == 1
    return " ".join(lines[0].split()[1:])


def process(**facts: object) -> dict:
    with lock.workspace("sft"):
        found = asdict(lock.holder())
    del found["heartbeat"]
    return found | facts


def run(stage: str, number: int = 1, **facts: object) -> None:
    files.write_json(Path(f"work/runs/2026010{number}T000000-{stage}-1/run.json"),
                     {"stage": stage} | facts)  # fmt: skip


def checkpoint(step: int, *, published: bool = True) -> Path:
    folder = TRAINING / "checkpoints" / f"step-{step:08d}"
    manifest = {"step": step, "max_steps": 120, "saved": "2026-01-02T03:04:05+00:00"}
    files.write_json(folder / "manifest.json", manifest)
    if published:
        (folder / "published").write_text(files.sha256(folder / "manifest.json") + "\n")
    return folder


def start(*rows: dict) -> None:
    TRAINING.mkdir(parents=True, exist_ok=True)
    for one in rows:
        files.append_line(TRAINING / "starts.jsonl", one)


def test_nothing_was_done_yet():
    assert list(status.report()) == [
        "prepare  to do",
        "sft      to do",
        "merge    to do",
        "",
        "`dvc repro` goes on with prepare.",
    ]


def test_a_stage_is_done_where_dvc_noted_it_and_its_outputs_stand():
    done("prepare", "sft")
    assert (row("prepare"), row("sft"), row("merge")) == ("done", "done", "to do")
    assert list(status.report())[-1] == "`dvc repro` goes on with merge."
    Path("params.yaml").write_text("prepare: {seed: 1}\nsft: {seed: 3}\n")
    assert row("sft") == "outdated params.yaml has changed since: sft"
    assert row("prepare") == "done"
    Path("out/prepare").rmdir()  # as DVC does before it runs a stage
    assert row("prepare") == "to do"


def test_all_done():
    done(*STAGES)
    assert list(status.report())[-1].startswith("All is done; `dvc status` says whether")


def test_a_running_stage_is_shown_with_its_place(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    done(*STAGES)
    with lock.workspace("sft"):
        assert row("sft").startswith(
            f"running on {socket.gethostname()} (Slurm job 77), process {os.getpid()}, since 20"
        )
        assert "last sign of life 0 s ago" in row("sft")
        assert not [line for line in status.report() if "dvc repro" in line]
    assert row("sft") == "done"


def test_a_dead_holder_does_not_run():
    lock.FILE.parent.mkdir()
    files.write_json(lock.FILE, process(start_time=1))
    assert row("sft") == "to do"
    files.write_json(lock.FILE, process(host="node7", boot_id="x", namespace="x"))
    assert row("sft").startswith("running? on node7, process")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"status": "stopped", "ended": 1767225600.5}, "stopped at 2026-01-01T00:00:00Z"),
        ({"status": "failed", "ended": 1767225600}, "failed at 2026-01-01T00:00:00Z"),
        ({"status": "finished", "ended": 1767225600},
         "finished at 2026-01-01T00:00:00Z; DVC did not note it, and runs it again"),
        ({"status": "running", "process": None}, "unknown its run.json is not complete"),
        ({"status": "running", "process": {"pid": "x"}}, "unknown its run.json is not complete"),
    ],
)  # fmt: skip
def test_how_the_last_run_of_a_stage_ended(facts, words):
    run("sft", 1, status="failed", ended=0)
    run("sft", 2, **facts)
    assert row("sft") == words
    done("sft")
    assert row("sft") == "done"


def test_a_killed_run_still_says_that_it_is_running():
    run("sft", status="running", process=process(start_time=1, since="2026-01-01T00:00:00Z"))
    assert row("sft") == f"killed on {socket.gethostname()}, begun 2026-01-01T00:00:00Z"
    elsewhere = process(host="node7", boot_id="x", namespace="x", job="77", since="then")
    run("sft", 2, status="running", process=elsewhere)
    assert row("sft") == "running? on node7 (Slurm job 77), begun then"


def test_a_training_tells_from_which_step_it_goes_on():
    for step in (40, 80):
        checkpoint(step)
    checkpoint(120, published=False)
    (TRAINING / "checkpoints" / ".step-00000160.1.tmp").mkdir()
    (TRAINING / "checkpoints" / "broken-step-00000100-1").mkdir()
    lines = list(status.report())
    assert f"training {TRAINING}" in lines
    assert any(
        line.startswith("  checkpoint  step 80 of 120, saved 2026-01-02T03:04:05+00:00 (")
        for line in lines
    )
    assert "  resumable   from step 80" in lines
    assert "  broken      1 set aside: broken-step-00000100-1" in lines
    (checkpoint(80) / "manifest.json").write_text('{"step": 90}')  # not what was published
    assert "  resumable   from step 40" in list(status.report())


def test_a_training_names_its_phase_and_a_phase_that_is_null_is_left_out():
    Path("params.yaml").write_text("prepare: {seed: 1}\nsft: null\ndpo: {seed: 2}\n")
    files.write_json(TRAINING / "fingerprint.json", {"params": {"dpo": {"seed": 2}}})
    assert f"training {TRAINING} (dpo)" in status.report()
    assert row("sft") == "left out"
    done("prepare", "merge")
    assert "All is done; `dvc status` says" in "\n".join(status.report())


def test_a_training_without_a_checkpoint_begins_anew():
    TRAINING.mkdir(parents=True)
    assert "  checkpoint  none yet: it begins at step 0" in list(status.report())


def test_a_finished_training_is_not_resumable():
    checkpoint(120)
    start({"started": "x", "step": 0}, {"ended": "finished", "step": 120})
    lines = list(status.report())
    assert "  finished    at step 120" in lines
    assert not [line for line in lines if "resumable" in line]


def test_starts_that_died_are_counted():
    checkpoint(40)
    died = {"started": "x", "step": 40}
    start({"started": "x", "step": 0}, {"ended": "crashed", "step": 0, "error": "ValueError: old"})
    start({"started": "x", "step": 0}, {"ended": "stopped", "step": 40}, died)
    assert "  died        1 of the last starts at step 40" in list(status.report())
    start({"ended": "crashed", "step": 40, "error": "RuntimeError: bad"}, died)
    assert "  died        2 of the last starts at step 40: RuntimeError: bad" in list(
        status.report()
    )
    with lock.workspace("sft"):  # the last one is at work
        assert "  died        1 of the last starts at step 40: RuntimeError: bad" in (
            list(status.report())
        )
    start({"ended": "stopped", "step": 60})
    assert not [line for line in status.report() if "died" in line]


def test_only_the_newest_trainings_are_shown():
    for number in range(5):
        folder = Path(f"work/{number:016x}")
        folder.mkdir(parents=True)
        os.utime(folder, (number, number))
    lines = "\n".join(status.report()).splitlines()
    shown = [line.split()[-1] for line in lines if line.startswith("training ")]
    assert shown == [f"work/{number:016x}" for number in (4, 3, 2)]
    assert "2 older trainings are in work." in lines


def test_runs_that_mlflow_lacks_are_counted():
    for number, stage in enumerate(("prepare", "sft", "merge"), start=1):
        run(stage, number, status="finished")
        folder = Path(f"work/runs/2026010{number}T000000-{stage}-1")
        os.utime(folder / "run.json", (1000, 1000))
        if stage != "merge":
            (folder / mirror.MIRRORED).touch()
    (Path("work/runs/20260102T000000-sft-1") / history.NAME).touch()  # logged since
    os.utime("work/runs/20260102T000000-sft-1/.mirrored", (2000, 2000))
    assert "MLflow lacks part of 2 of 3 runs; `siftune sync` completes them." in (
        list(status.report())
    )


ODD = ["", "{", "[1]", "null", '"text"', "\x00", '{"stages": 5}', "stages: {sft: {outs: [3]}}",
       '{"stage": ["sft"], "status": {}}', '{"stage": "sft", "status": "running", "process": [1]}',
       '{"step": null}', '{"started": []}', '{"ended": {}}', "[" * 5_000]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_files_are_no_crash(text):
    done("prepare", "sft")
    newest = checkpoint(40)
    start({"started": "x", "step": 40})
    run("sft")
    lock.FILE.touch()
    places = [lock.FILE, Path("params.yaml"), Path("dvc.lock"), TRAINING / "starts.jsonl",
              newest / "manifest.json", newest / "published",
              Path("work/runs/20260101T000000-sft-1/run.json")]  # fmt: skip
    for place in places:
        before = place.read_bytes()
        place.write_text(text)
        assert len(list(status.report())) >= len(STAGES)
        place.unlink()
        place.mkdir()
        assert len(list(status.report())) >= len(STAGES)
        place.rmdir()
        place.write_bytes(before)
    (newest / "manifest.json").write_text(text)
    (newest / "published").write_text(files.sha256(newest / "manifest.json"))
    list(status.report())
    Path("dvc.yaml").write_text(text)
    list(status.report())


def test_elsewhere_it_says_where_to_run_it():
    Path("dvc.yaml").unlink()
    with pytest.raises(UserError, match="run this in the repository's root"):
        status.main()


def test_the_command_needs_neither_mlflow_nor_torch():
    code = (
        "import sys; from siftune import __main__\n"
        "sys.argv = ['siftune', 'status']\n"
        "try: __main__.main()\n"
        "finally: print(sorted({'mlflow', 'torch', 'dvc'} & set(sys.modules)))"
    )
    command = [sys.executable, "-P", "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout.splitlines()[-1]) == []
    assert shown.stdout.startswith("prepare  to do\n")
    assert not Path("work").exists()
