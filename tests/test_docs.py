"""What the documentation names is there: commands, params, files, links; in both languages."""

import ast
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import TypeAdapter

from siftune import stage, word_problems
from siftune.sections import PHASES, SECTIONS, GgufType, Training

ROOT = Path(__file__).parent.parent
DOCS, CHINESE = ROOT / "docs", ROOT / "docs" / "zh-TW"
READMES = (ROOT / "README.md", ROOT / "README.zh-TW.md")
ENGLISH = sorted(page for page in DOCS.rglob("*.md") if not page.is_relative_to(CHINESE))
TWINS = [READMES, *((page, CHINESE / page.relative_to(DOCS)) for page in ENGLISH)]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Folders whose every file has its line in the README's tree.
WHOLLY_LISTED = ("conf", "train", "eval", "export", "src/siftune", "containers", "slurm")
# Made by `make`, so always there where a user types the lines below it.
ACTIVATE = "source .venv/bin/activate"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ .*", prose(page), flags=re.M)


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [line.strip("|").split(" |") for line in lines]
    return [[cell.strip().replace("\\|", "|") for cell in cells] for cells in split]


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def test_the_guards_see_the_documentation():
    assert {page.stem for page in ENGLISH} >= {"params", "stages", "demo", "gguf"}
    assert sorted(CHINESE.rglob("*.md")) == [chinese for _, chinese in TWINS[1:]]
    assert len(PAGES) >= 13


# Commands


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_is_called_with_its_targets(page: Path, readme_commands):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert len(targets) > 5
    called = [line for line in code_spans(page) + readme_commands(page) if line.startswith("make ")]
    for line in called:
        words = [word for word in shlex.split(line)[1:] if "=" not in word]
        assert set(words) <= targets, line


@pytest.mark.parametrize("page", READMES, ids=name)
def test_every_command_of_the_readme_is_run_somewhere(page: Path, readme_commands):
    commands = readme_commands(page)
    assert len(commands) > 8
    run_by_ci = (ROOT / ".ci" / "run").read_text().splitlines()
    for line in commands:
        program = line.split()[0]
        if program == "make":
            # test_make_ui_opens_mlflow runs the one that does not end by itself.
            assert line in run_by_ci or line == "make ui", line
        elif program == "sbatch" or program.startswith("slurm/"):
            # On the login node of the test cluster.
            assert "readme_commands" in (ROOT / "tests/cluster/test_login_node.py").read_text()
        else:
            assert program in ("dvc", "siftune") or line == ACTIVATE, line
    # Those of dvc and siftune.
    assert "readme_commands" in (ROOT / "tests" / "test_pipeline.py").read_text()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_command_hides_in_a_block_of_another_kind(page: Path):
    kinds = {"bash", "mermaid", "python", "text", "yaml"}
    assert {language for language, _ in blocks(page)} <= kinds
    commands = ("make ", "dvc ", "siftune ", "pip ", "git ", "python ", "source ", "sbatch ", "$ ")
    shown = [text for language, text in blocks(page) if language != "bash"]
    assert not [t for text in shown for t in text.splitlines() if t.startswith(commands)]


def test_make_ui_opens_mlflow(tmp_path: Path):
    dry = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/ready", "ui"]
    recipe = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "5000" in recipe
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # as the Makefile exports it
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            shlex.split(recipe.replace("5000", str(port))),
            cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        page = opened(f"http://127.0.0.1:{port}/", server, seconds=120)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    assert "<title>MLflow</title>" in page, (tmp_path / "log").read_text()


