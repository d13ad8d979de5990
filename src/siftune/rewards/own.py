"""Rewards that the user wrote: a function of a file in train/rewards, which DVC watches."""

import functools
import math
import traceback
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from siftune.data.faults import Fault
from siftune.stage import UserError

# Where users put theirs: a dependency of the stage that uses them.
OWN = Path("train/rewards")


def load(reference: str) -> Callable[..., float]:
    """The function that `file.py:function` names, in train/rewards and nowhere else.

    What it raises when called is a UserError with file and line, too; so is what is no number.

    Raises:
        UserError: there is no such file or function, or the file does not run.
    """
    file, _, name = reference.partition(":")
    if Path(file).name != file or not file.endswith(".py") or not name.isidentifier():
        raise UserError(f"{reference!r}: a reward of yours is file.py:function, in {OWN}.")
    path = OWN / file
    try:
        # Not imported: that would write __pycache__ there, and DVC would see a change.
        found: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
        exec(compile(path.read_bytes(), str(path), "exec"), found)
    except FileNotFoundError:
        there = ", ".join(sorted(one.name for one in OWN.glob("*.py"))) or "no file"
        raise UserError(f"{path} is not there; {OWN} has {there}.") from None
    except Exception as error:
        raise _explained(error, path) from None
    if not callable(found.get(name)):
        raise UserError(f"{path} has no function {name!r}.")
    return _guarded(found[name], path)


def _guarded(function: Callable[..., Any], path: Path) -> Callable[..., float]:
    @functools.wraps(function)
    def guarded(*given: Any, **params: Any) -> float:
        try:
            reward = function(*given, **params)
        except Fault:  # of ours, which it may call
            raise
        except Exception as error:
            raise _explained(error, path) from None
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise UserError(f"{path}: {function.__name__} returned {reward!r}, which is no number.")
        return float(reward)

    return guarded


def _explained(error: Exception, path: Path) -> UserError:
    """What went wrong, and in which line of the file."""
    places = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    line = error.lineno if isinstance(error, SyntaxError) and not places else (places or [1])[-1]
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    return UserError(f"{path}:{line}: {type(error).__name__}: {what}")
