"""What a phase begins from, by name; the adapter that is given with the base. Imports no torch."""

from pathlib import Path
from typing import Any

from siftune import files, sources
from siftune.sections import PHASES, Adapter, Model
from siftune.stage import UserError
from siftune.training import left_out

MANIFEST = Path("models/base.json")
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def name(phase: str) -> str:
    """What the adapter of a phase calls its base: the source, and all that was trained on it."""
    described = files.read_json(MANIFEST)
    given = [described["adapter"]["source"]] if described.get("adapter") else []
    earlier = list(PHASES)[: list(PHASES).index(phase)]
    trained = [one for one in earlier if left_out.holds_weights(left_out.published(one))]
    return " + ".join([described["source"], *given, *trained])


def check(model: Model) -> None:
    """Refuse an adapter on this disk that `fetch` would refuse later; nothing is fetched.

    Raises:
        UserError: as for `fetch`.
    """
    if model.adapter and sources.is_path(model.adapter.source):
        _require_sound(model.adapter, model.source, _files(model.adapter))


def fetch(model: Model) -> Path | None:
    """The folder of the adapter that is given, fetched if remote; None: none is.

    Raises:
        UserError: it is no LoRA in safetensors, or for another base. As for `sources.model_files`.
    """
    adapter = model.adapter
    if not adapter:
        return None
    _require_sound(adapter, model.source, _files(adapter, weights=False))
    folder = _files(adapter)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"params.yaml: model.adapter: {adapter.source} has no {WEIGHTS}. Pickled weights run "
            "code when they are loaded: have them saved as safetensors."
        )
    return folder


def describe(adapter: Adapter, folder: Path) -> dict[str, Any]:
    """For the manifest: source, revision, and size in bytes and sha256 of each file."""
    paths = (folder / SETTINGS, folder / WEIGHTS)
    return {
        "source": adapter.source,
        "revision": adapter.revision,
        "files": {
            one.name: {"size": one.stat().st_size, "sha256": files.sha256(one)} for one in paths
        },
    }


def given() -> Path | None:
    """The folder of the adapter that models/base.json describes; None: it describes none.

    Raises:
        UserError: it is not on this disk, or not the one that was fetched.
    """
    described = files.read_json(MANIFEST).get("adapter")
    if not described:
        return None
    where = (described["source"], described["revision"])
    folder = sources.model_files(*where, kind="adapter", offline=True)
    for file, facts in described["files"].items():
        path = folder / file
        if not path.is_file() or files.sha256(path) != facts["sha256"]:
            raise UserError(
                f"{path} is not the file that {MANIFEST} describes. Run `dvc repro --force fetch`."
            )
    return folder


def _files(adapter: Adapter, *, weights: bool = True) -> Path:
    return sources.model_files(adapter.source, adapter.revision, kind="adapter", weights=weights)


def _require_sound(adapter: Adapter, base: str, folder: Path) -> None:
    try:
        settings = files.read_json(folder / SETTINGS)
        kind, theirs = settings["peft_type"], settings["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"params.yaml: model.adapter: {adapter.source} has no {SETTINGS} that names its "
            "peft_type and its base: it is no adapter as PEFT saves them."
        ) from None
    if kind != "LORA":
        raise UserError(
            f"params.yaml: model.adapter: {adapter.source} is {kind}. What can be gone on from is "
            "LoRA. Merge it into its base, and give the merged model as model.source."
        )
    if theirs != (adapter.trained_on or base):
        key = "model.adapter.trained_on" if adapter.trained_on else "model.source"
        raise UserError(
            f"params.yaml: model.adapter: {adapter.source} was trained on {theirs}, and {key} is "
            f"{adapter.trained_on or base}. On other weights it says nonsense. Take its own base; "
            "where that is model.source under another name, say so: model.adapter.trained_on: "
            f"{theirs}"
        )
