"""A merged model in MLflow's registry by reference: where the weights are, and their sha256.

`_load_pyfunc` is what MLflow calls for `mlflow.pyfunc.load_model("models:/NAME/VERSION")`.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from siftune import files, provenance, redaction, store
from siftune.stage import UserError
from siftune.tracking import Run

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


class Score(NamedTuple):
    """What the alias `best` is decided by: scores on other test data do not compare."""

    metric: str
    value: float
    test_sha256: str


class Registered(NamedTuple):
    """A version in MLflow's registry, and whether it now carries the alias `best`."""

    version: int
    is_best: bool


def register(
    run: Run, name: str, *, reference: Path, score: Score, tags: dict[str, str]
) -> Registered:
    """Register the folder `reference` as a new version of the model `name`.

    Raises:
        UserError: MLflow does not answer; here nothing else can take its place.
    """
    if run.id is None:
        raise UserError(
            f"MLflow does not answer at {redaction.text(store.address())}, and a registry cannot "
            "be mirrored later. Set MLFLOW_TRACKING_URI to a server that answers, then run "
            "`dvc repro` again."
        )
    mlflow = store.connect()
    with mlflow.start_run(run_id=run.id):
        logged = mlflow.pyfunc.log_model(
            name="merged",
            loader_module="siftune.registry",
            data_path=str(reference),
            pip_requirements=[],  # the checkout and the image are the environment
            registered_model_name=name,
        )
    version = str(logged.registered_model_version)
    client = mlflow.MlflowClient()
    best = client.get_registered_model(name).aliases.get("best")
    is_best = best is None or _beats(score, client.get_model_version(name, best).tags)
    own = {
        "siftune.metric": score.metric,
        "siftune.score": repr(score.value),
        "siftune.test_sha256": score.test_sha256,
    }
    for tag, value in {**run.tags, **tags, **own}.items():
        client.set_model_version_tag(name, version, tag, value)
    if is_best:
        client.set_registered_model_alias(name, "best", version)
    return Registered(int(version), is_best)


def _beats(score: Score, best: dict[str, str]) -> bool:
    same_test = (best.get("siftune.metric"), best.get("siftune.test_sha256")) == (
        score.metric,
        score.test_sha256,
    )
    return not same_test or score.value > float(best["siftune.score"])


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
        from siftune.throughput import onednn

        self._tokenizer = models.read_tokenizer(folder)
        self._model = onednn.used_in(models.load_model(folder))

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
