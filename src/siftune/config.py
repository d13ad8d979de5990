"""params.yaml, checked against its sections; a key too many or too few is an error."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from siftune.sections import PHASES, SECTIONS, Training
from siftune.stage import UserError

PARAMS_FILE = Path("params.yaml")


class _OneOfEach(yaml.SafeLoader):
    """As it is, but of two keys alike it does not take the last and hide the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(*names: str) -> Any:
    """Read the named sections of params.yaml; `load("model").model` is a `Model`.

    A phase that is left out is None.

    Raises:
        UserError: the file or a section is missing, or a key is unknown, missing, of another type
            or impossible. All problems are told at once.
    """
    raw = _read()
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for name in names:
        if name not in raw:
            problems.append(f"{name}: this section is missing. {_valid_keys(SECTIONS[name])}")
            continue
        if raw[name] is None and name in PHASES:
            sections[name] = None
            continue
        try:
            # Through JSON, where strict types still take a mapping for a dataclass.
            sections[name] = TypeAdapter(SECTIONS[name]).validate_json(json.dumps(raw[name]))
        except ValidationError as error:
            problems += [_explain(name, detail) for detail in error.errors()]
    _refuse(problems)
    return SimpleNamespace(**sections)


def load_all() -> Any:
    """Read every section; a section that nobody reads is an error, too, as is no phase at all."""
    unknown = sorted(set(_read()) - set(SECTIONS))
    _refuse([f"{name}: unknown section. Valid ones: {', '.join(SECTIONS)}" for name in unknown])
    params = load(*SECTIONS)
    if not phases(params):
        _refuse(
            [f"{', '.join(PHASES)}: all are null, so nothing would be trained. Set one of them."]
        )
    return params


def phases(params: Any) -> list[Training]:
    """The sections of the phases that are set, in the order in which they are trained."""
    return [getattr(params, name) for name in PHASES if getattr(params, name) is not None]


def names_of_phases() -> list[str]:
    """The phases that are set, from the file as it stands."""
    raw = _read()
    return [name for name in PHASES if raw.get(name) is not None]


def raw_sections(*names: str) -> dict[str, Any]:
    """The named sections as they stand in the file, for logging."""
    raw = _read()
    return {name: raw[name] for name in names}


def _read() -> dict[str, Any]:
    try:
        text = PARAMS_FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{PARAMS_FILE} is not in {Path.cwd()}. Run stages from the repository's root; "
            "`make params` writes the file anew."
        ) from None
    try:
        raw = yaml.load(text, _OneOfEach)
        # NaN and dates are YAML, but no params.
        json.dumps(raw, allow_nan=False)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{PARAMS_FILE} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{PARAMS_FILE} must be a mapping of sections: {', '.join(SECTIONS)}")
    return raw


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("\n  ".join([f"{PARAMS_FILE} is not valid; nothing was run.", *problems]))


def _explain(section: str, detail: Any) -> str:
    key = ".".join([section, *map(str, detail["loc"])])
    owner = _owner(SECTIONS[section], detail["loc"][:-1])
    if detail["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key. {_valid_keys(owner)}"
    if detail["type"] == "missing":
        return f"{key}: missing. {_valid_keys(owner)}"
    hint = ""
    if detail["type"] == "float_type" and isinstance(detail["input"], str):
        hint = " YAML reads 1e-4 as text: write 1.0e-4."
    return f"{key}: {detail['msg']}, not {detail['input']!r}.{hint}"


def _owner(section: type, path: tuple[Any, ...]) -> type:
    owner = section
    for name in path:
        for inner in [f.type for f in fields(owner) if f.name == name]:
            # Of a list (data.sources), the class of its entries.
            found = [inner, *(part for one in get_args(inner) for part in (one, *get_args(one)))]
            owner = next((c for c in found if isinstance(c, type) and is_dataclass(c)), owner)
    return owner


def _valid_keys(section: type) -> str:
    return f"Valid keys: {', '.join(f.name for f in fields(section))}"
