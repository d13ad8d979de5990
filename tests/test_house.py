"""The rules of the house: who imports what, who reads which params, what has which name."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from siftune import config, presets

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "siftune"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
SCRIPTS = sorted(
    path for folder in ("train", "eval", "export") for path in (ROOT / folder).glob("*.py")
)
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# A library → the only modules that may import it.
ONLY_IN = {
    "mlflow": {"store"},
    "lm_eval": {"benchmark"},
    "spython": set(),
    "unsloth": {"training.engine"},
}
# What `sources` found is pinned by models/base.json, which is a dependency: only who asks it to
# fetch lists it.
PINNED = {"sources"}
# How stages start, read params, log and hold memory decides no result: a change there runs
# nothing again.
PLUMBING = {
    *("config", "disk", "files", "follower", "history", "lock", "mirror", "nodes", "processes"),
    *("progress", "provenance", "ranks", "redaction", "sections", "stage", "store", "tracking"),
    *("resume.agreement", "resume.attempt", "resume.checkpoints", "resume.fingerprint"),
    "resume.stopping",
    "throughput.memory",
}
ALL_SECTIONS = "params.yaml"


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found | (named_by_tasks() if path == ROOT / "eval/benchmark.py" else set())


def named_by_tasks() -> set[str]:
    """The package's modules whose functions lm-eval calls, as the tasks in eval/tasks say."""
    tasks = [path.read_text() for path in (ROOT / "eval/tasks").rglob("*.yaml")]
    return {name for text in tasks for name in re.findall(r"!function (siftune[\w.]+)\.\w+", text)}


def module_name(path: Path) -> str:
    """`chat.masking` for src/siftune/chat/masking.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def path_of(module: str) -> str:
    return f"src/siftune/{module.replace('.', '/')}.py"


def own_modules(path: Path) -> set[str]:
    """Names of the package's modules that a file imports, itself or through others."""
    known = {module_name(module): module for module in MODULES}
    found: set[str] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        for name in imports(current):
            module = name.removeprefix("siftune.")
            own = name.startswith("siftune.") and module in known and module not in found
            if own and (current == path or module not in PINNED):
                found.add(module)
                waiting.append(known[module])
    return found


def script(stage: str) -> Path:
    return ROOT / PIPELINE[stage]["cmd"].removeprefix("python -P ")


def params_of(stage: str) -> list[str]:
    return [next(iter(p)) if isinstance(p, dict) else p for p in PIPELINE[stage].get("params", [])]


def test_the_guards_see_the_house():
    assert len(MODULES) > 15
    assert {path.stem for path in SCRIPTS} == set(PIPELINE)


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: path.stem)
def test_libraries_stay_in_their_room(path: Path):
    for library, rooms in ONLY_IN.items():
        if any(name.split(".")[0] == library for name in imports(path)):
            assert path.is_relative_to(PACKAGE), f"{library} is imported in {path}"
            assert module_name(path) in rooms, f"{library} is imported in {path}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_import_the_package_and_never_each_other(path: Path):
    names = {other.stem for other in SCRIPTS}
    assert not names & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_no_script_bears_the_name_of_another_module(path: Path):
    assert path.stem not in sys.stdlib_module_names
    assert importlib.util.find_spec(path.stem) is None


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_is_its_script_its_metrics_and_its_params(stage: str):
    path = script(stage)
    assert path.stem == stage
    assert path.is_file()
    assert f"python -P {path.relative_to(ROOT)}" == PIPELINE[stage]["cmd"]
    loads = [
        [argument.value for argument in node.args]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("config.load", "config.load_all")
    ]
    loaded = set(loads[0]) if loads and loads[0] else {ALL_SECTIONS}
    assert loaded == set(params_of(stage))
    if stage not in ("check", "report"):
        assert [next(iter(m)) for m in PIPELINE[stage]["metrics"]] == [f"metrics/{stage}.json"]


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_depends_on_all_code_that_decides_its_result(stage: str):
    path = script(stage)
    wanted = {path_of(name) for name in own_modules(path) - PLUMBING}
    wanted.add(str(path.relative_to(ROOT)))
    listed = {dep for dep in PIPELINE[stage]["deps"] if dep.endswith(".py")}
    # A room of which a stage needs most is listed as a whole.
    rooms = {dep for dep in PIPELINE[stage]["deps"] if dep.startswith("src/") and dep not in listed}
    modules = {file for file in wanted if file.rpartition("/")[0] not in rooms}
    assert listed == modules
    for room in {dep for dep in rooms if (ROOT / dep).is_dir()}:
        inside = {path for path in wanted if path.startswith(f"{room}/")}
        assert len(inside) > len(list((ROOT / room).glob("*.py"))) / 2


def test_the_committed_params_are_the_default_composition(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    presets.compose(tmp_path / "params.yaml", [])
    assert (ROOT / "params.yaml").read_text() == (tmp_path / "params.yaml").read_text()


def preset_choices() -> list[str]:
    return [f"{path.parent.name}={path.stem}" for path in sorted((ROOT / "conf").glob("*/*.yaml"))]


@pytest.mark.parametrize("choice", preset_choices())
def test_every_preset_composes_to_valid_params(choice: str, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    target = tmp_path / "params.yaml"
    presets.compose(target, [choice])
    monkeypatch.setattr(config, "PARAMS_FILE", target)
    config.load_all()


def test_importing_does_nothing(tmp_path):
    """Every module imports in an empty folder and leaves no file, variable or handler."""
    names = [f"siftune.{module_name(path)}" for path in MODULES if path.stem != "__main__"]
    assert len(names) > 15
    code = (
        "import importlib, os, signal\n"
        # What these do to the environment is theirs; ours must do nothing on top.
        "import datasets, lm_eval.models.huggingface, peft, torch, transformers, trl\n"
        "before = dict(os.environ), signal.getsignal(signal.SIGTERM)\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "assert (dict(os.environ), signal.getsignal(signal.SIGTERM)) == before"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_records_are_checked_without_torch(tmp_path):
    code = "import sys, siftune.data.preparation; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)
