"""Quantise one GGUF file: `python llama_quantise.py SOURCE TARGET TYPE`.

A process of its own, since llama.cpp ends its process where it meets what it does not expect.
"""

import ctypes
import sys


def main() -> None:
    import llama_cpp  # llama.cpp's own package, not our module of that name

    source, target, kind = sys.argv[1:]
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    sys.exit(
        llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options))
    )


if __name__ == "__main__":
    main()
