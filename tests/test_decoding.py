"""Settings of a decoding that contradict each other are refused, before torch is there."""

import subprocess
import sys

import pytest

from siftune import decoding
from siftune.sections import Decoding, Samples
from siftune.stage import UserError


def samples(**decodings: Decoding) -> Samples:
    return Samples(num_prompts=1, max_new_tokens=8, seed=1, decodings=decodings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 40}, r"params\.yaml: samples\.decodings\.mine: top_k .* temperature is 0"),
        ({"top_p": 0.9}, r"samples\.decodings\.mine: top_p .* leave top_p out"),
        ({"temperature": 0.7, "num_beams": 4}, r"decodings\.mine: num_beams .* temperature above"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        decoding.require(samples(greedy=Decoding(), mine=Decoding(**settings)))


def test_two_names_for_one_setting_are_refused():
    twice = samples(plain=Decoding(top_p=1.0), warm=Decoding(temperature=0.5), greedy=Decoding())
    with pytest.raises(UserError, match="plain and greedy are the same"):
        decoding.require(twice)


def test_what_goes_together_is_taken():
    decoding.require(
        samples(
            greedy=Decoding(),
            warm=Decoding(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1),
            beams=Decoding(num_beams=4, no_repeat_ngram=3, repetition_penalty=0.9),
        )
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "the likeliest token each time"),
        ({"num_beams": 4}, "the likeliest answer of 4 beams"),
        ({"temperature": 0.8, "top_k": 40, "top_p": 0.9},
         "drawn, temperature 0.8, top-k 40, top-p 0.9"),
        ({"repetition_penalty": 1.1, "no_repeat_ngram": 3},
         "the likeliest token each time, repetition penalty 1.1, no 3 tokens in a row twice"),
    ],
)  # fmt: skip
def test_a_setting_in_words(settings, said):
    assert decoding.words(Decoding(**settings)) == said


def test_it_is_checked_without_torch():
    code = "import sys; from siftune import preflight; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
