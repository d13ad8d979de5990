"""A merged model in MLflow's registry by reference: where the weights are, and their sha256.

`_load_pyfunc` is what MLflow calls for `mlflow.pyfunc.load_model("models:/NAME/VERSION")`.
"""

import shutil
from pathlib import Path
from typing import Any

import yaml

from siftune import files, provenance
from siftune.stage import UserError

REFERENCE = "reference.json"
RESTORED = Path(
    "work/registered"
)  # models that the workspace has moved on from, out of DVC's cache
MAX_NEW_TOKENS = 256


def reference(folder: Path) -> dict[str, Any]:
    """What the registry keeps instead of the weights: folder, digests, DVC's name of the folder."""
    described = files.describe_folder(folder)
    return {
        "folder": str(folder.resolve()),
        "repository": str(Path.cwd()),
        "sha256": provenance.digest(described),
        "files": described,
        "dvc_md5": _dvc_md5(folder),
    }


def locate(reference: dict[str, Any]) -> Path:
    """A folder with exactly the registered files: the workspace's, else one from DVC's cache.

    Raises:
        UserError: neither has them.
    """
    folder = Path(reference["folder"])
    if _holds(folder, reference):
        return folder
    restored = Path(reference["repository"]) / RESTORED / reference["sha256"][:16]
    if not _holds(restored, reference):
        _restore(reference, restored)
    return restored


class Answerer:
    """A chat model behind MLflow's pyfunc: question in, greedy answer out."""

    def __init__(self, folder: Path) -> None:
        from siftune import models

        self._tokenizer = models.read_tokenizer(folder)
        self._model = models.load_model(folder)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """One answer for each question, a list of texts or a table whose first column is text."""
        table = hasattr(model_input, "iloc")
        questions = model_input.iloc[:, 0].tolist() if table else list(model_input)
        return [self._answer(question) for question in questions]

    def _answer(self, question: str) -> str:
        from siftune.chat import conversation

        text = conversation.prompt_text(self._tokenizer, [{"role": "user", "content": question}])
        ids = self._tokenizer(text, add_special_tokens=False, return_tensors="pt").to(
            self._model.device
        )
        answer = self._model.generate(**ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        return self._tokenizer.decode(
            answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
        )


def _load_pyfunc(data_path: str) -> Answerer:
    return Answerer(locate(files.read_json(Path(data_path) / REFERENCE)))


def _holds(folder: Path, reference: dict[str, Any]) -> bool:
    return folder.is_dir() and files.describe_folder(folder) == reference["files"]


def _dvc_md5(folder: Path) -> str | None:
    """DVC's name for the content of an output, once its stage was run by DVC."""
    lock = Path("dvc.lock")
    if not lock.exists():
        return None
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return next((out["md5"] for out in outs if out["path"] == folder.as_posix()), None)


def _restore(reference: dict[str, Any], folder: Path) -> None:
    lost = UserError(
        f"{reference['folder']} has changed since this version was registered, and DVC's cache in "
        f"{reference['repository']} does not hold it ({reference['dvc_md5']}). Check out the "
        "commit of the version (tag siftune.git_commit) and run `dvc pull` or `dvc repro` there."
    )
    if reference["dvc_md5"] is None:
        raise lost
    from dvc.repo import Repo

    with Repo(reference["repository"]) as repo:
        place = repo.cache.local.oid_to_path
        listing = Path(place(reference["dvc_md5"]))
        if not listing.exists():
            raise lost
        with files.published_folder(folder) as aside:
            for entry in files.read_json(listing):
                target = aside / entry["relpath"]
                target.parent.mkdir(parents=True, exist_ok=True)
                if not Path(place(entry["md5"])).exists():
                    raise lost
                shutil.copyfile(place(entry["md5"]), target)
    if not _holds(folder, reference):
        raise lost
