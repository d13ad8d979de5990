"""The numbers over steps: each step once, whatever was killed and done again."""

import json

import pytest

from siftune import history


def test_each_step_stands_once_after_a_rewind(tmp_path):
    for step in (1, 2, 3):
        history.append(tmp_path, {"loss": step}, step=step)
    history.append(tmp_path, {"validation_loss": 9}, step=3)
    assert [row["step"] for row in history.rewind(tmp_path, 2)] == [1, 2]
    for step in (3, 4):
        history.append(tmp_path, {"loss": 10 * step}, step=step)
    rows = history.read(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 2), (3, 30), (4, 40)]
    assert "validation_loss" not in rows[2]


def test_a_rewind_to_where_it_is_writes_nothing(tmp_path):
    history.append(tmp_path, {"loss": 1}, step=1)
    assert history.rewind(tmp_path, 1) == history.read(tmp_path)
    assert len((tmp_path / history.NAME).read_text().splitlines()) == 1
    assert history.rewind(tmp_path / "nothing", 0) == []


@pytest.mark.parametrize("size", range(1, 40))
def test_half_a_line_of_a_killed_writer_costs_only_itself(tmp_path, size):
    history.append(tmp_path, {"loss": 1}, step=1)
    torn = json.dumps({"step": 2, "time": 1795350701.0045233, "loss": 0.5})[:size]
    with (tmp_path / history.NAME).open("a") as file:
        file.write(torn)
    reader = history.Reader(tmp_path)
    assert [line["step"] for line in reader.new_lines()] == [1]
    history.append(tmp_path, {"loss": 2}, step=2)
    assert [(row["step"], row["loss"]) for row in history.read(tmp_path)] == [(1, 1), (2, 2)]
    assert [line["step"] for line in reader.new_lines()] == [2]
    assert reader.new_lines() == []


def test_a_line_that_is_being_written_is_read_once_it_is_whole(tmp_path):
    line = json.dumps({"step": 1, "time": 1.5, "loss": 0.5}) + "\n"
    reader = history.Reader(tmp_path)
    found = []
    for letter in line:
        with (tmp_path / history.NAME).open("a") as file:
            file.write(letter)
        found += reader.new_lines()
    assert found == [json.loads(line)]
