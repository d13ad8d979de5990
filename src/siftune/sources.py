"""Where models and data come from, by scheme. Weights that are on disk stay where they are."""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Literal

from siftune import files, hubs, word_problems
from siftune.sections import Data, Model, Source
from siftune.stage import UserError


def model_files(
    source: str,
    revision: str | None,
    *,
    kind: Literal["model", "adapter"] = "model",
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """The folder in Hugging Face layout, or the GGUF file, that `source` names; fetched if remote.

    `source` is a hub id (`org/name`), `modelscope:org/name`, `package:module/file.gguf`, or a path
    that begins with `.`, `/` or `~`. With `offline` only what was fetched before is found; without
    `weights`, of a remote one only the small files are fetched.

    Args:
        kind: an adapter has PEFT's two files, and another key of params.yaml.

    Raises:
        UserError: it is not there, cannot be reached, or is not pinned.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "package":
        return _package_file(rest, revision)
    if scheme == "modelscope":
        return hubs.modelscope(rest, revision, kind=kind, offline=offline, weights=weights)
    if is_path(source):
        path = Path(source).expanduser()
        if not path.exists():
            raise UserError(f"params.yaml: {hubs.SECTIONS[kind]}.source: {source} does not exist.")
        return path
    return hubs.hugging_face(source, revision, kind=kind, offline=offline, weights=weights)


def is_path(source: str) -> bool:
    """Whether `source` names a file or folder of the user."""
    return source.startswith((".", "/", "~"))


def fetch_data(data: Data, folder: Path) -> None:
    """Put the raw records of all sources into `folder`; local data stays where it is.

    Each of several fetched sources gets a folder of its own, named by its number.

    Raises:
        UserError: as for `model_files`.
    """
    for number, source in enumerate(data.sources):
        own = folder / str(number) if len(data.sources) > 1 else folder
        snapshot = data_files(source)
        if snapshot is not None:
            _copy(snapshot, own)
        elif source.source != "local":
            _generate(source.source.removeprefix("generate:"), data, own)


def data_files(source: Source, *, offline: bool = False) -> Path | None:
    """The folder of a hub's data set on this disk, fetched if need be; None: it is on no hub.

    Raises:
        UserError: as for `model_files`.
    """
    scheme, _, rest = source.source.partition(":")
    if scheme == "hub":
        return hubs.hugging_face(rest, source.revision, kind="dataset", offline=offline)
    if scheme == "modelscope":
        return hubs.modelscope(rest, source.revision, kind="dataset", offline=offline)
    if source.source == "local" or scheme == "generate":
        return None
    raise UserError(_unknown_scheme(source.source))


def check_model(model: Model) -> None:
    """Refuse what `model_files` would refuse later; nothing is fetched.

    Raises:
        UserError: as for `model_files`.
    """
    is_on_the_hub = _check_model_files(model.source, model.revision, kind="model")
    if is_on_the_hub and model.gated:
        hubs.require_access(model.source, model.revision)
    if model.adapter:
        _check_model_files(model.adapter.source, model.adapter.revision, kind="adapter")


def check_data(data: Data) -> None:
    """Refuse what `fetch_data` would refuse later; nothing is fetched.

    Raises:
        UserError: as for `model_files`.
    """
    for source in data.sources:
        _check_source(source, data.path)
    if len({source.source == "local" for source in data.sources}) > 1:
        raise UserError(
            "params.yaml: data.sources: local files and fetched data sets do not mix: data.path is "
            "the one place that is read. Fetch first (`dvc repro fetch` keeps data/raw), then name "
            "a folder of your own that holds both, with one local source for each."
        )


def _check_model_files(
    source: str, revision: str | None, *, kind: Literal["model", "adapter"]
) -> bool:
    """Whether it is on Hugging Face's hub."""
    scheme, _, rest = source.partition(":")
    if scheme == "package" or is_path(source):
        model_files(source, revision, kind=kind)
    elif scheme == "modelscope":
        hubs.require_revision(rest, revision, kind=kind)
    else:
        hubs.require_commit(source, revision, kind=kind)
        return True
    return False


def _check_source(source: Source, path: str) -> None:
    scheme, _, rest = source.source.partition(":")
    if scheme == "hub":
        hubs.require_commit(rest, source.revision, kind="dataset")
    if scheme == "modelscope":
        hubs.require_revision(rest, source.revision, kind="dataset")
    if source.source == "local" and not Path(path).exists():
        raise UserError(f"params.yaml: data.path: {path} does not exist.")
    if source.source != "local" and path != "data/raw":
        raise UserError(
            f"params.yaml: data.path is {path}, but {source.source} is fetched into data/raw. "
            "Set data.path: data/raw, or data.sources: [{source: local}] for files of your own."
        )


def _unknown_scheme(source: str) -> str:
    return (
        f"params.yaml: data.sources: {source!r} is none of generate:word-problems, hub:ORG/NAME, "
        "modelscope:ORG/NAME, local (a file or folder of yours: data.path)."
    )


def _package_file(name: str, revision: str | None) -> Path:
    module, _, file = name.partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"params.yaml: model.source: there is no installed package {module!r}.")
    installed = importlib.metadata.version(module)
    if revision != installed:
        raise UserError(
            f"params.yaml: model.revision: {module} {installed} is installed, "
            f"{revision} is asked for."
        )
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise UserError(f"params.yaml: model.source: the package {module!r} has no file {file!r}.")
    return path


def _copy(snapshot: Path, folder: Path) -> None:
    for path in sorted(snapshot.rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(snapshot)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def _generate(name: str, data: Data, folder: Path) -> None:
    if name != "word-problems":
        raise UserError(
            f"params.yaml: data.sources: there is no generator {name!r}. Valid: word-problems"
        )
    if data.num_examples is None:
        raise UserError("params.yaml: data.num_examples: say how many problems to generate.")
    try:
        problems = list(word_problems.make(num_problems=data.num_examples, seed=data.seed))
    except ValueError as error:
        raise UserError(f"params.yaml: data.num_examples: {error}") from None
    files.write_jsonl(folder / "word-problems.jsonl", map(vars, problems))
