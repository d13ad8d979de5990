"""siftune: train/prepare.py and train/encode.py as they are, in a workspace of their own."""

import os
import runpy
from pathlib import Path

import task
import yaml
from datasets import concatenate_datasets

# What the stages import when they run; start-up, as for the others.
from siftune import encoding, files, models, tokens  # noqa: F401
from siftune.chat import templates  # noqa: F401
from siftune.data import preparation  # noqa: F401
from siftune.proof import page  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    job = task.read()
    os.chdir(job.folder)
    write_workspace(job)
    prepare, encode = (
        runpy.run_path(str(ROOT / "train" / f"{name}.py"), run_name=name)["main"]
        for name in ("prepare", "encode")
    )
    # The others log nowhere. What is mirrored to MLflow is no part of the work.
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    began = task.now()
    prepare()
    encode()
    encoded = [tokens.read(split, tokens.folder_of("sft")) for split in tokens.SPLITS]
    task.answer(job, began, concatenate_datasets(encoded))


def write_workspace(job: task.Task) -> None:
    """The committed params with this data and template; a base that is a tokenizer and no more."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"path": job.rows, "sources": [{"source": "local"}], "num_examples": None}
    # No test rows: they would not be encoded.
    params["prepare"] |= {"validation": 0.01, "test": 0.0}
    params["encode"] |= {"template": "chatml", "max_length": job.max_length}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    files.write_json(models.MANIFEST, {"source": job.tokenizer, "revision": None, "files": {}})


if __name__ == "__main__":
    main()
