"""What decides the result of a training: its code, image, params and inputs, by content."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from siftune import config, files, provenance

PIPELINE = Path("dvc.yaml")
WORK = Path("work")
MADE_OF = "fingerprint.json"  # in the folder of a training
# What changes when a checkpoint is written, but not what is in it.
NO_RESULT = {"save_every"}


@dataclass(frozen=True)
class Fingerprint:
    """The parts, as JSON; `digest` names the folder below work/."""

    parts: dict[str, Any]

    @property
    def digest(self) -> str:
        """16 hex digits."""
        return provenance.digest(self.parts)[:16]

    @property
    def folder(self) -> Path:
        """Where this training keeps what it needs to go on."""
        return WORK / self.digest


def of_stage(name: str) -> Fingerprint:
    """From the stage's own entry in dvc.yaml: what DVC runs it again for, this is made of.

    Raises:
        UserError: an input is not there.
    """
    stage = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"][name]
    code: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for dependency in map(Path, stage["deps"]):
        part = code if dependency.parts[0] in provenance.CODE else inputs
        part |= _contents(dependency)
    params = {
        section: {key: value for key, value in values.items() if key not in NO_RESULT}
        for section, values in config.raw_sections(*stage["params"]).items()
    }
    image = os.environ.get("SIFTUNE_IMAGE_SHA256")
    return Fingerprint(
        {
            "code": code,
            "image": {"sha256": image} if image else provenance.stack(),
            "params": params,
            "inputs": inputs,
        }
    )


def differences(
    theirs: dict[str, Any], ours: dict[str, Any], there: str = "there", here: str = "here"
) -> list[str]:
    """One line a difference, with both values: `params.sft.learning_rate: 0.1 there, 0.2 here`."""
    left, right = _flat(theirs), _flat(ours)
    return [
        f"{key}: {_short(left.get(key))} {there}, {_short(right.get(key))} {here}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _contents(path: Path) -> dict[str, str]:
    if path.is_dir():
        described = files.describe_folder(path)
        return {
            f"{path.as_posix()}/{name}": file["sha256"]
            for name, file in described.items()
            if "__pycache__" not in name
        }
    return {path.as_posix(): files.sha256(files.existing(path))}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _short(value: Any) -> str:
    # Of a sha256 the beginning tells two apart.
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) == 64 else text
