"""How a stage script starts and ends: exit codes, and no traceback for a user's mistake."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

FINISHED = 0
DO_NOT_RETRY = 78  # EX_CONFIG: bad params or data; the same input fails again
TERMINATED = 128 + signal.SIGTERM

# In a file, a bar that redraws itself is thousands of lines.
NO_BARS = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}

# Nothing is sent anywhere that the user did not ask for.
QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class UserError(ValueError):
    """What the user can mend. The message says what is wrong, where, what is valid, what to do."""


def run(main: Callable[[], None]) -> NoReturn:
    """Run a stage's `main` and exit with the code that Slurm wrappers and DVC act on."""
    surroundings = QUIET_LIBRARIES if sys.stderr.isatty() else QUIET_LIBRARIES | NO_BARS
    for name, value in surroundings.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        print(f"siftune: {error}", file=sys.stderr)
        sys.exit(DO_NOT_RETRY)
    sys.exit(FINISHED)


def _terminate(signum: int, frame: object) -> NoReturn:
    # An exception, so that open runs are closed and temporary folders removed on the way out.
    sys.exit(TERMINATED)
