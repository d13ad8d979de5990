"""Repositories of models and data, on Hugging Face's hub and on ModelScope, each at one commit."""

import re
from pathlib import Path

from siftune.stage import UserError

HUB = "https://huggingface.co"
# Only files that are parsed: a pickle, or Python in a model's folder, would be run.
WEIGHTS = "*.safetensors"
MODEL_FILES = [WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
DATA_FILES = [
    f"*.{kind}{packed}"
    for kind in ("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow", "txt", "md")
    for packed in ("", ".gz", ".zst")
]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
# What a repository holds for us → where params.yaml names it.
SECTIONS = {"model": "model", "adapter": "model.adapter", "dataset": "data.sources"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATIENCE = 5.0  # seconds


def hugging_face(
    name: str, revision: str | None, *, kind: str, offline: bool = False, weights: bool = True
) -> Path:
    """The folder of a repository's files.

    Args:
        kind: one of SECTIONS.
        offline: only what was fetched before is found.
        weights: of a model or an adapter; else only the small files beside them.

    Raises:
        UserError: it is not pinned, cannot be reached, or is gated.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    require_commit(name, revision, kind=kind)
    assert revision is not None
    try:
        return Path(
            snapshot_download(
                name,
                repo_type=_type(kind),
                revision=revision,
                allow_patterns=_patterns(kind, weights=weights),
                local_files_only=offline or HF_HUB_OFFLINE,
            )
        )
    except HFValidationError as error:
        raise UserError(
            f"params.yaml: {SECTIONS[kind]}: {name!r} is no hub id; a path begins with ./ or /. "
            f"{error}"
        ) from None
    except GatedRepoError as error:
        raise UserError(_gated(name, kind, f"the hub says {error.response.status_code}")) from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise UserError(_unreachable(name, revision, kind, error)) from None


def modelscope(
    name: str, revision: str | None, *, kind: str, offline: bool = False, weights: bool = True
) -> Path:
    """As `hugging_face`; what pins a repository there may be a tag."""
    # ModelScope has no such switch of its own.
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from modelscope import snapshot_download

    require_revision(name, revision, kind=kind)
    assert revision is not None
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                repo_type=_type(kind),
                allow_patterns=_patterns(kind, weights=weights),
                local_files_only=offline or HF_HUB_OFFLINE,
            )
        )
    except (OSError, ValueError) as error:
        raise UserError(_unreachable(f"modelscope:{name}", revision, kind, error)) from None


def require_commit(name: str, revision: str | None, *, kind: str) -> None:
    """Refuse a branch, a tag, or nothing at all; name the commit of today where a hub answers."""
    if revision is None or not _COMMIT.fullmatch(revision):
        today = _todays_commit(name, revision, kind)
        found = f" Today's is {today}: write it into the preset." if today else ""
        raise UserError(_unpinned(f"{name} at {revision}" if revision else name, kind) + found)


def require_revision(name: str, revision: str | None, *, kind: str) -> None:
    """Refuse a repository of ModelScope without a commit or a tag."""
    if revision is None:
        raise UserError(_unpinned(f"modelscope:{name}", kind))


def require_access(name: str, revision: str | None) -> None:
    """Refuse a gated model that is not on this disk, where there is no token to fetch it with."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE or get_token():
        return
    try:
        hugging_face(name, revision, kind="model", offline=True)
    except UserError:
        raise UserError(_gated(name, "model", "there is no token here")) from None


def _todays_commit(name: str, revision: str | None, kind: str) -> str | None:
    from httpx import HTTPError
    from huggingface_hub import HfApi

    try:
        found = HfApi().repo_info(name, repo_type=_type(kind), revision=revision, timeout=_PATIENCE)
    except (HTTPError, OSError, ValueError):
        return None
    return found.sha


def _patterns(kind: str, *, weights: bool) -> list[str]:
    if kind == "dataset":
        return DATA_FILES
    patterns = MODEL_FILES if kind == "model" else ADAPTER_FILES
    return [one for one in patterns if weights or not one.endswith(WEIGHTS.removeprefix("*"))]


def _type(kind: str) -> str:
    return "dataset" if kind == "dataset" else "model"


def _unpinned(what: str, kind: str) -> str:
    return (
        f"params.yaml: {SECTIONS[kind]}.revision: {what} needs a commit, or the same params would "
        "train something else tomorrow."
    )


def _gated(name: str, kind: str, why: str) -> str:
    page = f"{HUB}/{'datasets/' if kind == 'dataset' else ''}{name}"
    return (
        f"params.yaml: {SECTIONS[kind]}: {name} is gated, and {why}. Accept its licence at {page}, "
        "make a token that may read it (your settings there, Access Tokens), and run `siftune "
        "fetch --all` with HF_TOKEN set to it. Where it has been fetched, no token is needed."
    )


def _unreachable(name: str, revision: str, kind: str, error: Exception) -> str:
    return (
        f"params.yaml: {SECTIONS[kind]}: {name} at {revision} is neither on this disk nor "
        "reachable. Run `siftune fetch --all` here on a machine with a network (a login node), "
        f"with HF_HOME on a file system that the nodes see; HF_ENDPOINT names a mirror.\n  {error}"
    )
