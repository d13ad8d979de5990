"""llama.cpp, one pinned release: its converter writes GGUF files, its library quantises them.

`containers/llama.sh` puts both in place, from one source package.
"""

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from siftune import llama_quantise, processes
from siftune.stage import UserError

CONVERTER = Path(sys.prefix, "share/llama.cpp/convert_hf_to_gguf.py")
QUANTISER = Path(llama_quantise.__file__)

CONVERTED = ("f16", "q8_0")  # by the converter, which is plain Python
QUANTISED = ("q5_k_m", "q4_k_m", "q4_0")  # from the f16 file, by the library

_PROGRESS = re.compile(r"(?:Writing: *)?(\d+%|\[ *\d+/ *\d+\])")


def require(types: Sequence[str]) -> None:
    """Make sure that the GGUF `types` can be written here; looks for files and imports nothing.

    Raises:
        UserError: a part of llama.cpp is not installed; the message says what to run.
    """
    if not CONVERTER.is_file():
        raise UserError(
            f"llama.cpp's converter is not at {CONVERTER}. Run `containers/llama.sh converter`."
        )
    quantised = [kind for kind in types if kind in QUANTISED]
    if quantised and not has_library():
        raise UserError(
            f"params.yaml: to_gguf.types: {', '.join(quantised)} needs llama.cpp's library, which "
            "is not installed. Run `make llama` (about 12 CPU-minutes, once), or keep to "
            f"{' and '.join(CONVERTED)}."
        )


def has_library() -> bool:
    """Whether llama.cpp's library is installed; nothing is loaded."""
    return find_spec("llama_cpp") is not None


def write(
    model: Path, folder: Path, *, name: str, types: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Write `<folder>/<name>-<type>.gguf` for each type, from the Hugging Face folder `model`.

    Returns:
        By type: `bytes`, and `seconds` of wall time.

    Raises:
        UserError: llama.cpp cannot write this model; the message ends with its own words.
    """
    quantised = any(kind in QUANTISED for kind in types)
    wanted = [
        kind for kind in (*CONVERTED, *QUANTISED) if kind in types or (kind == "f16" and quantised)
    ]
    written: dict[str, dict[str, float]] = {}
    for kind in wanted:
        start = time.monotonic()
        path = file_name(folder, name, kind)
        if kind in CONVERTED:
            _convert(model, path, kind=kind, name=name)
        else:
            _quantise(file_name(folder, name, "f16"), path, kind=kind)
        seconds = round(time.monotonic() - start, 2)
        written[kind] = {"bytes": path.stat().st_size, "seconds": seconds}
    if "f16" not in types and quantised:
        file_name(folder, name, "f16").unlink()
        del written["f16"]
    return written


def file_name(folder: Path, name: str, kind: str) -> Path:
    """Where the GGUF file of a type is."""
    return folder / f"{name}-{kind}.gguf"


def gguf_files(folder: Path) -> dict[str, Path]:
    """The GGUF files that `write` left in a folder, by type, best first."""
    found = {path.stem.rsplit("-", 1)[1]: path for path in folder.glob("*.gguf")}
    return {kind: found[kind] for kind in (*CONVERTED, *QUANTISED) if kind in found}


def _convert(model: Path, path: Path, *, kind: str, name: str) -> None:
    command = [sys.executable, str(CONVERTER), str(model), "--outfile", str(path)]
    # It finds its own modules beside it, which a safe path (PYTHONSAFEPATH) would keep from it.
    environment = {**os.environ, "PYTHONPATH": str(CONVERTER.parent)}
    _run([*command, "--outtype", kind, "--model-name", name], kind=kind, environment=environment)


def _quantise(f16: Path, path: Path, *, kind: str) -> None:
    command = [sys.executable, "-P", str(QUANTISER), str(f16), str(path), kind]
    _run(command, kind=kind, environment=dict(os.environ))


def _run(command: list[str], *, kind: str, environment: dict[str, str]) -> None:
    tail: deque[str] = deque(maxlen=30)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment,
        preexec_fn=partial(processes.end_with_parent, os.getpid()),
    ) as child:  # fmt: skip
        assert child.stderr is not None
        try:
            for line in child.stderr:
                # A progress bar redraws one line; its steps are no error, nor for a log file.
                if not (step := _PROGRESS.match(line)):
                    tail.append(line)
                elif sys.stderr.isatty():
                    print(f"\r{kind} {step[1]} ", end="", file=sys.stderr, flush=True)
        except BaseException:
            child.kill()
            raise
    if sys.stderr.isatty():
        print(f"\r{kind} {'' if child.returncode else 'written'}", file=sys.stderr)
    if child.returncode < 0:
        raise RuntimeError(
            f"llama.cpp died of signal {-child.returncode} at {kind}:\n{''.join(tail)}"
        )
    if child.returncode:
        raise UserError(f"llama.cpp cannot write the type {kind} of this model:\n{''.join(tail)}")
