"""Deaths of this process within its file operations."""

import builtins
import io
import os
import random
import resource
import signal
from collections.abc import Callable

# What changes files, or opens one.
OPERATIONS = (
    "open", "mkdir", "rename", "replace", "fsync", "unlink", "remove", "rmdir", "scandir", "stat",
    "close", "link",
)  # fmt: skip


def die_at(number: int) -> None:
    """Let this process be killed right before its n-th file operation."""
    import safetensors.torch
    import torch

    count = 0

    def counted(function: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    io.open = builtins.open = counted(io.open)
    torch.save = counted(torch.save)
    safetensors.torch.save_file = counted(safetensors.torch.save_file)


def torn_at(number: int) -> None:
    """Let it die in the midst of writing: no file may grow beyond a size, the larger the later.

    The kernel ends it by SIGXFSZ after it has written what fits, whoever writes: Python, torch's
    C++ or the Rust of safetensors.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    size = int(1.6 ** (number - 1)) + random.Random(number).randrange(3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
