import os
from pathlib import Path

import pytest

from siftune import files
from siftune.stage import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_its_place_whole(tmp_path):
    target = tmp_path / "out"
    for content in ("old", "new"):
        with files.published_folder(target) as aside:
            (aside / "sub").mkdir()
            (aside / "sub" / "file").write_text(content)
    assert (target / "sub" / "file").read_text() == "new"
    assert names(tmp_path) == ["out"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~files._umask()


def test_after_an_error_the_old_one_stays(tmp_path):
    files.write_json(tmp_path / "folder" / "a.json", 1)
    with pytest.raises(ZeroDivisionError), files.published_folder(tmp_path / "folder") as aside:
        (aside / "b").write_text(str(1 / 0))
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "folder" / "a.json", float("nan"))
    assert files.read_json(tmp_path / "folder" / "a.json") == 1
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["a.json"]


def test_jsonl_keeps_every_character(tmp_path):
    rows = [{"text": "為\u2028\n\t🎉"}, {"text": ""}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert list(files.read_jsonl(tmp_path / "rows.jsonl")) == rows


def test_a_folder_is_described_by_content_alone(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_bytes(b"abc")
        os.utime(tmp_path / folder / "x", (len(folder), ord(folder)))
    described = files.describe_folder(tmp_path / "a")
    assert described == files.describe_folder(tmp_path / "b")
    assert described["x"]["size"] == 3
    assert described["x"]["sha256"].startswith("ba7816bf")


def test_a_missing_input_says_what_writes_it(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        files.read_json(tmp_path / "no.json")
    with pytest.raises(UserError, match="dvc repro"):
        list(files.read_jsonl(tmp_path / "no.jsonl"))
