"""Compose conf/ into params, exactly as `dvc exp run` does."""

import sys
from pathlib import Path

from siftune import config
from siftune.stage import UserError


def compose(target: Path, overrides: list[str]) -> None:
    """Write conf/, composed with Hydra overrides (`model=NAME`, `sft.seed=2`), to `target`.

    Raises:
        UserError: Hydra refuses an override or a preset.
    """
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException

    conf = Path("conf").resolve()
    try:
        compose_and_dump(str(target), str(conf), None, "config", str(conf / "plugins"), overrides)
    except HydraException as error:
        raise UserError(f"conf/ cannot be composed with {overrides}: {error}") from None


def main() -> None:
    """`make params`: write params.yaml and check it."""
    compose(config.PARAMS_FILE, sys.argv[1:])
    config.load_all()


if __name__ == "__main__":
    from siftune import stage

    stage.run(main)