def opened(address: str, server: subprocess.Popen, *, seconds: int) -> str:
    """The page at `address`, or nothing when the server does not show it in time."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            return urllib.request.urlopen(address, timeout=10).read().decode()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return ""


# What the pages list


@pytest.mark.parametrize("page", [DOCS / "params.md", CHINESE / "params.md"], ids=name)
def test_every_param_is_documented_with_its_default(page: Path, default_params: Path):
    params = yaml.safe_load(default_params.read_text())
    sections = re.split(r"^## ([a-z_]+)$", prose(page), flags=re.M)
    listed = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(listed) == list(params) == list(SECTIONS)
    for section, text in listed.items():
        rows = [row for row in table_rows(text) if row[0].startswith("`")]
        documented = {row[0].strip("`"): yaml.safe_load(row[2].strip("`")) for row in rows}
        if params[section] is None:  # a phase that is left out; its preset has the defaults
            values = yaml.safe_load((ROOT / f"conf/method/{section}-lora.yaml").read_text())[
                section
            ]
            own = {one.name for one in fields(PHASES[section])} - {o.name for o in fields(Training)}
            assert own <= set(documented)
            assert documented.items() <= at_depth_of(documented, values).items(), section
        else:
            assert documented == at_depth_of(documented, params[section]), section


def at_depth_of(documented: dict, values: dict, prefix: str = "") -> dict:
    """`values` with dotted keys, opened as far as `documented` names what is inside."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in documented:
            flat |= at_depth_of(documented, value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def test_the_preset_groups_are_documented():
    defaults = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["defaults"]
    groups = [entry for entry in defaults if entry != "_self_"]
    chosen = [[f"`{group}`", f"`{name}`"] for entry in groups for group, name in entry.items()]
    for page in (DOCS / "params.md", CHINESE / "params.md"):
        rows = [[row[0], row[-1]] for row in table_rows(prose(page))]
        assert rows[2 : 2 + len(chosen)] == chosen, name(page)


@pytest.mark.parametrize("page", [DOCS / "stages.md", CHINESE / "stages.md"], ids=name)
def test_every_stage_is_documented_in_its_order(page: Path):
    assert [heading[3:] for heading in headings(page)[-len(PIPELINE) :]] == list(PIPELINE)


@pytest.mark.parametrize("page", READMES, ids=name)
def test_the_picture_shows_every_stage_in_its_folder(page: Path):
    picture = next(text for language, text in blocks(page) if language == "mermaid")
    assert set(re.findall(r"<b>(\w+)</b>", picture)) == set(PIPELINE)
    shown = dict(re.findall(r"^ *class (\S+) (\w+)$", picture, flags=re.M))
    folders = {one: folder for several, folder in shown.items() for one in several.split(",")}
    assert folders == {one: PIPELINE[one]["cmd"].split()[2].split("/")[0] for one in PIPELINE}


@pytest.mark.parametrize("page", READMES, ids=name)
def test_the_exit_codes_are_those_of_the_stages(page: Path):
    codes = {row[0] for row in table_rows(prose(page)) if row[0].isdigit()}
    assert codes == {str(c) for c in (stage.FINISHED, stage.RUN_AGAIN, stage.DO_NOT_RETRY)}


@pytest.mark.parametrize("page", READMES, ids=name)
def test_the_tree_is_the_tree(page: Path):
    tree = next(text for _, text in blocks(page) if text.startswith("params.yaml"))
    parents: dict[int, str] = {-2: ""}
    listed = []
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        entry = parents[depth - 2] + line.split()[0]
        parents[depth] = entry
        listed.append(entry)
    assert [entry for entry in listed if not (ROOT / entry).exists()] == []
    assert all((ROOT / entry).is_dir() == entry.endswith("/") for entry in listed)
    leaves = tuple(one for one in listed if not any(o.startswith(one) and o != one for o in listed))
    files = [path for folder in WHOLLY_LISTED for path in (ROOT / folder).rglob("*")]
    sources = [name(path) for path in files if path.suffix in (".py", ".yaml", ".sh", ".txt")]
    assert len(sources) > 60
    unlisted = [path for path in sources if not path.startswith(leaves)]
    assert [path for path in unlisted if not path.endswith("__init__.py")] == []


@pytest.mark.parametrize("page", READMES, ids=name)
def test_example_presets_are_valid(page: Path, default_params: Path):
    examples = [text for language, text in blocks(page) if language == "yaml"]
    assert len(examples) == 2
    for text in examples:
        group = re.match(r"# conf/(\w+)/mine\.yaml\n", text)[1]
        assert "\n# @package _global_\n" in text
        preset = yaml.safe_load(text)
        assert group in preset
        # The method decides the rest of this one.
        preset["encode"] = yaml.safe_load(default_params.read_text())["encode"] | preset.get(
            "encode", {}
        )
        for section, values in preset.items():
            TypeAdapter(SECTIONS[section]).validate_json(json.dumps(values))


@pytest.mark.parametrize("page", [DOCS / "gguf.md", CHINESE / "gguf.md"], ids=name)
def test_every_gguf_type_is_documented(page: Path):
    listed = [row[0].strip("`") for row in table_rows(prose(page)) if row[0].startswith("`")]
    assert sorted(listed) == sorted(get_args(GgufType))


@pytest.mark.parametrize("page", [DOCS / "demo.md", CHINESE / "demo.md"], ids=name)
def test_every_template_of_the_demo_is_documented(page: Path):
    problems = word_problems.make(num_problems=len(word_problems.TEMPLATES), seed=1)
    templates = [f"`{problem.group.split(':')[0]}`" for problem in problems]
    listed = [row[0] for row in table_rows(prose(page)) if row[0].startswith("`")]
    assert listed == templates


def messages() -> str:
    """All text that our code may print; … stands for what is put in when it runs."""
    found = []
    folders = ("src", "train", "eval", "export")
    for path in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    scripts = [path for folder in ("containers", "slurm") for path in (ROOT / folder).glob("*.sh")]
    return "\n".join([*found, *(path.read_text() for path in scripts)])


def test_the_messages_in_troubleshooting_are_printed_somewhere():
    titles = headings(DOCS / "troubleshooting.md")
    quoted = [title[5:-1] for title in titles if title.startswith("### `")]
    assert len(quoted) > 10
    printed = messages()
    assert [message for message in quoted if message not in printed] == []


def test_the_messages_that_a_cluster_shows_are_printed_somewhere():
    rows = table_rows(prose(DOCS / "cluster.md").partition("## What goes wrong")[2])
    quoted = [row[0].strip("`") for row in rows if re.fullmatch("`[^`]* [^`]*`", row[0])]
    assert len(quoted) > 6
    printed = messages() + "no kernel image is available"  # by CUDA
    assert [message for message in quoted if message not in printed] == []


# Links and languages


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_of_the_repository_are_there(page: Path):
    ours = (
        *("conf/", "train/", "eval/", "export/", "src/", "containers/", "tests/", "docs/"),
        *("slurm/", ".ci/"),
    )
    named = [span for span in code_spans(page) if re.fullmatch(r"[\w./-]+", span)]
    assert [p for p in named if p.startswith(ours) and not (ROOT / p).exists()] == []


@pytest.mark.parametrize("page", [*CHINESE.rglob("*.md"), READMES[1]], ids=name)
def test_chinese_pages_link_to_chinese_pages(page: Path):
    targets = {(page.parent / t).resolve() for t in re.findall(r"\]\(([^)\s]+\.md)\)", prose(page))}
    # Each README links to the other; CONTRIBUTING.md is in English only.
    assert targets & dict(TWINS).keys() <= {READMES[0]}


@pytest.mark.parametrize(("english", "chinese"), TWINS, ids=lambda page: name(page))
def test_both_languages_say_the_same(english: Path, chinese: Path, readme_commands):
    levels = [[heading.split()[0] for heading in headings(page)] for page in (english, chinese)]
    assert levels[0] == levels[1]
    quoted = [[title for title in headings(page) if "`" in title] for page in (english, chinese)]
    assert quoted[0] == quoted[1]
    assert readme_commands(english) == readme_commands(chinese)
    assert [kind for kind, _ in blocks(english)] == [kind for kind, _ in blocks(chinese)]
    rows = [[len(row) for row in table_rows(prose(page))] for page in (english, chinese)]
    assert rows[0] == rows[1]
    assert set(code_spans(english)) == set(code_spans(chinese))


HAN, HALF_WIDTH = "[\u3400-\u9fff]", "[,:;?!()]"


@pytest.mark.parametrize("page", [chinese for _, chinese in TWINS], ids=name)
def test_chinese_is_set_with_full_width_marks(page: Path):
    text = re.sub(r"`[^`\n]+`|\]\([^)\n]*\)", "", prose(page))
    assert len(re.findall(HAN, text)) > 200
    assert re.findall(rf"{HAN}{HALF_WIDTH}.*|.*{HALF_WIDTH} ?{HAN}", text) == []
