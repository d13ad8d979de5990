"""llama.cpp: what can be written here, the files it writes, and what is said when it cannot."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from siftune import llama_cpp
from siftune.stage import UserError

needs_library = pytest.mark.skipif(
    not llama_cpp.has_library(), reason="llama.cpp's library is not built: make llama"
)


@pytest.fixture(scope="module")
def two_files(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder with spaces")
    return folder, llama_cpp.write(tiny_model, folder, name="tiny", types=["q8_0", "f16"])


def test_the_converter_writes_what_is_asked(two_files):
    folder, written = two_files
    assert sorted(path.name for path in folder.iterdir()) == ["tiny-f16.gguf", "tiny-q8_0.gguf"]
    assert written["f16"]["bytes"] == (folder / "tiny-f16.gguf").stat().st_size
    assert written["q8_0"]["bytes"] < written["f16"]["bytes"]
    assert written["f16"]["seconds"] > 0
    assert list(llama_cpp.gguf_files(folder)) == ["f16", "q8_0"]


def test_the_converter_takes_the_tokenizer_for_what_it_is(two_files):
    from gguf import GGUFReader

    from siftune.gguf_tokenizer import metadata

    header = GGUFReader(two_files[0] / "tiny-f16.gguf")
    assert metadata(header, "tokenizer.ggml.model") == "gpt2"
    assert metadata(header, "tokenizer.ggml.pre") == "smollm"
    assert metadata(header, "general.name") == "tiny"


def test_two_conversions_are_the_same_file(two_files, tiny_model, tmp_path):
    llama_cpp.write(tiny_model, tmp_path, name="tiny", types=["f16"])
    name = "tiny-f16.gguf"
    assert (tmp_path / name).read_bytes() == (two_files[0] / name).read_bytes()


@needs_library
def test_the_library_quantises_and_the_f16_file_is_not_left(tiny_model, tmp_path):
    written = llama_cpp.write(tiny_model, tmp_path, name="tiny", types=["q4_0", "q5_k_m"])
    assert set(written) == {"q4_0", "q5_k_m"} == set(llama_cpp.gguf_files(tmp_path))
    assert written["q4_0"]["bytes"] < written["q5_k_m"]["bytes"]


def test_a_model_that_cannot_be_converted_says_why(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"]}')
    with pytest.raises(UserError, match="NoSuchForCausalLM is not supported"):
        llama_cpp.write(tmp_path, tmp_path, name="x", types=["f16"])


def test_a_death_by_signal_is_a_crash_and_no_mistake_of_the_user(tmp_path, monkeypatch):
    converter = tmp_path / "convert.py"
    converter.write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    monkeypatch.setattr(llama_cpp, "CONVERTER", converter)
    with pytest.raises(RuntimeError, match="signal 9"):
        llama_cpp.write(tmp_path, tmp_path, name="x", types=["f16"])


def test_an_interrupted_stage_leaves_no_converter_behind(tmp_path, monkeypatch):
    converter = tmp_path / "convert.py"
    converter.write_text(
        "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(600)"
    )
    monkeypatch.setattr(llama_cpp, "CONVERTER", converter)
    seen = []

    class Interrupted:
        def match(self, line):
            seen.append(int(line))
            raise SystemExit(143)

    monkeypatch.setattr(llama_cpp, "_PROGRESS", Interrupted())
    with pytest.raises(SystemExit):
        llama_cpp.write(tmp_path, tmp_path, name="x", types=["f16"])
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def test_types_that_need_the_library_are_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(llama_cpp, "CONVERTER", Path(__file__))
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    llama_cpp.require(["f16", "q8_0"])
    with pytest.raises(UserError, match=r"q4_0, q4_k_m needs .* Run `make llama`"):
        llama_cpp.require(["f16", "q4_0", "q4_k_m"])


def test_a_missing_converter_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "CONVERTER", tmp_path / "convert.py")
    with pytest.raises(UserError, match=r"llama\.sh converter"):
        llama_cpp.require(["f16"])


def test_asking_what_is_available_imports_nothing():
    code = (
        "import sys; from siftune import gguf_limits, llama_cpp; llama_cpp.has_library();"
        "assert not {'torch', 'llama_cpp', 'gguf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
