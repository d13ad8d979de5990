"""Word problems in GSM8K's form, made from a seed: the embedded default data.

A problem is a template plus the numbers in it. Those numbers are its `group`, so that a split by
group never puts the same sum, told with another name, into both train and test.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

NAMES = ("Ana", "Ben", "Chen", "Dora", "Eli", "Fay", "Gus", "Hana", "Ivo", "Jia", "Ken", "Lin")
THINGS = ("apples", "books", "cards", "coins", "cups", "eggs", "pens", "shells", "stamps", "toys")


@dataclass(frozen=True)
class Problem:
    """A problem; `answer` ends in GSM8K's last line, `#### N`; `group` is template + numbers.

    `slip` is the answer of one who misread the story: sum for difference in the last step, or the
    other way round, without any mistake in arithmetic.
    """

    question: str
    answer: str
    slip: str
    group: str


def _problem(template: str, numbers: tuple[int, ...], question: str, *steps: str) -> Problem:
    return Problem(
        question=question,
        answer=_answer(*steps),
        slip=_answer(*steps[:-1], _misread(steps[-1])),
        group=f"{template}:{'-'.join(map(str, numbers))}",
    )


def _answer(*steps: str) -> str:
    result = steps[-1].rsplit("= ", 1)[1]
    return "\n".join([*steps, f"#### {result}"])


def _misread(step: str) -> str:
    """`5 + 3 = 8` as `5 - 3 = 2`, and back."""
    left, sign, right, *_ = step.split()
    if sign == "+":
        return f"{left} - {right} = {int(left) - int(right)}"
    return f"{left} + {right} = {int(left) + int(right)}"


def _gain_and_loss(rng: random.Random) -> Problem:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    have, more, given = rng.randint(10, 60), rng.randint(2, 30), rng.randint(2, 9)
    return _problem(
        "gain-and-loss",
        (have, more, given),
        f"{name} has {have} {thing}, gets {more} more and gives away {given}. "
        f"How many {thing} are left?",
        f"{have} + {more} = {have + more}",
        f"{have + more} - {given} = {have + more - given}",
    )


def _saving(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    start, weekly, weeks = rng.randint(5, 60), rng.randint(2, 9), rng.randint(2, 9)
    return _problem(
        "saving",
        (start, weekly, weeks),
        f"{name} has {start} dollars and saves {weekly} dollars a week for {weeks} weeks. "
        f"How many dollars does {name} have then?",
        f"{weekly} * {weeks} = {weekly * weeks}",
        f"{start} + {weekly * weeks} = {start + weekly * weeks}",
    )


def _change(rng: random.Random) -> Problem:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    paid = rng.choice([paid for paid in range(10, 101, 10) if paid > count * price])
    return _problem(
        "change",
        (count, price, paid),
        f"{name} buys {count} {thing} at {price} dollars each and pays with {paid} dollars. "
        f"How many dollars come back?",
        f"{count} * {price} = {count * price}",
        f"{paid} - {count * price} = {paid - count * price}",
    )


def _boxes(rng: random.Random) -> Problem:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    boxes, each, loose = rng.randint(2, 9), rng.randint(2, 9), rng.randint(10, 60)
    return _problem(
        "boxes",
        (boxes, each, loose),
        f"{name} has {boxes} boxes of {each} {thing} and {loose} loose ones. "
        f"How many {thing} does {name} have?",
        f"{boxes} * {each} = {boxes * each}",
        f"{boxes * each} + {loose} = {boxes * each + loose}",
    )


TEMPLATES = (_gain_and_loss, _saving, _change, _boxes)


def make(*, num_problems: int, seed: int) -> Iterator[Problem]:
    """Yield `num_problems` problems with pairwise different groups, templates in turn.

    A longer run with the same seed begins with the shorter one's problems.

    Raises:
        ValueError: there are not that many different problems.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    for index in range(num_problems):
        for _ in range(10_000):
            problem = TEMPLATES[index % len(TEMPLATES)](rng)
            if problem.group not in seen:
                break
        else:
            raise ValueError(
                f"only {index} different problems can be made, {num_problems} are asked"
            )
        seen.add(problem.group)
        yield problem
