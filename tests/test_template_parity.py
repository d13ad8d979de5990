"""One prompt, three ways: as it is trained, as transformers sends it, as llama.cpp reads it."""

import copy
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from siftune import gguf_tokenizer, llama_cpp
from siftune.chat import masking, templates
from siftune.chat.families import FAMILIES
from siftune.sections import Encode

HERE = Path(__file__).parent
GOLDEN = {path.stem: json.loads(path.read_text()) for path in HERE.glob("golden/*.json")}
PRE_TOKENIZER = "qwen2"  # of both sides; in it each template's prompts end where a token ends

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def sid_root() -> Path:
    """The Debian root with llama.cpp's server; it is made when it can be."""
    made = subprocess.run([HERE / "cluster/root.sh", "sid"], capture_output=True, text=True)
    if made.returncode == 78:
        pytest.skip(made.stderr.splitlines()[-1])
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


@pytest.fixture(scope="module")
def union(tokenizer):
    """The tokenizer of the tests with the special tokens of every family."""
    tokenizer = copy.deepcopy(tokenizer)
    tokens = [
        *(GOLDEN[family][role] for family in GOLDEN for role in ("bos_token", "eos_token")),
        *(token for family in FAMILIES.values() for token in family.markers),
        *(family.stop for family in FAMILIES.values()),
    ]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": list(dict.fromkeys(token for token in tokens if token))}
    )
    return tokenizer


@pytest.fixture(scope="module")
def gguf(union, tmp_path_factory) -> Path:
    """A random model with that tokenizer, by the project's own converter."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    llama_cpp.require(["f16"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(union),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
    )
    folder = tmp_path_factory.mktemp("union")
    model.save_pretrained(folder / "model")
    union.save_pretrained(folder / "model")
    llama_cpp.write(folder / "model", folder, name="union", types=["f16"])
    return llama_cpp.file_name(folder, "union", "f16")


class Server:
    """llama.cpp's server with one template, on a port of its own."""

    def __init__(self, gguf: Path, template: str, overrides: dict[str, str]) -> None:
        shared = gguf.parent
        (shared / "template.jinja").write_text(template, encoding="utf-8")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [HERE / "cluster/in_sid_root.sh", shared, "llama-server", "--jinja"]
        command += ["--model", f"/mnt/{gguf.name}", "--chat-template-file", "/mnt/template.jinja"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--offline", "--no-webui"]
        command += ["--ctx-size", "512", "--threads", "1", "--parallel", "1", "--no-warmup"]
        for key, value in overrides.items():
            command += ["--override-kv", f"tokenizer.ggml.{key}={value}"]
        self.log = shared / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.__exit__()
        raise AssertionError(f"llama-server did not start:\n{self.log.read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def post(self, path: str, **body: object) -> dict:
        """The answer to a request, as JSON."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_has_the_same_tokens_in_training_transformers_and_llama_cpp(
    family: str, sid_root: Path, union, gguf: Path
):
    tokenizer = family_tokenizer(union, family)
    assert len(tokenizer) == len(union)
    cases = [case for case in GOLDEN[family]["cases"].values() if "trained" in case]
    assert len(cases) >= 3
    with Server(gguf, tokenizer.chat_template, overrides(tokenizer)) as server:
        for case in cases:
            # llama.cpp gives a tool without a description an empty one; the golden ones have one.
            asked = {"messages": case["messages"][:-1], **tools_of(case)}
            trained = trained_prompt(tokenizer, case)
            applied = tokenizer.apply_chat_template(
                asked["messages"], tools=case.get("tools"), add_generation_prompt=True
            )
            assert applied["input_ids"] == trained
            prompt = server.post("apply-template", **asked)["prompt"]
            served = server.post("tokenize", content=prompt, add_special=True, parse_special=True)
            assert tokenizer.decode(served["tokens"]) == tokenizer.decode(trained)
            assert served["tokens"] == trained


def tools_of(case: dict) -> dict:
    return {"tools": case["tools"]} if "tools" in case else {}


def family_tokenizer(union, family: str):
    own = copy.deepcopy(union)
    own.backend_tokenizer.pre_tokenizer = gguf_tokenizer._pre_tokenizer(PRE_TOKENIZER)
    own.bos_token, own.eos_token = (GOLDEN[family][role] for role in ("bos_token", "eos_token"))
    return templates.choose(own, family)


def overrides(tokenizer) -> dict[str, str]:
    """The family's tokens, as its GGUF files say them."""
    said = {"pre": f"str:{PRE_TOKENIZER}", "eos_token_id": f"int:{tokenizer.eos_token_id}"}
    if tokenizer.bos_token is None:
        return {**said, "add_bos_token": "bool:false"}
    bos = {"bos_token_id": f"int:{tokenizer.bos_token_id}"}
    # As their tokenizers: those whose template writes BOS would add it to a bare text, too.
    adds_bos = str("bos_token" in tokenizer.chat_template).lower()
    return {**said, **bos, "add_bos_token": f"bool:{adds_bos}"}


def trained_prompt(tokenizer, case: dict) -> list[int]:
    settings = Encode(
        template=None,
        system=None,
        train_on="last_answer",
        train_reasoning=True,
        max_length=512,
        too_long="error",
        max_faulty=0.0,
    )
    record = {"messages": case["messages"], **tools_of(case)}
    [encoded] = masking.encode(tokenizer, [record], settings, ("<think>", "</think>"))
    start = next(i for i, label in enumerate(encoded.labels) if label != masking.IGNORED)
    return encoded.input_ids[:start]
