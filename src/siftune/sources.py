"""Where models and data come from, by scheme. Weights that are on disk stay where they are."""

import importlib.metadata
import importlib.util
from pathlib import Path

from siftune import files, word_problems
from siftune.sections import Data, Source
from siftune.stage import UserError

# Only files that are parsed: a pickle, or Python in a model's folder, would be run.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
DATA_FILES = [
    f"*.{kind}{packed}"
    for kind in ("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow", "txt", "md")
    for packed in ("", ".gz", ".zst")
]


def model_files(source: str, revision: str | None, *, offline: bool = False) -> Path:
    """The folder in Hugging Face layout, or the GGUF file, that `source` names; fetched if remote.

    `source` is a hub id (`org/name`), `modelscope:org/name`, `package:module/file.gguf`, or a path
    that begins with `.`, `/` or `~`. With `offline` only what was fetched before is found.

    Raises:
        UserError: it is not there, cannot be reached, or is not pinned.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "package":
        return _package_file(rest, revision)
    if scheme == "modelscope":
        return _modelscope(rest, revision, kind="model", offline=offline)
    if source.startswith((".", "/", "~")):
        path = Path(source).expanduser()
        if not path.exists():
            raise UserError(f"params.yaml: model.source: {source} does not exist.")
        return path
    return _hub(source, revision, kind="model", offline=offline)


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
        return _hub(rest, source.revision, kind="dataset", offline=offline)
    if scheme == "modelscope":
        return _modelscope(rest, source.revision, kind="dataset", offline=offline)
    if source.source == "local" or scheme == "generate":
        return None
    raise UserError(_unknown_scheme(source.source))


def check(*, model_source: str, model_revision: str | None, data: Data) -> None:
    """Refuse, without the network, what `model_files` and `fetch_data` would refuse later."""
    scheme = model_source.partition(":")[0]
    if scheme == "package" or model_source.startswith((".", "/", "~")):
        model_files(model_source, model_revision)
    elif model_revision is None:
        raise UserError(_unpinned("model", model_source))
    for source in data.sources:
        _check_data(source, data.path)
    if len({source.source == "local" for source in data.sources}) > 1:
        raise UserError(
            "params.yaml: data.sources: local files and fetched data sets do not mix: data.path is "
            "the one place that is read. Fetch first (`dvc repro fetch` keeps data/raw), then name "
            "a folder of your own that holds both, with one local source for each."
        )


def _check_data(source: Source, path: str) -> None:
    if source.source.startswith(("hub:", "modelscope:")) and source.revision is None:
        raise UserError(_unpinned("data.sources", source.source))
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


def _hub(name: str, revision: str | None, *, kind: str, offline: bool = False) -> Path:
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    section = "model" if kind == "model" else "data.sources"
    if revision is None:
        raise UserError(_unpinned(section, name))
    try:
        return Path(
            snapshot_download(
                name,
                repo_type=kind,
                revision=revision,
                allow_patterns=MODEL_FILES if kind == "model" else DATA_FILES,
                local_files_only=offline or HF_HUB_OFFLINE,
            )
        )
    except HFValidationError as error:
        raise UserError(
            f"params.yaml: {section}: {name!r} is no hub id; a path begins with ./ or /. {error}"
        ) from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise UserError(_unreachable(section, name, revision, error)) from None


def _modelscope(name: str, revision: str | None, *, kind: str, offline: bool = False) -> Path:
    # ModelScope has no such switch of its own.
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from modelscope import snapshot_download

    section = "model" if kind == "model" else "data.sources"
    if revision is None:
        raise UserError(_unpinned(section, name))
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                repo_type=kind,
                allow_patterns=MODEL_FILES if kind == "model" else DATA_FILES,
                local_files_only=offline or HF_HUB_OFFLINE,
            )
        )
    except (OSError, ValueError) as error:
        raise UserError(_unreachable(section, f"modelscope:{name}", revision, error)) from None


def _unpinned(section: str, name: str) -> str:
    return (
        f"params.yaml: {section}.revision: {name} needs one (a commit, or a tag that never moves), "
        "or the same params would train something else tomorrow."
    )


def _unreachable(section: str, name: str, revision: str, error: Exception) -> str:
    return (
        f"params.yaml: {section}: {name} at {revision} is neither on this disk nor "
        "reachable. Run `siftune fetch --all` here on a machine with a network (a login node), "
        f"with HF_HOME on a file system that the nodes see; HF_ENDPOINT names a mirror.\n  {error}"
    )


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
