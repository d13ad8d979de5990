import re
from itertools import islice

import pytest

from siftune import word_problems


def test_every_step_of_every_answer_is_right():
    for problem in word_problems.make(num_problems=400, seed=7):
        *steps, last = problem.answer.split("\n")
        for step in steps:
            left, right = step.split(" = ")
            assert eval(left) == int(right)
        assert last == f"#### {steps[-1].split(' = ')[1]}"
        assert int(last[5:]) > 0


def test_a_slip_misreads_the_last_step_and_reckons_right():
    for problem in word_problems.make(num_problems=400, seed=7):
        (*first, right, _), (*same, wrong, last) = (
            text.split("\n") for text in (problem.answer, problem.slip)
        )
        assert first == same
        assert right.split(" = ")[0].translate(str.maketrans("+-", "-+")) == wrong.split(" = ")[0]
        assert str(eval(wrong.split(" = ")[0])) == wrong.split(" = ")[1] == last[5:]


def test_every_number_of_the_group_is_in_the_question():
    for problem in word_problems.make(num_problems=200, seed=7):
        numbers = problem.group.partition(":")[2].split("-")
        assert sorted(numbers) == sorted(re.findall(r"\d+", problem.question))


def test_groups_differ_and_a_longer_run_begins_with_the_shorter_one():
    long = list(word_problems.make(num_problems=1000, seed=1))
    assert len({problem.group for problem in long}) == 1000
    assert list(word_problems.make(num_problems=50, seed=1)) == long[:50]
    assert list(word_problems.make(num_problems=50, seed=2)) != long[:50]


def test_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"only \d+ different problems"):
        list(islice(word_problems.make(num_problems=10**6, seed=1), 10**6))
